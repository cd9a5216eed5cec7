"""Cross-checks of `router.policies`: what they name is there, and none asks itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from cluster.config.policies import (
    BUILT_IN,
    CascadeConfig,
    EmbeddingConfig,
    ExploreConfig,
    LabelledConfig,
    PolicyConfig,
    PromptLengthConfig,
    RandomConfig,
    RulesConfig,
)
from cluster.config.problems import Problem, unknown
from cluster.config.schema import RouterConfig


def check_policies(
    router: RouterConfig, served: Collection[str], tiers: Collection[str]
) -> Iterator[Problem]:
    """`served`: targets that a pool serves."""
    policies = [*BUILT_IN, *router.policies]
    if router.policy not in policies:
        yield unknown("router.policy", router.policy, policies)
    for name, policy in router.policies.items():
        path = f"router.policies.{name}"
        if name in BUILT_IN or name in served:
            what = "a policy that every cluster has" if name in BUILT_IN else "a target"
            yield Problem(path, f"{name!r} is also {what}", "rename it")
        for field, target in _targets(policy):
            if target not in served:
                yield unknown(f"{path}.{field}", target, [*served])
        for field, other in _others(policy):
            if other not in served and other not in policies:
                yield unknown(f"{path}.{field}", other, [*served, *policies])
        if isinstance(policy, PromptLengthConfig) and len(policy.over_tokens) >= len(tiers):
            yield Problem(
                f"{path}.over_tokens",
                f"{len(policy.over_tokens)} steps for {len(tiers)} tiers",
                f"give at most {len(tiers) - 1}",
            )
        if isinstance(policy, LabelledConfig) and len(set(policy.targets.values())) < len(policy.targets):
            yield Problem(f"{path}.targets", "names a target twice", "give each label column its own target")
    yield from _circles(router)


def _targets(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    """Field and target, of fields that take no policy."""
    match policy:
        case RandomConfig() | ExploreConfig():
            yield from (("targets", target) for target in policy.targets)
        case LabelledConfig() | EmbeddingConfig():
            yield from ((f"targets.{key}", target) for key, target in policy.targets.items())
        case CascadeConfig():
            yield "to", policy.to
        case _:
            pass


def _others(policy: PolicyConfig) -> Iterator[tuple[str, str]]:
    """Field and name, of fields that take a policy or a target."""
    match policy:
        case RulesConfig() | EmbeddingConfig():
            yield "otherwise", policy.otherwise
        case CascadeConfig() | ExploreConfig():
            yield "policy", policy.policy
        case _:
            pass


def _asked(policy: PolicyConfig) -> Iterator[str]:
    if isinstance(policy, RulesConfig):
        yield from (rule.to for rule in policy.rules)
    yield from (other for _, other in _others(policy))


def _circles(router: RouterConfig) -> Iterator[Problem]:
    asks: Mapping[str, list[str]] = {
        "rules": [rule.to for rule in router.rules],
        **{name: [*_asked(policy)] for name, policy in router.policies.items()},
    }
    for name in asks:
        seen, left = set[str](), [*asks[name]]
        while left:
            other = left.pop()
            if other == name:
                path = "router.rules" if name == "rules" else f"router.policies.{name}"
                yield Problem(path, "asks itself", "name another policy or a target")
                break
            if other not in seen:
                seen.add(other)
                left += asks.get(other, [])
