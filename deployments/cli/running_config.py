"""The configuration that a command is about."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.config import ClusterConfig, load_config
from deployments.cli.up import EXAMPLE
from deployments.state_folder import StateFolder


def running_config(state: StateFolder, path: Path | None) -> ClusterConfig:
    """Of the YAML if one is named, else of the running cluster, else the laptop's."""
    running = state.read_supervisor() or {}
    if path is None and "running" in running:
        return ClusterConfig.model_validate(running["running"])
    return load_config(path or EXAMPLE, os.environ)
