"""Starts the conversion of a GGUF in a process of its own, and is that process.

    python -m deployments.weights.convert GGUF OUT

A process of its own: its memory (gigabytes) goes back to the system, torch stays out of the caller,
and Ctrl-C ends it at once. It also ends when its parent does. It writes `OUT.partial-PID` and renames it
last, so OUT is complete whenever it exists.
"""

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from deployments.weights.disk import CONVERTED_PER_GGUF_BYTE, disk_errors_named, disk_full, require_free
from deployments.weights.errors import WeightsError
from deployments.weights.record import write_record

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LAST_LINES = 8


def convert_in_process(
    gguf: Path, out: Path, *, name: str, source: str, gguf_sha256: str, on_bytes: Callable[[int, int], None]
) -> None:
    """Converts `gguf` into the folder `out` in a child process and waits for it.

    `on_bytes(done, total)` counts bytes of converted weights. Raises WeightsError.
    """
    command = [sys.executable, "-m", "deployments.weights.convert", str(gguf), str(out)]
    command += ["--name", name, "--source", source, "--sha256", gguf_sha256, "--parent-pid", str(os.getpid())]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True) as child,
    ):
        try:
            failure = _follow(child.stdout, on_bytes)
            code = child.wait()
        except BaseException:  # Ctrl-C: no conversion without someone who waits for it
            child.kill()
            child.wait()
            remove_stale_partials(out)
            raise
        remove_stale_partials(out)  # of a child that was killed from outside
        if failure is not None:
            raise failure
        if code != 0:
            complaints.seek(0)
            raise _died(
                name, code, out, [line.rstrip() for line in complaints if line.strip()][-_LAST_LINES:]
            )


def _follow(lines: IO[str] | None, on_bytes: Callable[[int, int], None]) -> WeightsError | None:
    failure = None
    for line in lines or ():
        if not line.startswith("{"):  # some library talks
            continue
        message = json.loads(line)
        if "problem" in message:
            failure = WeightsError(message["problem"], fix=message["fix"])
        else:
            on_bytes(message["done_bytes"], message["total_bytes"])
    return failure


def _died(name: str, code: int, out: Path, last_lines: list[str]) -> WeightsError:
    if code in {-signal.SIGINT, -signal.SIGTERM}:
        return WeightsError(f"{name}: the conversion was interrupted", fix="Run again; the download is kept.")
    if code == -signal.SIGKILL:
        return WeightsError(
            f"{name}: the conversion was killed, most likely because memory ran out",
            fix="Stop other programs on this machine and run again; the download is kept.",
        )
    if any("No space left on device" in line for line in last_lines):
        return disk_full(out.parent, f"{name}: the conversion stopped")
    return WeightsError(
        f"{name}: the conversion ended with status {code}",
        fix="Run again; if it ends the same way, use an hf: or folder: source for this base model.",
        details=last_lines,
    )


def remove_stale_partials(out: Path) -> None:
    """Removes what conversions that no longer run left beside `out`."""
    for partial in out.parent.glob(f"{out.name}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        if not (pid.isdigit() and _is_alive(int(pid))):
            shutil.rmtree(partial, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to end this process with its parent; a crashed server must not leave a converter."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)


def _convert(gguf: Path, out: Path, name: str, source: str, gguf_sha256: str | None) -> None:
    from deployments.weights.conversion import write_model_folder

    if out.exists():  # whatever it is, it may be of value
        raise WeightsError(
            f"{name}: {out} exists", fix="Remove it, or name a folder that does not exist yet."
        )
    require_free(out.parent, gguf.stat().st_size * CONVERTED_PER_GGUF_BYTE, f"{name}: converting")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        with disk_errors_named(out.parent, f"{name}: converting"):
            version = write_model_folder(gguf, partial, name, _print_progress)
            write_record(
                partial, source=source, gguf_sha256=gguf_sha256 or _sha256_of(gguf), transformers=version
            )
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _print_progress(done_bytes: int, total_bytes: int) -> None:
    _print({"done_bytes": done_bytes, "total_bytes": total_bytes})


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    """The conversion process. Prints one JSON object per line; status 1 after a WeightsError."""
    parser = argparse.ArgumentParser(prog="python -m deployments.weights.convert")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--name", help="name of the base model; default: that of the file")
    parser.add_argument("--source", help="source string for the record; default: the path of the file")
    parser.add_argument("--sha256", help="of the file; default: it is computed")
    parser.add_argument("--parent-pid", type=int, help="end when this process does")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the file: no look-ups
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the whole group: end without traceback
    if options.parent_pid is not None:
        _die_with_parent(options.parent_pid)
    try:
        _convert(
            options.gguf.resolve(),
            options.out.resolve(),
            options.name or options.gguf.stem,
            options.source or str(options.gguf),
            options.sha256,
        )
    except WeightsError as error:
        _print({"problem": error.problem, "fix": error.fix})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
