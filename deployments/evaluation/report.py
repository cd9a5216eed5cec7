"""From kept answers to the report of `sprat eval agents --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.config import ClusterConfig
from cluster.config.policies import CascadeConfig
from cluster.config.verifiers import AgreementVerifierConfig, PythonVerifierConfig
from cluster.cost import prices
from cluster.errors import ConfigError
from cluster.router.features import chat_features
from cluster.router.verifiers.verification import Verification
from deployments.bench.machine_facts import machine_facts
from deployments.evaluation.answers import Answer
from deployments.evaluation.cases import Case, Suite
from deployments.evaluation.outcomes import draft_of, expected_of, outcome_of
from deployments.evaluation.policies import Asked, score
from deployments.evaluation.routed import KeptPairs, Routed, differences

PRICES = "declared: the YAML's price of a node per hour, over its declared tokens per second"
LATENCIES = "of calls beside each other on this machine, as many of each model as it has slots: read ratios"


def tiers_compared(config: ClusterConfig) -> tuple[str, str]:
    """Small and large. Raises ConfigError for another number of tiers."""
    if len(config.tiers) != 2:
        raise ConfigError(
            f"this evaluation compares two tiers; the YAML has {len(config.tiers)} "
            f"({', '.join(config.tiers)})."
        )
    small, large = config.tiers
    return small, large


def pool_of(config: ClusterConfig, tier: str) -> str:
    """The pool whose model stands for the tier here: its first one."""
    return config.pools_of_tier(tier)[0]


def report_on(
    cases: Sequence[Case], answers: Mapping[tuple[str, str], Answer], config: ClusterConfig, *, seed: int
) -> dict[str, Any]:
    """Of the cases that both models have answered; `answers` is by case and tier. Raises ConfigError."""
    tiers = tiers_compared(config)
    answered = [case for case in cases if all((case.id, tier) in answers for tier in tiers)]
    if not answered:
        raise ConfigError("no case has been answered by both models yet.")
    pools = [pool_of(config, tier) for tier in tiers]
    price_of = prices(config)
    small, large = (
        tuple(outcome_of(case, answers[case.id, tier], price_of[pool]) for case in answered)
        for tier, pool in zip(tiers, pools, strict=True)
    )
    pairs = KeptPairs(small, large)
    features = tuple(chat_features({**case.body, "model": "auto"}) for case in answered)
    drafts = [answers[case.id, tiers[0]] for case in answered]
    accepted = _accepted(config, answered, drafts)
    scored = score(Asked(features, pairs, accepted), config, seed=seed)
    facts = machine_facts()
    return {
        "n": len(answered),
        "cases_frozen": len(cases),
        "seed": seed,
        "date": facts["date"],
        "machine": {"cpu": facts["cpu"], "cores": facts["cores"]},
        "models": {
            size: {"model": config.pools[pool].base_model, **asdict(price_of[pool])}
            for size, pool in zip(("small", "large"), pools, strict=True)
        },
        "prices": PRICES,
        "latencies": LATENCIES,
        "suites": {suite.value: _of_suite(suite, pairs) for suite in Suite},
        "policies": {
            name: {
                **routed.summary(),
                "against_always_large": differences(routed, scored.policies["always_large"], seed=seed),
                "against_always_small": differences(routed, scored.policies["always_small"], seed=seed),
            }
            for name, routed in scored.policies.items()
        },
        "curves": {name: _curve(points) for name, points in scored.curves.items()},
        "cases": [asdict(outcome) for pair in zip(small, large, strict=True) for outcome in pair],
    }


def _accepted(
    config: ClusterConfig, cases: Sequence[Case], drafts: Sequence[Answer]
) -> dict[str, NDArray[np.bool_]]:
    """By cascade of the YAML. Raises ConfigError for verifiers that look at more than a kept answer."""
    accepted = {}
    for name, policy in config.router.policies.items():
        if not isinstance(policy, CascadeConfig):
            continue
        for each in policy.verify:
            if isinstance(each, AgreementVerifierConfig | PythonVerifierConfig):
                raise ConfigError(
                    f"router.policies.{name}: a verifier of kind {each.kind} cannot judge kept answers; "
                    "name a YAML without it with --config."
                )
        verification = Verification.of(policy.verify)
        accepted[name] = np.array(
            [
                verification.judge(draft_of(draft), expected_of(case)).accepted
                for case, draft in zip(cases, drafts, strict=True)
            ]
        )
    return accepted


def _of_suite(suite: Suite, pairs: KeptPairs) -> dict[str, Any]:
    inside = np.array([each.suite is suite for each in pairs.small])
    small, large = pairs.right[inside].T
    return {
        "n": int(inside.sum()),
        "small_right": int(small.sum()),
        "large_right": int(large.sum()),
        "both_right": int((small & large).sum()),
        "neither_right": int((~small & ~large).sum()),
        "small_forms": dict(Counter(each.form for each in pairs.small if each.suite is suite)),
        "large_forms": dict(Counter(each.form for each in pairs.large if each.suite is suite)),
    }


def _curve(points: Sequence[Routed]) -> list[tuple[float, float]]:
    """Cost and quality of each working point, from the cheapest to the dearest."""
    summaries = [point.summary() for point in points]
    return sorted({(each["per_1000_usd"], each["quality"]) for each in summaries})
