"""What a cluster keeps on its machine: whole files, closed secrets, and no belief in dead supervisors."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import StartError
from deployments import state_folder
from deployments.state_folder import StateFolder, read_json, start_ticks, write_json, write_text


@pytest.fixture(autouse=True)
def runtime_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Runtime folders appear here and not beside those of real clusters."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    made = StateFolder(tmp_path / "state")
    made.make()
    return made


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing ends half way, as on a full disk."""
    real = os.fdopen

    def fdopen(*arguments: object, **options: object) -> object:
        file = real(*arguments, **options)
        write = file.write

        def stop_half_way(text: str) -> int:
            write(text[: len(text) // 2])
            file.flush()
            raise OSError(28, "No space left on device")

        file.write = stop_half_way
        return file

    monkeypatch.setattr(state_folder.os, "fdopen", fdopen)


def test_the_folder_and_its_runtime_folder_are_for_the_owner_only(open_umask: None, tmp_path: Path) -> None:
    made = StateFolder(tmp_path / "deep" / "state")
    for _ in range(2):  # again is fine
        made.make()
        made.make_runtime()

    assert mode_of(made.path) == 0o700
    assert mode_of(made.runtime) == 0o700


def test_what_a_killed_supervisor_left_is_forgotten_but_not_what_a_living_one_holds(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.make()
    state.make_runtime()
    state.write_supervisor({})
    with state.lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state.forget_dead_supervisor()
        assert state.runtime.exists()
        assert state.read_supervisor() is not None

    state.forget_dead_supervisor()

    assert not state.runtime.exists()
    assert state.read_supervisor() is None


def test_two_folders_never_share_a_runtime_folder(tmp_path: Path) -> None:
    assert StateFolder(tmp_path / "a").runtime != StateFolder(tmp_path / "b").runtime
    assert len(str(StateFolder(tmp_path / ("x" * 200)).runtime.name)) < 40, "a socket's path must stay short"


def test_the_state_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPRAT_STATE", str(tmp_path / "chosen"))
    assert StateFolder.default().path == tmp_path / "chosen"

    monkeypatch.delenv("SPRAT_STATE")
    monkeypatch.chdir(tmp_path)
    assert StateFolder.default().path == tmp_path / ".sprat"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartError, match=f"{path} cannot be written: .*Set SPRAT_STATE"):
            StateFolder(path).make()


def test_a_folder_of_yesterday_that_is_closed_now_is_named(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != state.path)  # root may write anywhere

    with pytest.raises(StartError, match="cannot be written: Permission denied"):
        state.make()


def test_a_runtime_folder_of_another_user_is_refused(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, other = state.runtime, os.getuid() + 1
    monkeypatch.setattr(StateFolder, "runtime", property(lambda _self: name))
    monkeypatch.setattr(os, "getuid", lambda: other)

    with pytest.raises(StartError, match="belongs to another user"):
        state.make_runtime()


# Secrets.


def test_secrets_are_made_once_and_for_the_owner_only(open_umask: None, state: StateFolder) -> None:
    made = state.secrets()

    assert mode_of(state.path / "secrets.json") == 0o600
    assert mode_of(state.ray_token_file) == 0o600
    assert state.ray_token_file.read_text() == made.ray_token
    assert len(made.gateway_token) >= 32
    assert len(made.pepper) == 32
    assert state.secrets() == made


def test_two_clusters_have_different_secrets(state: StateFolder, tmp_path: Path) -> None:
    other = StateFolder(tmp_path / "other")
    other.make()

    assert state.secrets().gateway_token != other.secrets().gateway_token
    assert state.secrets().pepper != other.secrets().pepper


def test_weak_secrets_are_refused(state: StateFolder) -> None:
    state.secrets()
    path = state.path / "secrets.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"pepper": "abcd"}))

    with pytest.raises(StartError, match="pepper must have at least 32"):
        state.secrets()


def test_damaged_secrets_are_never_replaced_by_new_ones(state: StateFolder) -> None:
    state.secrets()
    (state.path / "secrets.json").write_text('{"pepper": ')

    with pytest.raises(StartError, match=r"is damaged\. Restore it, or remove the state folder"):
        state.secrets()
    assert (state.path / "secrets.json").read_text() == '{"pepper": '


def test_a_lost_ray_token_is_written_again(state: StateFolder) -> None:
    token = state.secrets().ray_token
    state.ray_token_file.unlink()

    state.secrets()

    assert state.ray_token_file.read_text() == token
    assert mode_of(state.ray_token_file) == 0o600


# Whole or not at all.


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    reader = path.open()

    write_json(path, {"a": 2})

    assert json.load(reader) == {"a": 1}, "whoever had it open still sees the old one, whole"
    assert read_json(path) == {"a": 2}
    assert [each.name for each in tmp_path.glob(".file*")] == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    with pytest.raises(
        StartError, match=r"file cannot be written: No space left on device\. Free some space"
    ):
        write_text(path, "something new")

    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["file"]


def test_a_first_secret_that_cannot_be_written_leaves_nothing(state: StateFolder, full_disk: None) -> None:
    with pytest.raises(StartError, match="No space left"):
        state.secrets()

    assert [each for each in state.path.rglob("*") if each.is_file()] == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_what_is_no_whole_record_reads_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)

    assert read_json(tmp_path / "record.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_what_may_not_be_read_is_an_error_and_not_an_empty_record(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="cannot be read: Not a directory"):
        read_json(tmp_path / "file" / "record.json")


# The supervisor's record.


def test_a_living_supervisor_is_found(state: StateFolder) -> None:
    state.write_supervisor({"endpoint": "http://here"})

    record = state.read_supervisor()

    assert record is not None
    assert record["pid"] == os.getpid()
    assert record["endpoint"] == "http://here"


def write_record_of(state: StateFolder, pid: int, started: float) -> None:
    write_json(state.path / "supervisor.json", {"pid": pid, "started": started})


def test_the_record_of_a_dead_supervisor_is_ignored(state: StateFolder) -> None:
    child = subprocess.Popen(["sleep", "60"])
    write_record_of(state, child.pid, start_ticks(child.pid))
    assert state.read_supervisor() is not None

    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie until it is waited for
    assert state.read_supervisor() is None

    child.wait()
    assert state.read_supervisor() is None


def test_a_process_that_got_the_same_number_is_not_taken_for_the_supervisor(state: StateFolder) -> None:
    write_record_of(state, os.getpid(), time.time() - 10 * 24 * 3600)

    assert state.read_supervisor() is None


def test_forgetting_takes_record_and_observations(state: StateFolder) -> None:
    state.write_supervisor({})
    state.write_observed({"phase": "running"})
    assert state.read_observed() == {"phase": "running"}

    state.forget_supervisor()
    state.forget_supervisor()

    assert state.read_supervisor() is None
    assert state.read_observed() == {}
