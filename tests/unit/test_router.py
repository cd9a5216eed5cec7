"""Where calls go, and why."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import ContextLengthExceeded, InvalidRequest, UnknownModel
from cluster.router.features import (
    chat_features,
    completion_features,
    count_features,
    embedding_features,
    tokenize_features,
)
from cluster.router.router import Router, escalation
from cluster.types import Decision
from tests.configs import config_of, simulated


def route(body: dict[str, Any], *, header_tier: str | None = None, **changes: Any) -> Decision:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": "Tell me all about the sea, please."}],
    } | body
    return Router.of(config_of(simulated(**changes))).route(chat_features(body, header_tier))


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
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 256 tokens"):
        route(long | {"model": "small"})


def test_where_the_estimate_may_be_wrong_the_engine_decides() -> None:
    """380 estimated tokens may be 190 real ones; only what is too long even then is refused here."""
    decision = route({"model": "small", "messages": [{"role": "user", "content": "word " * 300}]})

    assert decision.first.pool == "specialist"


def test_several_prompts_and_answers_are_one_call_with_all_its_tokens() -> None:
    features = completion_features({"model": "small", "prompt": ["x" * 400, "y" * 800], "n": 3})

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
    decision = Router.of(config_of(raw)).route(completion_features({"model": "small", "prompt": "hi"}))
    assert [each.pool for each in decision.candidates] == ["roomy", "specialist"]
    tight = next(each for each in decision.candidates if each.pool == "specialist")

    left = escalation(decision, tight)

    assert left is not None
    assert [each.pool for each in left.candidates] == ["roomy"]


EMBEDDING: dict[str, Any] = {
    "tier": "small",
    "task": "embed",
    "base_model": "minilm",
    "node_class": "cheap",
    "engine": "simulated",
    "simulated": {},
    "context_tokens": 64,
    "throughput": {"prompt_tokens_per_s": 500, "output_tokens_per_s": 500},
}


def with_embeddings() -> Router:
    raw = simulated()
    raw["base_models"] |= {
        name: {"source": "folder:/nowhere", "parameters": 1000} for name in ("minilm", "other")
    }
    raw["pools"] |= {
        "vectors": EMBEDDING,
        "more": EMBEDDING | {"context_tokens": 512},
        "unlike": EMBEDDING | {"base_model": "other", "tier": "large"},
    }
    return Router.of(config_of(raw))


def embed(model: str, text: str = "hi", header_tier: str | None = None) -> Decision:
    return with_embeddings().route(embedding_features({"model": model, "input": text}, header_tier))


@pytest.mark.parametrize(
    ("model", "tier", "served"),
    [
        ("auto", None, "minilm"),
        ("minilm", None, "minilm"),
        ("other", None, "other"),
        ("small", None, "minilm"),
        ("auto", "large", "other"),
    ],
)
def test_embeddings_come_from_one_embedding_model_and_save_nothing(
    model: str, tier: str | None, served: str
) -> None:
    decision = embed(model, header_tier=tier)

    assert {each.model for each in decision.candidates} == {served}
    assert {each.max_tokens for each in decision.candidates} == {0}
    first = decision.first
    assert decision.large_price == first.price
    assert first.worst_case_micro_usd == first.price.cost_micro_usd(
        4 * 1 + 256 if first.pool == "more" else 64, 0
    )


def test_a_long_text_goes_to_the_embedding_pool_that_holds_it() -> None:
    assert [each.pool for each in embed("auto", "x" * 1000).candidates] == ["more"]
    with pytest.raises(ContextLengthExceeded):
        embed("auto", "x" * 10_000)


def test_models_do_what_they_are_for() -> None:
    with pytest.raises(
        InvalidRequest, match=r"makes no embeddings. Models for this route: minilm, other"
    ) as no:
        embed("huge")
    assert no.value.code == "wrong_model_kind"
    with pytest.raises(InvalidRequest, match=r"makes embeddings only. Models for this route: tiny, huge"):
        with_embeddings().route(
            chat_features({"model": "minilm", "messages": [{"role": "user", "content": "a"}]})
        )
    with pytest.raises(UnknownModel):
        embed("nobody")
    with pytest.raises(InvalidRequest, match="none in this cluster"):
        Router.of(config_of(simulated())).route(embedding_features({"model": "auto", "input": "a"}))


def test_generation_never_lands_on_an_embedding_pool() -> None:
    router = with_embeddings()
    for model in ("auto", "small", "large"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        decision = router.route(chat_features(body))
        assert {each.pool for each in decision.candidates} <= {"specialist", "reserve"}


def test_counting_is_free_and_fits_every_context() -> None:
    router = with_embeddings()
    for features_of, body in (
        (tokenize_features, {"prompt": "word " * 10_000}),
        (count_features, {"messages": [{"role": "user", "content": "word " * 10_000}]}),
    ):
        for model, served in (("small", "tiny"), ("auto", "huge"), ("intent", "intent@2")):
            decision = router.route(features_of({"model": model} | body))
            assert decision.first.model == served
            assert decision.hold_micro_usd == 0
            assert decision.large_price.cost_micro_usd(1000, 1000) == 0


def test_an_embedding_model_tokenizes_and_has_no_conversations_to_count() -> None:
    router = with_embeddings()

    assert router.route(tokenize_features({"model": "minilm", "prompt": "a"})).first.model == "minilm"
    with pytest.raises(InvalidRequest, match="makes embeddings only"):
        router.route(count_features({"model": "minilm", "messages": [{"role": "user", "content": "a"}]}))
