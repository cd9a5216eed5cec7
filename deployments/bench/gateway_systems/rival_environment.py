"""A rival's own Python environment, made once and kept below the cache.

Nothing of it ever enters ours. It is made without pip and setuptools, from wheels only, so that no code of a
package runs while it is installed, and no `.pth` file belongs there: Python runs the lines of such a file at
every start, before any program, so an environment that has one is refused.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deployments.bench.gateway_systems.system import SystemUnavailable
from deployments.weights.lock import model_lock

INSTALL_TIMEOUT_S = 900.0
PROGRESS_S = 10.0


@dataclass(frozen=True, slots=True)
class Rival:
    """`package` may name extras: `litellm[proxy]`."""

    package: str
    version: str

    @property
    def name(self) -> str:
        return self.package.partition("[")[0]


def rival_environment(rival: Rival, root: Path, say: Callable[[str], None]) -> Path:
    """The environment's folder. Blocks for a minute or more the first time.

    Raises SystemUnavailable: it cannot be installed, or it has a `.pth` file.
    """
    folder = root / f"{rival.name}-{rival.version}"
    done = folder / "packages.json"
    with model_lock(
        root / f".{folder.name}.lock", on_wait=lambda who: say(f"waiting for {who}, which installs {folder}")
    ):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of an earlier one
            try:
                packages = _install(rival, folder, say)
                done.write_text(packages, encoding="utf-8")
            except (OSError, subprocess.SubprocessError) as error:
                raise SystemUnavailable(f"cannot be installed: {error}") from error
        refuse_start_up_files(folder)
    return folder


def refuse_start_up_files(folder: Path) -> None:
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pth"))
    found += sorted(str(path.relative_to(folder)) for path in folder.rglob("site-packages/*customize.py"))
    if found:
        raise SystemUnavailable(
            f"{folder} holds {', '.join(found)}, which Python would run at every start. Read it; "
            "if it is harmless, install the system by hand and report it, else remove the folder"
        )


def _install(rival: Rival, folder: Path, say: Callable[[str], None]) -> str:
    """Returns what is in it then, as JSON."""
    say(f"{rival.name}: making {folder} (once)")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    pip = [
        *(sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")),
        *("--disable-pip-version-check", "--no-input"),
    ]
    install = [*pip, "install", "--only-binary=:all:", "--progress-bar=off", "--quiet"]
    with subprocess.Popen(
        [*install, f"{rival.package}=={rival.version}"], stderr=subprocess.PIPE, text=True
    ) as process:
        waited_s = 0.0
        while True:
            try:
                _, complaints = process.communicate(timeout=PROGRESS_S)
                break
            except subprocess.TimeoutExpired:
                waited_s += PROGRESS_S
                say(f"{rival.name}: installing for {waited_s:g} s")
                if waited_s >= INSTALL_TIMEOUT_S:
                    process.kill()
            except BaseException:
                process.kill()
                raise
    if process.returncode != 0:
        errors = [line for line in complaints.splitlines() if line.startswith("ERROR")]
        why = errors[-1] if errors else complaints.strip()[-200:] or "pip took too long"
        raise SystemUnavailable(f"cannot be installed: {why}")
    listed = subprocess.run(
        [*pip, "list", "--format=json"], check=True, timeout=60, stdout=subprocess.PIPE, text=True
    )
    return json.dumps(json.loads(listed.stdout), indent=1) + "\n"
