"""The installed version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def version() -> str:
    try:
        return installed_version("sprat")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "0.0.0+tree"


def ray_version() -> str:
    """The installed Ray: rendered files ask for the same."""
    return installed_version("ray")
