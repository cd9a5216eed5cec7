"""The router's policies on logged calls: the same choices as live, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.router.evaluation.logged_policy import LoggedPolicy
from cluster.router.router import Router
from cluster.router.view import FleetView
from cluster.types import RequestFeatures
from tests.configs import config_of, simulated
from tests.decisions import logged

LEARNED = {
    "kind": "learned",
    "model": "unread.npz",
    "targets": {"a": "small", "b": "large"},
    "tolerance": 0.1,
}


def policy(name: str, **policies: dict[str, Any]) -> LoggedPolicy:
    config = config_of(simulated(router__policies=policies))
    return LoggedPolicy(name, config.router, FleetView.of(config))


def estimated(small: float, large: float) -> list[dict[str, Any]]:
    return [
        {"target": "small", "probability": 1, "p_success": small},
        {"target": "large", "probability": 0, "p_success": large},
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("always_small", {"small": 1}),
        ("always_large", {"large": 1}),
        ("random", {"small": 0.5, "large": 0.5}),
        ("intent", {"intent": 1}),
    ],
)
def test_built_in_policies_and_targets(name: str, expected: dict[str, float]) -> None:
    assert policy(name).probabilities(logged()) == expected


@pytest.mark.parametrize(
    ("small", "large", "expected"), [(0.85, 0.9, "small"), (0.7, 0.9, "large"), (0.9, 0.85, "small")]
)
def test_learned_goes_by_the_logged_estimates(small: float, large: float, expected: str) -> None:
    call = logged(considered=estimated(small, large))

    assert policy("mine", mine=LEARNED).probabilities(call) == {expected: 1}


def test_learned_cannot_say_without_estimates() -> None:
    assert policy("mine", mine=LEARNED).probabilities(logged(considered=[])) == {}


def test_exploration_is_part_of_the_policy() -> None:
    explored = {"kind": "explore", "policy": "mine", "rate": 0.2}

    found = policy("wide", mine=LEARNED, wide=explored).probabilities(logged(considered=estimated(0.5, 0.9)))

    assert found == pytest.approx({"small": 0.1, "large": 0.9})


def test_a_cascade_is_another_action_than_its_draft() -> None:
    cascade = {"kind": "cascade", "policy": "always_small", "to": "large", "verify": [{"kind": "refusal"}]}

    assert policy("safe", safe=cascade).probabilities(logged()) == {"small>large": 1}


@pytest.mark.parametrize("tokens", [10, 256, 257, 5000])
def test_lengths_decide_as_they_did(tokens: int) -> None:
    features = RequestFeatures("auto", prompt_tokens_estimate=tokens)
    live = Router.of(config_of(simulated(router__policy="prompt_length"))).route(features)

    found = policy("prompt_length").probabilities(logged(features={"prompt_tokens": tokens}))

    assert found == {live.action: 1}


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"task": "classify"}, "small"), ({"task": "classify", "has_tools": True}, "small")],
)
def test_rules_decide_by_what_is_logged(features: dict[str, Any], expected: str) -> None:
    assert policy("rules").probabilities(logged(features=features)) == {expected: 1}


def test_what_reads_text_cannot_be_replayed() -> None:
    with pytest.raises(ConfigError, match="rules goes by the text of calls, which the decision log does not"):
        policy("rules").probabilities(logged(features={"task": "other"}))
