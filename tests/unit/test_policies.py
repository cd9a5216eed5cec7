"""What each policy chooses, why, and with which probability."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cluster.config import ClusterConfig, ConfigProblems, load_config
from cluster.errors import ConfigError
from cluster.router.correctness import CorrectnessModel
from cluster.router.features import chat_features
from cluster.router.policies.budget import price_of_cost_for_quality, price_of_cost_for_spend
from cluster.router.policies.estimates import KnownEstimates
from cluster.router.policies.registry import Policies
from cluster.router.router import Router
from cluster.router.view import FleetView
from cluster.types import Decision, RequestFeatures
from tests.configs import config_of, simulated

EASY, HARD = "what is the weather in paris today", "prove the theorem of fermat in detail"


def with_policy(policy: str, /, **policies: dict[str, Any]) -> ClusterConfig:
    return config_of(simulated(router__policy=policy, router__policies=policies))


def asked(text: str, **more: Any) -> RequestFeatures:
    return chat_features({"model": "auto", "messages": [{"role": "user", "content": text}]} | more)


def decided(config: ClusterConfig, features: RequestFeatures | str, draw: float = 0.0) -> Decision:
    features = asked(features) if isinstance(features, str) else features
    return Router.of(config).route(features, draw)


@pytest.fixture(scope="module")
def learned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small model that is right where the prompt is about the weather, and a large one that is
    always."""
    generator = np.random.default_rng(0)
    words = ["today", "tomorrow", "in paris", "in rome", "now", "please", "in detail", "again"]
    prompts = [
        f"{kind} {' '.join(generator.choice(words, 3))}"
        for kind in ("what is the weather", "prove the theorem of fermat")
        for _ in range(150)
    ]
    right = np.array([[prompt.startswith("what"), True] for prompt in prompts])
    file = tmp_path_factory.mktemp("learned") / "router.npz"
    CorrectnessModel.fit(("cheap", "dear"), prompts, right, seed=0).save(file)
    return file


def learned(file: Path, kind: str = "learned", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "model": str(file), "targets": {"cheap": "small", "dear": "large"}} | more


@pytest.mark.parametrize(
    ("policy", "tier"), [("always_small", "small"), ("always_large", "large"), ("rules", "large")]
)
def test_the_built_in_ones_need_no_section(policy: str, tier: str) -> None:
    decision = decided(with_policy(policy), EASY)

    assert (decision.first.tier, decision.policy, decision.probability) == (tier, policy, 1.0)


def test_random_takes_each_tier_equally_often_and_tells_the_probability() -> None:
    config = with_policy("random")
    router = Router.of(config)
    decisions = [router.route(asked(EASY), draw) for draw in np.linspace(0, 0.999, 100)]

    assert Counter(each.first.tier for each in decisions) == {"small": 50, "large": 50}
    assert {each.probability for each in decisions} == {0.5}
    assert router.route(asked(EASY), 0.3) == router.route(asked(EASY), 0.3)


def test_prompt_length_climbs_at_its_steps() -> None:
    config = with_policy("steps", steps={"kind": "prompt_length", "over_tokens": [20]})

    assert decided(config, "short").first.tier == "small"
    assert decided(config, "long " * 40).first.tier == "large"


def test_learned_takes_the_small_one_where_it_is_right_and_says_how_sure_it_is(learned_file: Path) -> None:
    config = with_policy("mine", mine=learned(learned_file))

    easy, hard = decided(config, EASY), decided(config, HARD)

    assert (easy.first.tier, easy.reason) == ("small", "mine:small")
    assert (hard.first.tier, hard.reason) == ("large", "mine:large")
    assert [each.action for each in easy.considered] == ["small", "large"]
    assert easy.first.p_success == easy.considered[0].p_success > 0.9
    assert hard.considered[0].p_success < 0.1


def test_the_expected_cost_holds_what_a_failure_brings(learned_file: Path) -> None:
    """Cost + (1 - P) x (the likeliest one's cost + what a wrong answer costs)."""
    config = with_policy("mine", mine=learned(learned_file, wrong_answer_usd=0.001))

    small, large = decided(config, HARD).considered

    assert small.expected_micro_usd == small.cost_micro_usd + round(
        (1 - small.p_success) * (large.cost_micro_usd + 1000)
    )


def test_a_tolerance_of_everything_leaves_the_cost_to_decide(learned_file: Path) -> None:
    """The scheduler gets all that are acceptable, with the same prices."""
    config = with_policy("mine", mine=learned(learned_file, tolerance=1.0))

    decision = decided(config, EASY)

    assert [each.tier for each in decision.candidates] == ["small", "large"]
    costs = [each.price_of_success_micro_usd for each in decision.candidates]
    assert costs == [each.expected_micro_usd for each in decision.considered] == sorted(costs)


def test_later_turns_do_not_move_a_conversation(learned_file: Path) -> None:
    router = Router.of(with_policy("mine", mine=learned(learned_file)))
    messages = [{"role": "user", "content": EASY}]
    first = router.route(chat_features({"model": "auto", "messages": messages}))
    messages += [{"role": "assistant", "content": "Sun."}, {"role": "user", "content": HARD}]

    later = router.route(chat_features({"model": "auto", "messages": messages}))

    assert (later.first.tier, later.reason) == (first.first.tier, first.reason)


def test_rules_give_what_they_do_not_know_to_another_policy(learned_file: Path) -> None:
    config = with_policy(
        "both",
        both={
            "kind": "rules",
            "rules": [
                {"name": "narrow", "when": {"task": ["classify"]}, "to": "small"},
                {"name": "long", "when": {"prompt_tokens_over": 100}, "to": "always_large"},
            ],
            "otherwise": "mine",
        },
        mine=learned(learned_file),
    )

    assert decided(config, asked(HARD, metadata={"task": "classify"})).reason == "rule:narrow"
    assert decided(config, "word " * 200).reason == "rule:long;always_large"
    assert decided(config, EASY).reason == "default:mine;mine:small"


def test_a_cascade_drafts_on_the_small_one_and_holds_both() -> None:
    config = with_policy(
        "careful", careful={"kind": "cascade", "to": "large", "verify": [{"kind": "refusal"}]}
    )

    decision = decided(config, EASY)

    assert (decision.first.tier, decision.reason) == ("small", "careful:always_small")
    cascade = decision.cascade
    assert cascade is not None
    assert ([each.tier for each in cascade.then.candidates], cascade.policy) == (["large"], "careful")
    assert (
        decision.hold_micro_usd
        == max(each.worst_case_micro_usd for each in decision.candidates) + cascade.then.hold_micro_usd
    )
    assert decision.action == "small>large"


def test_a_cascade_over_a_policy_verifies_only_what_is_not_large_anyway(learned_file: Path) -> None:
    config = with_policy(
        "careful",
        careful={"kind": "cascade", "policy": "mine", "to": "large", "verify": [{"kind": "refusal"}]},
        mine=learned(learned_file),
    )

    assert decided(config, EASY).cascade is not None
    assert decided(config, HARD).cascade is None
    assert decided(config, HARD).reason == "mine:large"


def test_a_draft_that_does_not_fit_its_context_is_no_draft() -> None:
    config = with_policy(
        "careful", careful={"kind": "cascade", "to": "large", "verify": [{"kind": "refusal"}]}
    )

    decision = decided(config, "word " * 500)

    assert (decision.first.tier, decision.cascade) == ("large", None)


def test_exploring_tells_the_probability_of_what_it_did() -> None:
    config = with_policy("try", **{"try": {"kind": "explore", "policy": "always_small", "rate": 0.1}})
    router = Router.of(config)

    decisions = [router.route(asked(EASY), draw) for draw in (np.arange(1000) + 0.5) / 1000]

    found = Counter((each.first.tier, round(each.probability, 6)) for each in decisions)
    assert found == {("small", 0.95): 950, ("large", 0.05): 50}
    for each in decisions:
        assert sum(one.probability for one in each.considered) == pytest.approx(1)
    assert decisions[75].reason == "explore:large"


def test_exploring_over_chance_stays_a_distribution() -> None:
    config = with_policy("try", **{"try": {"kind": "explore", "policy": "random", "rate": 0.2}})

    decision = decided(config, EASY, 0.9)

    assert [each.probability for each in decision.considered] == pytest.approx([0.5, 0.5])


def test_the_price_of_cost_keeps_a_spend_and_a_quality() -> None:
    generator = np.random.default_rng(0)
    p_success = generator.random((4000, 3)) * [1.0, 0.5, 0.3] + [0.0, 0.4, 0.65]
    costs = np.array([1.0, 5.0, 20.0])

    for spend in (0.06, 0.1, 0.3, 1.0):
        price = price_of_cost_for_spend(p_success, costs, spend)
        picks = np.argmax(p_success - price * costs / 20, axis=1)
        assert costs[picks].mean() / 20 <= spend
        if spend < 1:
            assert costs[picks].mean() / 20 >= 0.9 * spend  # and uses it
    best = p_success.max(axis=1).mean()
    for quality in (0.6, 0.9, 0.99, 1.0):
        price = price_of_cost_for_quality(p_success, costs, quality)
        picks = np.argmax(p_success - price * costs / 20, axis=1)
        assert p_success[np.arange(4000), picks].mean() >= quality * best - 1e-9
    with pytest.raises(ConfigError, match=r"cheapest target costs 0\.05"):
        price_of_cost_for_spend(p_success, costs, 0.01)


def test_a_budget_spends_less_where_less_is_given(learned_file: Path) -> None:
    """Half of the labels need the large one: with half of its cost that can be kept, with a quarter not."""
    texts = [EASY] * 20 + [HARD] * 20

    def share_on_large(**aim: float) -> float:
        router = Router.of(with_policy("lean", lean=learned(learned_file, "budget", **aim)))
        return sum(router.route(asked(text)).first.tier == "large" for text in texts) / len(texts)

    assert share_on_large(spend=1.0) == 0.5
    assert share_on_large(spend=0.02) == 0
    assert share_on_large(quality=0.98) == 0.5


def test_known_estimates_stand_in_for_the_model(learned_file: Path) -> None:
    config = with_policy("mine", mine=learned(learned_file))
    policies = Policies(
        config.router,
        FleetView.of(config),
        lambda _: KnownEstimates([0.2, 0.9]),
    )

    assert policies.named("mine").choose(asked(EASY), 0.0).target == "large"


def test_files_are_looked_for_beside_the_yaml(tmp_path: Path, learned_file: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "r.npz").write_bytes(learned_file.read_bytes())
    raw = simulated(router__policy="mine", router__policies={"mine": learned(Path("models/r.npz"))})
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(raw))

    assert decided(load_config(tmp_path / "cluster.yaml"), EASY).first.tier == "small"


def test_a_file_that_cannot_be_used_names_its_policy(tmp_path: Path, learned_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"router.policies.mine: .*nowhere.npz"):
        Router.of(with_policy("mine", mine=learned(tmp_path / "nowhere.npz")))
    strange = learned(learned_file, targets={"cheap": "small", "gpt": "large"})
    with pytest.raises(ConfigError, match=r"router.policies.mine: .*'gpt'; it knows cheap, dear"):
        Router.of(with_policy("mine", mine=strange))


@pytest.mark.parametrize(
    ("policies", "path", "words"),
    [
        ({"a": {"kind": "cascade", "to": "larg", "verify": [{"kind": "refusal"}]}}, "a.to", "'large'"),
        ({"a": {"kind": "cascade", "to": "large"}}, "a.verify", "is missing"),
        ({"a": {"kind": "cascade", "to": "large", "verify": []}}, "a.verify", "at least 1"),
        ({"a": {"kind": "cascade", "to": "large", "verify": [{"kind": "magic"}]}}, "a.verify.0", "magic"),
        ({"a": {"kind": "magic"}}, "a", "magic"),
        ({"a": {"kind": "random", "tragets": []}}, "a.tragets", "did you mean 'targets'"),
        ({"a": {"kind": "explore", "policy": "always_small", "rate": 0.5}}, "a.rate", "less than or equal"),
        ({"a": {"kind": "explore", "policy": "b", "rate": 0.1}}, "a.policy", "'b' is not defined"),
        ({"a": {"kind": "prompt_length", "over_tokens": [5, 9]}}, "a.over_tokens", "2 steps for 2 tiers"),
        ({"random": {"kind": "random"}}, "random", "every cluster has"),
        ({"small": {"kind": "random"}}, "small", "a target"),
        (
            {
                "a": {"kind": "rules", "rules": [], "otherwise": "b"},
                "b": {"kind": "explore", "policy": "a", "rate": 0.1},
            },
            "a",
            "asks itself",
        ),
        (
            {"a": {"kind": "budget", "model": "x", "targets": {"x": "small", "y": "large"}}},
            "a",
            "either spend or quality",
        ),
        (
            {"a": {"kind": "learned", "model": "x", "targets": {"x": "small", "y": "small"}}},
            "a.targets",
            "names a target twice",
        ),
    ],
)
def test_mistakes_are_named_with_their_path(policies: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ConfigProblems) as caught:
        with_policy("rules", **policies)

    found = {problem.path: str(problem) for problem in caught.value.problems}
    assert f"router.policies.{path}" in found, found
    assert words in found[f"router.policies.{path}"]
