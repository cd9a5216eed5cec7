"""What a figure cannot be read without: the machine, how busy it was, and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deployments.valkey import find_server_binary


def machine_facts() -> dict[str, Any]:
    """`load_average` is that of the last minute: others on the machine make every figure worse."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            "redis-py": version("redis"),
            "hiredis": version("hiredis"),
            "ray": version("ray"),
            "store": _store_version(),
        },
    }


def _store_version() -> str:
    binary = find_server_binary()
    if binary is None:
        return "none"
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False)
    return " ".join(shown.stdout.split()[:3])


def _cpu_model() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as facts:
            return next(line.split(":", 1)[1].strip() for line in facts if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
