"""`sprat explain` and `sprat replay` on a store with decisions, no cluster running."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.clock import DAY_MS, SystemClock
from cluster.decision_log import Outcome, OutcomeSource
from cluster.ledger import Ledger
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from deployments.state_folder import StateFolder
from tests.builders import ledger_entry
from tests.configs import simulated
from tests.decisions import decision_row
from tests.unit.conftest import Finished, Sprat

NOW_MS = SystemClock().now_ms()


class Store:
    def __init__(self, state: StateFolder) -> None:
        state.make()
        self.engine = open_store(sqlite_url(state.store_file))
        self.decisions = DecisionLog(self.engine)
        self.ledger = Ledger(self.engine)

    def log(self, request_id: str, score: float | None = None, **changes: Any) -> None:
        self.decisions.append([decision_row(request_id, **({"at_ms": NOW_MS} | changes))])
        if score is not None:
            self.decisions.put_outcomes([Outcome(request_id, OutcomeSource.FEEDBACK, score, None, NOW_MS)])


@pytest.fixture
def store(state: StateFolder) -> Iterator[Store]:
    made = Store(state)
    yield made
    made.engine.dispose()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(simulated(), sort_keys=False))
    return path


def as_json(finished: Finished) -> dict[str, Any]:
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def test_explain_tells_the_whole_decision(sprat: Sprat, store: Store) -> None:
    steps = [
        {"tier": "small", "model": "tiny", "verdict": "refused", "why": "empty", "cost_micro_usd": 5},
        {"tier": "large", "model": "huge", "replica": "b", "cost_micro_usd": 40},
    ]
    store.log("req-1", score=0.5, steps=steps)
    store.ledger.append([ledger_entry("req-1", cost_micro_usd=44)])

    found = as_json(sprat("explain", "req-1", "--json"))

    assert {name: found[name] for name in ("request_id", "tenant", "policy", "reason", "target")} == {
        "request_id": "req-1",
        "tenant": "acme",
        "policy": "learned",
        "reason": "learned:small",
        "target": "small",
    }
    assert (found["cost_micro_usd"], found["large_micro_usd"], found["saved_micro_usd"]) == (44, 70, 26)
    assert found["considered"][0] == {
        "target": "small",
        "probability": 0.9,
        "p_success": 0.8,
        "cost_micro_usd": 7,
        "cost_usd": 7e-6,
        "expected_micro_usd": 9,
        "expected_usd": 9e-6,
    }
    assert found["considered"][1]["p_success"] is found["considered"][1]["cost_usd"] is None
    assert [(step["verdict"], step["why"], step["cost_usd"]) for step in found["steps"]] == [
        ("refused", "empty", 5e-6),
        (None, None, 4e-5),
    ]
    assert [(each["source"], each["score"]) for each in found["outcomes"]] == [("feedback", 0.5)]
    assert found["prompt_tokens"] == 10


def test_explain_before_the_money_is_booked(sprat: Sprat, store: Store) -> None:
    store.log("req-1", considered=[], large_micro_usd=None)

    found = as_json(sprat("explain", "req-1", "--json"))

    assert (found["cost_micro_usd"], found["saved_usd"], found["prompt_tokens"]) == (5, None, None)


def test_explain_for_people(sprat: Sprat, store: Store) -> None:
    store.log("req-1", score=1.0)

    finished = sprat("explain", "req-1")

    assert finished.code == 0
    for words in ("small, because learned:small", "0.800", "0.000005 USD", "0.000070 USD", "feedback: 1"):
        assert words in finished.out


def test_explain_of_an_unknown_call(sprat: Sprat, store: Store) -> None:
    finished = sprat("explain", "req-2")

    assert finished.code == 2
    assert "No decision is kept for 'req-2'" in finished.sentence
    assert "30 days" in finished.sentence


def test_replay_of_an_explored_log(sprat: Sprat, store: Store, config: Path) -> None:
    for number in range(200):
        target = "small" if number % 4 else "large"
        chances = [{"target": "small", "probability": 0.75}, {"target": "large", "probability": 0.25}]
        probability = 0.25 if target == "large" else 0.75
        cost = [{"tier": target, "model": "m", "cost_micro_usd": 80 if target == "large" else 10}]
        store.log(
            f"req-{number}",
            1.0 if target == "large" else 0.5,
            target=target,
            probability=probability,
            considered=chances,
            steps=cost,
        )

    found = as_json(sprat("replay", "--policy", "always_large", "--config", config, "--json"))

    assert (found["value"], found["estimator"], found["n"], found["matched"]) == (1.0, "dr", 200, 50)
    assert found["effective_sample_size"] == pytest.approx(50)
    assert found["interval"] == pytest.approx([1, 1])
    assert found["logged"]["value"] == pytest.approx(0.625)
    assert found["cost_micro_usd"]["value"] == pytest.approx(80)
    shown = sprat("replay", "--policy", "always_large", "--config", config)
    assert "doubly robust" in shown.out
    assert "0.0000800" in shown.out


def test_replay_tells_what_it_cannot_know(sprat: Sprat, store: Store, config: Path) -> None:
    for number in range(10):
        store.log(f"req-{number}", 1.0, probability=1, considered=[])

    found = sprat("replay", "--policy", "always_large", "--config", config)

    assert found.code == 0
    assert "not identified" in found.out
    assert "the score is between 0.000 and 1.000" in found.out
    assert "left nothing to chance" in found.err


def test_replay_since_and_newest_bound_what_is_read(sprat: Sprat, store: Store, config: Path) -> None:
    for days in range(3):
        store.log(f"req-{days}", 1.0, at_ms=NOW_MS - days * DAY_MS - 1000)
    replay = ("replay", "--policy", "always_small", "--config", config, "--json")

    assert as_json(sprat(*replay))["n"] == 3
    assert as_json(sprat(*replay, "--since", "1.5"))["n"] == 2
    assert as_json(sprat(*replay, "--newest", "1"))["n"] == 1


def test_replay_prefers_gold_to_feedback(sprat: Sprat, store: Store, config: Path) -> None:
    store.log("req-1", 1.0, probability=1, considered=[])
    store.decisions.put_outcomes([Outcome("req-1", OutcomeSource.GOLD, 0.25, None, 0)])

    found = as_json(sprat("replay", "--policy", "always_small", "--config", config, "--json"))

    assert found["value"] == 0.25


def test_replay_of_an_empty_log(sprat: Sprat, store: Store, config: Path) -> None:
    found = as_json(sprat("replay", "--policy", "random", "--config", config, "--json"))

    assert (found["value"], found["interval"], found["estimator"], found["n"]) == (None, None, None, 0)
    assert "POST /v1/feedback" in found["warnings"][0]


def test_replay_of_an_unknown_policy(sprat: Sprat, config: Path) -> None:
    finished = sprat("replay", "--policy", "best", "--config", config)

    assert finished.code == 2
    assert "There is no policy 'best'. This cluster has rules, random, always_small" in finished.sentence


def test_replay_of_a_policy_that_reads_text(sprat: Sprat, store: Store, config: Path) -> None:
    store.log("req-1", 1.0)

    finished = sprat("replay", "--policy", "rules", "--config", config)

    assert finished.code == 2
    assert "goes by the text of calls" in finished.sentence
