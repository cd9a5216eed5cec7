"""`sprat loadtest`: whom it loads, with which key, and what becomes of the key."""

from __future__ import annotations

import pytest

from deployments.cli import loadtest as verb
from deployments.cli.loadtest import KEY_VARIABLE
from deployments.cli.store import opened_store
from deployments.state_folder import StateFolder
from tests.unit.conftest import Sprat

ENDPOINT = "http://127.0.0.1:8123/v1"

Started = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Command and environment of each load test that would have been started; each ends with 3."""
    seen: Started = []

    def run(command: list[str], environment: dict[str, str]) -> int:
        seen.append((command, environment))
        return 3

    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr(verb, "_run", run)
    return seen


@pytest.fixture
def running(state: StateFolder) -> StateFolder:
    state.make()
    state.write_supervisor({"endpoint": ENDPOINT})
    return state


def test_the_running_cluster_is_loaded_with_a_key_that_ends_with_the_run(
    sprat: Sprat, running: StateFolder, started: Started
) -> None:
    done = sprat("loadtest", "--workload", "azure-code", "--rate", "0.5x", "--json")

    [(command, environment)] = started
    assert done.code == 3
    assert command[1:] == [
        *("-m", "loadtest", "run", "--workload", "azure-code", "--rate", "0.5x", "--json"),
        *("--endpoint", ENDPOINT),
    ]
    assert environment[KEY_VARIABLE] not in command
    with opened_store(running) as store:
        [record] = store.keys.list_keys()
    assert record.tenant == "loadtest"
    assert record.revoked_at_ms is not None


@pytest.mark.parametrize("arguments", [["--api-key", "mine"], ["--api-key=mine"], ["--mix", "mix.yaml"]])
@pytest.mark.usefixtures("running")
def test_the_callers_own_keys_are_used(sprat: Sprat, started: Started, arguments: list[str]) -> None:
    sprat("loadtest", "--workload", "poisson:1", *arguments)

    [(command, environment)] = started
    assert command[4:] == ["--workload", "poisson:1", *arguments, "--endpoint", ENDPOINT]
    assert KEY_VARIABLE not in environment


def test_another_server_can_be_named_without_a_cluster(sprat: Sprat, started: Started) -> None:
    done = sprat("loadtest", "--endpoint", "http://elsewhere:1/v1", "--workload", "closed:2")

    assert done.code == 3
    assert started[0][0][-2:] == ["--endpoint", "http://elsewhere:1/v1"]


def test_without_a_cluster_it_says_how_to_start_one(sprat: Sprat, started: Started) -> None:
    done = sprat("loadtest", "--workload", "poisson:1")

    assert done.code == 1
    assert "sprat up" in done.sentence
    assert started == []
