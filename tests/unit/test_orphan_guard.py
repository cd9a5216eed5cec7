"""An engine process ends with the replica that owns it. With real processes: that is what it is about."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points

import pytest

from deployments.orphan_guard import OWNER_VARIABLE, install

WITHIN_S = 2.0
ENGINE = """
import threading
from deployments.orphan_guard import install
install()
print([thread.name for thread in threading.enumerate()], flush=True)
{then}
"""
WAITS = "import time; time.sleep(60)"
SPINS = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: pass"
"""Busy, and deaf to every signal that can be blocked."""

Started = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Started]:
    """Starts programs, and ends those that are left."""
    running: list[subprocess.Popen[bytes]] = []

    def popen(*command: str, owner: int | str | None = None) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != OWNER_VARIABLE}
        if owner is not None:
            environment[OWNER_VARIABLE] = str(owner)
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        return running[-1]

    yield popen
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def engine_of(start: Started, owner: int | str | None, then: str = WAITS) -> subprocess.Popen[bytes]:
    return start(sys.executable, "-c", ENGINE.format(then=then), owner=owner)


def threads_of(engine: subprocess.Popen[bytes]) -> str:
    """What the engine prints when the guard is installed."""
    assert engine.stdout is not None
    return engine.stdout.readline().decode()


@pytest.mark.parametrize("then", [WAITS, SPINS], ids=["waiting", "busy_and_deaf"])
def test_an_engine_dies_soon_after_its_owner_was_killed(start: Started, then: str) -> None:
    owner = start("sleep", "60")
    engine = engine_of(start, owner.pid, then)
    assert "sprat-orphan-guard" in threads_of(engine)
    assert engine.poll() is None

    owner.send_signal(signal.SIGKILL)

    assert engine.wait(WITHIN_S) == -signal.SIGKILL


def test_an_engine_dies_with_an_owner_that_just_ended(start: Started) -> None:
    owner = start("sleep", "60")
    engine = engine_of(start, owner.pid)
    threads_of(engine)

    owner.terminate()
    owner.wait()

    assert engine.wait(WITHIN_S) == -signal.SIGKILL


def test_an_engine_that_starts_too_late_dies_at_once(start: Started) -> None:
    owner = start("true")
    owner.wait()

    engine = engine_of(start, owner.pid)

    assert threads_of(engine) == ""
    assert engine.wait(WITHIN_S) == -signal.SIGKILL


def test_the_engines_of_other_owners_live_on(start: Started) -> None:
    owner, other = start("sleep", "60"), start("sleep", "60")
    engine, others_engine = engine_of(start, owner.pid), engine_of(start, other.pid)
    threads_of(engine), threads_of(others_engine)

    owner.kill()

    engine.wait(WITHIN_S)
    with pytest.raises(subprocess.TimeoutExpired):
        others_engine.wait(0.3)


def test_without_an_owner_nothing_happens(start: Started) -> None:
    engine = engine_of(start, None, then="")

    assert threads_of(engine) == "['MainThread']\n"
    assert engine.wait(10) == 0


def test_the_owner_itself_is_not_watched_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, str(os.getpid()))

    install()

    assert "sprat-orphan-guard" not in {thread.name for thread in threading.enumerate()}


def test_vllm_finds_the_guard_among_its_plugins() -> None:
    found = {each.name: each for each in entry_points(group="vllm.general_plugins")}

    assert found["sprat_orphan_guard"].load() is install
