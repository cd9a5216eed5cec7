"""Cross-checks: references, clashes of names, arithmetic between fields."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from cluster.config.base import AUTO
from cluster.config.memory import class_problem, kv_cache_problem
from cluster.config.policies import BUILT_IN, Rule, RulesConfig
from cluster.config.policy_checks import check_policies
from cluster.config.problems import Problem, unknown
from cluster.config.schema import UPSTREAM, ClusterConfig, PoolConfig, adapter_name
from cluster.config.upstream import upstream_problems
from cluster.sources import PackageSource, parse_source

STORE_URL = re.compile(r"postgres(ql)?(\+psycopg)?://|sqlite:////")


def cross_check(config: ClusterConfig) -> Iterator[Problem]:
    """What single fields cannot know: references, clashes of names, arithmetic between fields."""
    yield from _name_clashes(config)
    for name, model in config.base_models.items():
        if model.source == UPSTREAM:
            continue
        if not model.parameters:
            yield Problem(
                f"base_models.{name}.parameters",
                "is missing",
                "add parameters (number of weights, for the memory estimate)",
            )
        try:
            source = parse_source(model.source)
        except ValueError as error:
            yield Problem(f"base_models.{name}.source", str(error), "use one of the forms named here")
            continue
        if isinstance(source, PackageSource) and model.sha256 is None:
            yield Problem(
                f"base_models.{name}",
                "a pypi source needs sha256",
                "add the SHA-256 of its GGUF or model.safetensors",
            )
        elif not isinstance(source, PackageSource) and model.sha256 is not None:
            yield Problem(f"base_models.{name}.sha256", "is checked for pypi sources only", "remove it")
    for name, adapter in config.adapters.items():
        if adapter.base_model not in config.base_models:
            yield unknown(f"adapters.{name}.base_model", adapter.base_model, config.base_models)
        if not adapter.source.startswith("folder:"):
            yield Problem(f"adapters.{name}.source", f"{adapter.source!r} is not a folder", "use folder:PATH")
    for name, node in config.node_classes.items():
        if node.market == "spot" and node.spot_usd_per_hour is None:
            yield Problem(
                f"node_classes.{name}.market",
                "is spot, and there is no spot_usd_per_hour",
                "add spot_usd_per_hour, or use market: on-demand",
            )
    if config.gateway.node_class is not None and config.gateway.node_class not in config.node_classes:
        yield unknown("gateway.node_class", config.gateway.node_class, config.node_classes)
    for name, pool in config.pools.items():
        yield from _check_pool(config, f"pools.{name}", pool)
        yield from _check_memory(config, name, pool)
    for tier in config.tiers:
        if not config.pools_of_tier(tier):
            yield Problem(
                "tiers",
                f"tier {tier!r} has no pool that generates",
                "give such a pool this tier or remove it",
            )
    yield from _check_tasks(config)
    yield from _check_router(config)
    if config.store.url and not STORE_URL.match(config.store.url):
        yield Problem(
            "store.url",
            "is neither a PostgreSQL nor a SQLite file with an absolute path",
            "use postgresql://USER:PASSWORD@HOST/DATABASE, sqlite:////ABSOLUTE/PATH or nothing",
        )


def _name_clashes(config: ClusterConfig) -> Iterator[Problem]:
    """`model` is looked up as: auto, tier, adapter, base model. One name, one meaning."""
    kinds: dict[str, list[str]] = {AUTO: ["the word auto"]}
    for tier in config.tiers:
        kinds.setdefault(tier, []).append("a tier")
    for adapter in {adapter_name(adapter_id) for adapter_id in config.adapters}:
        kinds.setdefault(adapter, []).append("an adapter")
    for model in config.base_models:
        kinds.setdefault(model, []).append("a base model")
    for name, uses in kinds.items():
        if len(uses) > 1:
            yield Problem(
                "names",
                f"{name!r} is {' and '.join(uses)}",
                "rename all but one: the request field `model` could mean each of them",
            )


def _check_pool(config: ClusterConfig, path: str, pool: PoolConfig) -> Iterator[Problem]:
    if pool.tier not in config.tiers:
        yield unknown(f"{path}.tier", pool.tier, config.tiers)
    if pool.base_model not in config.base_models:
        yield unknown(f"{path}.base_model", pool.base_model, config.base_models)
    if pool.node_class not in config.node_classes:
        yield unknown(f"{path}.node_class", pool.node_class, config.node_classes)
    for adapter_id in pool.adapters:
        adapter = config.adapters.get(adapter_id)
        if adapter is None:
            yield unknown(f"{path}.adapters", adapter_id, config.adapters)
        elif adapter.base_model != pool.base_model:
            yield Problem(
                f"{path}.adapters",
                f"adapter {adapter_id!r} is for {adapter.base_model!r}, the pool serves {pool.base_model!r}",
                "move it to a pool of its base model",
            )
        elif adapter.rank > pool.max_rank:
            yield Problem(
                f"{path}.max_rank",
                f"adapter {adapter_id!r} has rank {adapter.rank}, above {pool.max_rank}",
                f"set max_rank: {adapter.rank}",
            )
    if pool.task == "embed" and pool.slots_for_adapters:
        yield Problem(f"{path}.adapters", "an embedding pool takes no adapters", "remove them")
    if pool.min_replicas > pool.max_replicas:
        yield Problem(
            f"{path}.replicas",
            f"min {pool.min_replicas} is above max {pool.max_replicas}",
            f"set max to at least {pool.min_replicas}",
        )
    if pool.task == "generate" and pool.default_max_tokens >= pool.context_tokens:
        yield Problem(
            f"{path}.default_max_tokens",
            f"{pool.default_max_tokens} leaves no room for a prompt in context_tokens {pool.context_tokens}",
            f"use at most {pool.context_tokens // 2}",
        )
    if pool.engine == "simulated" and pool.simulated is None:
        yield Problem(path, "a simulated pool needs a timing", "add `simulated: {}` for the default profile")
    if pool.engine != "simulated" and pool.simulated is not None:
        yield Problem(
            f"{path}.simulated", "is only for engine: simulated", "remove it or set engine: simulated"
        )
    yield from _check_upstream(config, path, pool)
    if 0 < pool.gpus < 1 and pool.gpu_memory_share > pool.gpus:
        yield Problem(
            f"{path}.gpu_memory_share",
            f"{pool.gpu_memory_share:g} of the card's memory is more than its share gpus: {pool.gpus:g}",
            f"set gpu_memory_share to at most {pool.gpus:g}",
        )
    if pool.tensor_parallel > 1 and pool.gpus not in (0, pool.tensor_parallel):
        yield Problem(
            f"{path}.gpus",
            "one GPU per tensor-parallel rank is taken",
            f"remove it or set {pool.tensor_parallel}",
        )


def _check_upstream(config: ClusterConfig, path: str, pool: PoolConfig) -> Iterator[Problem]:
    if pool.engine != UPSTREAM:
        if pool.upstream is not None:
            yield Problem(
                f"{path}.upstream", "is only for engine: upstream", "remove it or set engine: upstream"
            )
        model = config.base_models.get(pool.base_model)
        if model is not None and model.source == UPSTREAM:
            yield Problem(
                f"{path}.base_model",
                f"{pool.base_model!r} has no weights (source: upstream)",
                "set engine: upstream, or give the base model a source",
            )
        return
    if pool.upstream is None:
        yield Problem(
            path, "an upstream pool needs its address", "add `upstream:` with base_url, model, prices"
        )
        return
    yield from upstream_problems(f"{path}.upstream", pool.upstream)
    if pool.slots_for_adapters:
        yield Problem(f"{path}.adapters", "an upstream takes no adapters of ours", "remove them")
    if pool.tensor_parallel > 1 or pool.gpus > 0:
        yield Problem(path, "an upstream pool computes nothing here", "remove tensor_parallel and gpus")
    if (pool.task == "embed") != ("embeddings" in pool.upstream.routes):
        yield Problem(
            f"{path}.upstream.routes",
            f"do not fit task: {pool.task}",
            "use routes: [embeddings] with task: embed, and the others with task: generate",
        )
    elif pool.task == "embed" and len(pool.upstream.routes) > 1:
        yield Problem(f"{path}.upstream.routes", "has more than embeddings", "use routes: [embeddings]")


def _check_memory(config: ClusterConfig, name: str, pool: PoolConfig) -> Iterator[Problem]:
    """Against what the node class declares; live nodes are looked at when there are some."""
    model = config.base_models.get(pool.base_model)
    if model is None or pool.node_class not in config.node_classes:
        return
    for problem in (class_problem(config, name), kv_cache_problem(pool, model)):
        if problem is not None:
            yield Problem(f"pools.{name}", *problem)


def _check_tasks(config: ClusterConfig) -> Iterator[Problem]:
    """`model` names a base model: it cannot mean text on one route and vectors on another."""
    generating = {pool.base_model for pool in config.pools.values() if pool.task == "generate"}
    for name, pool in config.pools.items():
        if pool.task == "embed" and pool.base_model in generating:
            yield Problem(
                f"pools.{name}.task",
                f"{pool.base_model!r} generates in another pool",
                "use one task per base model",
            )


def _check_router(config: ClusterConfig) -> Iterator[Problem]:
    adapters = {name: None for each in config.adapters for name in (adapter_name(each), each)}
    targets = [*config.tiers, *adapters, *config.base_models]
    generating = [pool for pool in config.pools.values() if pool.task == "generate"]
    served = {*config.tiers, *(pool.base_model for pool in generating)}
    loaded = {adapter for pool in generating for adapter in pool.adapters}
    served |= loaded | {adapter_name(adapter) for adapter in loaded}
    if config.router.default_tier not in config.tiers:
        yield unknown("router.default_tier", config.router.default_tier, config.tiers)
    yield from _check_rules("router.rules", config.router.rules, targets, served, config.router.policies)
    for name, policy in config.router.policies.items():
        if isinstance(policy, RulesConfig):
            path = f"router.policies.{name}.rules"
            yield from _check_rules(path, policy.rules, targets, served, config.router.policies)
    yield from check_policies(config.router, served, config.tiers)


def _check_rules(
    path_of_rules: str,
    rules: list[Rule],
    targets: Collection[str],
    served: Collection[str],
    policies: Collection[str],
) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, rule in enumerate(rules):
        path = f"{path_of_rules}.{index}"
        if rule.name in seen:
            yield Problem(f"{path}.name", f"{rule.name!r} is used twice", "rename it: the name is the reason")
        seen.add(rule.name)
        if rule.to in policies or rule.to in BUILT_IN:
            pass
        elif rule.to not in targets:
            yield unknown(f"{path}.to", rule.to, [*targets, *policies])
        elif rule.to not in served:
            yield Problem(
                f"{path}.to",
                f"no pool serves {rule.to!r}",
                "give it to a pool that generates, or name another",
            )
        if all(value is None for value in rule.when.model_dump().values()):
            yield Problem(f"{path}.when", "is empty", "add a condition, or use default_tier")
        if rule.when.system_matches is not None:
            try:
                re.compile(rule.when.system_matches)
            except re.error as error:
                yield Problem(
                    f"{path}.when.system_matches", f"is not a regular expression: {error}", "correct it"
                )
