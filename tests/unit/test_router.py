"""Where calls go, and why."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ContextLengthExceeded, InvalidRequest, UnknownModel
from cluster.router.features import features_of
from cluster.router.router import Router, escalation
from cluster.types import Decision
from tests.configs import config_of, simulated


def route(body: dict[str, Any], *, header_tier: str | None = None, **changes: Any) -> Decision:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Tell me all about the sea, please."}],
    } | body
    return Router.of(config_of(simulated(**changes))).route(features_of(body, header_tier=header_tier))


def system(text: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": text},
            {"role": "user", "content": "my card does not work"},
        ]
    }


@pytest.mark.parametrize(
    ("body", "tier", "model", "reason"),
    [
        ({}, "large", "huge", "default:large"),
        ({"metadata": {"task": "classify"}}, "small", "tiny", "rule:narrow"),
        ({"metadata": {"task": "write"}}, "large", "huge", "default:large"),
        (system("Name the INTENT of the message."), "small", "intent@2", "rule:intent"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "large", "huge", "rule:tools"),
        ({"messages": [{"role": "user", "content": ""}]}, "large", "huge", "default:large"),
        ({"model": "small"}, "small", "tiny", "model:small"),
        ({"model": "huge"}, "large", "huge", "model:huge"),
        ({"model": "intent"}, "small", "intent@2", "model:intent"),
        ({"model": "intent@1"}, "small", "intent@1", "model:intent@1"),
    ],
)
def test_first_match_wins_and_gives_the_reason(
    body: dict[str, Any], tier: str, model: str, reason: str
) -> None:
    decision = route(body)

    assert (decision.first.tier, decision.first.model, decision.reason) == (tier, model, reason)


def test_the_header_decides_for_auto() -> None:
    assert route({"metadata": {"task": "classify"}}, header_tier="large").reason == "header:large"
    with pytest.raises(InvalidRequest, match="small, large"):
        route({}, header_tier="medium")
    with pytest.raises(InvalidRequest, match="contradicts"):
        route({"model": "small"}, header_tier="large")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModel, match="smalll"):
        route({"model": "smalll"})


def test_a_narrow_call_may_fall_back_to_the_larger_tier() -> None:
    assert [each.tier for each in route({"metadata": {"task": "classify"}}).candidates] == ["small", "large"]
    alone = route({"metadata": {"task": "classify"}}, router__fall_back_up=False)
    assert [each.tier for each in alone.candidates] == ["small"]
    assert [each.tier for each in route({"model": "small"}).candidates] == ["small"]


def test_a_call_that_does_not_fit_goes_up_by_itself() -> None:
    long = {"metadata": {"task": "classify"}, "messages": [{"role": "user", "content": "word " * 500}]}

    decision = route(long)

    assert (decision.first.tier, decision.reason) == ("large", "rule:narrow;context>small")
    assert [each.tier for each in decision.candidates] == ["large"]
    with pytest.raises(ContextLengthExceeded, match="holds 256"):
        route(long | {"model": "small"})


def test_where_the_estimate_may_be_wrong_the_engine_decides() -> None:
    """380 estimated tokens may be 190 real ones; only what is too long even then is refused here."""
    decision = route({"model": "small", "messages": [{"role": "user", "content": "word " * 300}]})

    assert decision.first.pool == "specialist"


def test_several_prompts_and_answers_are_one_call_with_all_its_tokens() -> None:
    features = features_of({"model": "small", "prompt": ["x" * 400, "y" * 800], "n": 3})

    assert (features.prompt_tokens_estimate, features.longest_prompt_tokens, features.sequences) == (
        300,
        200,
        6,
    )
    assert features.tokens_at_most(50) == 600
    decision = Router.of(config_of(simulated())).route(features)
    assert decision.first.estimated_cost_micro_usd == decision.first.price.cost_micro_usd(300, 6 * 16)


def test_max_tokens_counts_towards_the_context() -> None:
    body = {"metadata": {"task": "classify"}, "max_tokens": 250}

    assert route(body).first.tier == "large"
    with pytest.raises(ContextLengthExceeded, match="lower max_tokens"):
        route(body | {"max_tokens": 5000})


def test_the_cost_is_the_worst_case_at_the_pools_price() -> None:
    decision = route({"metadata": {"task": "classify"}, "max_tokens": 10})
    first = decision.first

    # 0.36 USD/h = 100 micro-USD/s; ÷ 1,000 and ÷ 100 tokens/s = 0.1 and 1 micro-USD per token.
    assert (first.price.prompt_micro_usd_per_mtok, first.price.output_micro_usd_per_mtok) == (
        100_000,
        1_000_000,
    )
    assert first.estimated_cost_micro_usd == first.price.cost_micro_usd(15, 10) == 12
    assert decision.large_price.output_micro_usd_per_mtok == 100_000_000


def test_after_an_engine_found_the_prompt_too_long_the_larger_tier_is_left() -> None:
    decision = route({"metadata": {"task": "classify"}})

    left = escalation(decision, decision.first)

    assert left is not None
    assert [each.tier for each in left.candidates] == ["large"]
    assert left.reason == "rule:narrow;context>small"
    assert escalation(left, left.first) is None


def test_a_larger_context_of_the_same_tier_is_left_too() -> None:
    raw = simulated()
    raw["pools"]["roomy"] = raw["pools"]["specialist"] | {"context_tokens": 1024}
    decision = Router.of(config_of(raw)).route(features_of({"model": "small", "prompt": "hi"}))
    assert [each.pool for each in decision.candidates] == ["roomy", "specialist"]
    tight = next(each for each in decision.candidates if each.pool == "specialist")

    left = escalation(decision, tight)

    assert left is not None
    assert [each.pool for each in left.candidates] == ["roomy"]


def test_features_see_parts_tools_and_turns() -> None:
    features = features_of(
        {
            "model": "auto",
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "user", "content": "ü" * 40},
            ],
            "response_format": {"type": "json_object"},
            "max_completion_tokens": 7,
            "stream": True,
        }
    )

    assert features.system_prompt == "Be brief."
    assert features.turns == 2
    assert features.has_schema
    assert features.stream
    assert features.max_tokens == 7
    assert features.prompt_tokens_estimate > 4 * 6 + 80 // 4
