"""What the YAML becomes for Ray Serve and for vLLM; whether the example fleets fit on their nodes."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterConfig, NodeClass, PoolConfig, load_config
from cluster.placement.nodes import find_nodes, pool_gpus
from cluster.types import NodeState
from deployments import engine_vllm
from deployments.app import placement_options, unplaceable
from deployments.engine_vllm import engine_flags
from tests.configs import config_of, simulated

EXAMPLES = Path(__file__).parents[2] / "deployments" / "examples"
SPOT, ON_DEMAND = {"market": "spot"}, {"market": "on-demand"}
NODE = NodeClass(label_selector=SPOT, fallbacks=[ON_DEMAND, {}], usd_per_hour=1)


def pool(**changes: Any) -> PoolConfig:
    fields = {
        "tier": "small",
        "base_model": "tiny",
        "node_class": "cheap",
        "context_tokens": 1024,
        "max_concurrency": 4,
        "throughput": {"prompt_tokens_per_s": 1, "output_tokens_per_s": 1},
    }
    return PoolConfig.model_validate(fields | changes)


def node(name: str, cpus: float = 16, gpus: float = 0, **labels: str) -> NodeState:
    return NodeState(name, f"10.0.0.{name}", labels, {"CPU": cpus, "GPU": gpus})


# Ray Serve


def test_a_plain_pool_is_pinned_with_soft_fallbacks_in_order() -> None:
    options = placement_options("p", pool(cpus=2, gpus=0.5), NODE, [])

    assert options == {
        "ray_actor_options": {
            "num_cpus": 2,
            "num_gpus": 0.5,
            "label_selector": SPOT,
            "fallback_strategy": [{"label_selector": ON_DEMAND}, {"label_selector": {}}],
        }
    }


def test_a_pool_of_any_node_asks_for_no_labels() -> None:
    assert placement_options("p", pool(), NodeClass(usd_per_hour=1), []) == {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 0}
    }


def test_a_tensor_parallel_pool_has_one_gpu_per_rank_on_one_node() -> None:
    options = placement_options("p", pool(tensor_parallel=4, cpus=8), NODE, [node("1", gpus=8, **SPOT)])

    assert options == {
        "ray_actor_options": {"num_cpus": 0},
        "placement_group_bundles": [{"CPU": 2.0, "GPU": 1.0}] * 4,
        "placement_group_strategy": "STRICT_PACK",
        "placement_group_bundle_label_selector": [SPOT] * 4,
    }


def test_a_tensor_parallel_pool_takes_the_selector_that_matches_today() -> None:
    wanted = pool(tensor_parallel=2)

    def selector(*nodes: NodeState) -> Any:
        return placement_options("p", wanted, NODE, nodes)["placement_group_bundle_label_selector"]

    assert selector(node("1", gpus=2, **ON_DEMAND)) == [ON_DEMAND] * 2
    assert selector(node("1", gpus=2)) is None, "the last fallback is any node"
    assert selector() == [SPOT] * 2, "none yet: what the YAML asks for first"


def test_ranks_on_several_nodes_are_refused_before_ray_waits_for_ever() -> None:
    one_each = [node("1", gpus=1), node("2", gpus=1)]

    why_not = find_nodes("p", pool(tensor_parallel=2), NODE, one_each).why_not

    assert "2 GPUs per replica; the matching nodes (10.0.0.1, 10.0.0.2) have less" in why_not
    assert find_nodes("p", pool(tensor_parallel=2), NODE, [*one_each, node("3", gpus=2)]).nodes


def test_a_pool_without_a_node_says_which_labels_are_missing() -> None:
    raw = simulated(node_classes__big__label_selector={"ray.io/accelerator-type": "H100"})
    raw["node_classes"]["big"]["fallbacks"] = []
    config = config_of(raw)

    assert list(unplaceable(config, [node("1", **{"ray.io/accelerator-type": "L4"})])) == ["reserve"]
    why_not = unplaceable(config, [node("1", **{"ray.io/accelerator-type": "L4"})])["reserve"]
    assert "wants {ray.io/accelerator-type=H100}" in why_not
    assert "10.0.0.1 {ray.io/accelerator-type=L4}" in why_not


# vLLM


def value_after(flags: list[str], name: str) -> str:
    return flags[flags.index(name) + 1]


def test_a_cpu_pool_has_no_flags_for_gpus() -> None:
    assert engine_flags(pool(dtype="float32", max_concurrency=3), "/weights") == [
        *("--model", "/weights"),
        *("--served-model-name", "tiny"),
        *("--dtype", "float32"),
        *("--max-model-len", "1024"),
        *("--max-num-seqs", "3"),
        "--disable-fastapi-docs",
    ]


def test_a_gpu_pool_takes_its_share_of_the_memory() -> None:
    flags = engine_flags(pool(gpus=0.25, gpu_memory_share=0.2), "/weights")

    assert value_after(flags, "--gpu-memory-utilization") == "0.2"
    assert "--tensor-parallel-size" not in flags


def test_a_tensor_parallel_pool_spreads_over_the_gpus_that_ray_gave() -> None:
    flags = engine_flags(pool(tensor_parallel=4), "/weights")

    assert value_after(flags, "--tensor-parallel-size") == "4"
    assert value_after(flags, "--distributed-executor-backend") == "ray"
    assert value_after(flags, "--gpu-memory-utilization") == "0.9"


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_pool_with_adapters_makes_room_for_all_of_them(gpus: float) -> None:
    flags = engine_flags(pool(gpus=gpus, adapters=["a@1", "b@1", "b@2"], max_rank=32), "/weights")

    assert "--enable-lora" in flags
    assert value_after(flags, "--max-loras") == "3"
    assert value_after(flags, "--max-lora-rank") == "32"
    assert ("--enforce-eager" in flags) == (gpus == 0)


def test_an_embedding_pool_runs_vllm_for_pooling() -> None:
    assert value_after(engine_flags(pool(task="embed"), "/weights"), "--runner") == "pooling"
    assert "--runner" not in engine_flags(pool(), "/weights")


@pytest.mark.parametrize(
    ("changes", "compiles"),
    [({}, True), ({"engine_options": ["--enforce-eager"]}, False), ({"adapters": ["a@1"]}, False)],
)
def test_an_eager_cpu_engine_never_calls_a_compiler(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], compiles: bool
) -> None:
    """A request for logprobs would, and a compiler that fails takes the engine with it."""
    monkeypatch.setattr(os, "environ", {})

    engine_vllm._set_environment(pool(**changes), on_gpu=False)

    assert ("TORCH_COMPILE_DISABLE" in os.environ) == (not compiles)


def test_flags_of_the_operator_come_last_and_so_win() -> None:
    flags = engine_flags(pool(gpus=1, engine_options=["--max-num-seqs", "1"]), "/weights")

    assert flags[-2:] == ["--max-num-seqs", "1"]


def test_no_flag_opens_what_the_guard_closes() -> None:
    flags = engine_flags(pool(gpus=1, adapters=["a@1"]), "/weights")

    assert "--disable-fastapi-docs" in flags
    assert not {"--trust-remote-code", "--api-key", "--host", "--port", "--lora-modules"} & set(flags)


# The example fleets


def example(name: str) -> ClusterConfig:
    return load_config(EXAMPLES / f"{name}.yaml")


def test_the_pools_of_gpu_yaml_fit_on_one_card() -> None:
    config = example("gpu")

    assert not unplaceable(config, [node("1", gpus=1)])
    for field in ("gpus", "gpu_memory_share"):
        assert sum(getattr(each, field) for each in config.pools.values()) <= 0.95
    assert sum(each.node_share for each in config.pools.values()) == 1


def test_the_mixed_fleet_finds_its_nodes_spot_first() -> None:
    config = example("mixed_fleet")
    spot = node("1", gpus=1, **{"ray.io/accelerator-type": "L4", "ray.io/market-type": "spot"})
    dear = node("2", gpus=1, **{"ray.io/accelerator-type": "L4", "ray.io/market-type": "on-demand"})
    large = node(
        "3", cpus=64, gpus=8, **{"ray.io/accelerator-type": "H100", "ray.io/market-type": "on-demand"}
    )

    def nodes_of(name: str, *nodes: NodeState) -> tuple[NodeState, ...]:
        wanted = config.pools[name]
        return find_nodes(name, wanted, config.node_classes[wanted.node_class], nodes).nodes

    assert nodes_of("labels", large, dear, spot) == (spot,)
    assert nodes_of("labels", large, dear) == (dear,)
    assert nodes_of("reserve", spot, dear, large) == (large,)
    assert not unplaceable(config, [spot, large])
    assert set(unplaceable(config, [spot, dear])) == {"reserve"}


@pytest.mark.parametrize("name", ["gpu", "mixed_fleet"])
def test_every_gpu_pool_of_an_example_has_room_for_one_whole_context(name: str) -> None:
    """Otherwise vLLM refuses to start."""
    config = example(name)
    for pool_name, each in config.pools.items():
        per_token = config.base_models[each.base_model].kv_bytes_per_token
        assert per_token is not None
        needed_gib = each.context_tokens * per_token / each.tensor_parallel / 2**30
        assert needed_gib <= each.kv_cache_gib, f"{pool_name} needs {needed_gib:.2f} GiB of KV cache"


@pytest.mark.parametrize("name", ["gpu", "mixed_fleet"])
def test_replicas_that_share_a_card_take_no_more_memory_than_there_is(name: str) -> None:
    shares: dict[str, float] = defaultdict(float)
    config = example(name)
    for each in config.pools.values():
        assert each.gpu_memory_share <= 0.95
        if pool_gpus(each) < 1:
            assert each.gpu_memory_share <= each.gpus
            shares[each.node_class] += each.gpus
    assert all(share <= 1 for share in shares.values())
