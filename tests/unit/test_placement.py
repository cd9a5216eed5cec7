"""Which nodes can hold a pool; what is said when none can."""

from __future__ import annotations

from cluster.config import BaseModelConfig, NodeClass, PoolConfig
from cluster.config.memory import GIB, replica_memory_bytes
from cluster.placement.memory import memory_problem
from cluster.placement.nodes import find_nodes, matches
from cluster.types import NodeState


def node(name: str, cpus: float = 4, gpus: float = 0, **labels: str) -> NodeState:
    return NodeState(name, f"10.0.0.{name}", labels, {"CPU": cpus, "GPU": gpus})


def pool(**changes: object) -> PoolConfig:
    fields = {
        "tier": "small",
        "base_model": "m",
        "node_class": "cheap",
        "context_tokens": 1024,
        "throughput": {"prompt_tokens_per_s": 1, "output_tokens_per_s": 1},
    }
    return PoolConfig.model_validate(fields | changes)


CHEAP = NodeClass(label_selector={"node": "cheap"}, usd_per_hour=1)


def test_the_selector_comes_first_then_the_fallbacks_in_order() -> None:
    both = NodeClass(label_selector={"node": "cheap"}, fallbacks=[{"node": "spare"}, {}], usd_per_hour=1)
    cheap, spare, other = node("1", node="cheap"), node("2", node="spare"), node("3")

    assert find_nodes("p", pool(), both, [other, spare, cheap]).nodes == (cheap,)
    assert find_nodes("p", pool(), both, [other, spare]).selector == {"node": "spare"}
    assert find_nodes("p", pool(), both, [other]).nodes == (other,)


def test_no_matching_node_is_a_sentence_with_what_to_do() -> None:
    fit = find_nodes("specialist", pool(), CHEAP, [node("1", node="big")])

    assert not fit.nodes
    assert "no node matches pool 'specialist'" in fit.why_not
    assert "{node=cheap}" in fit.why_not
    assert "10.0.0.1 {node=big}" in fit.why_not
    assert "ray start --labels" in fit.why_not


def test_a_node_that_is_too_small_is_named() -> None:
    fit = find_nodes("p", pool(gpus=1), CHEAP, [node("1", node="cheap")])

    assert "1 GPUs per replica" in fit.why_not
    assert "10.0.0.1" in fit.why_not


def test_tensor_parallel_asks_for_one_gpu_per_rank() -> None:
    assert not find_nodes("p", pool(tensor_parallel=4), CHEAP, [node("1", gpus=2, node="cheap")]).nodes
    assert find_nodes("p", pool(tensor_parallel=4), CHEAP, [node("1", gpus=4, node="cheap")]).nodes


def test_selectors_follow_rays_operators() -> None:
    assert matches({"a": "in(x, y)"}, {"a": "y"})
    assert matches({"a": "!x"}, {})
    assert not matches({"a": "!in(x,y)"}, {"a": "x"})
    assert not matches({"a": "x"}, {})


def test_memory_is_estimated_with_the_arithmetic_shown() -> None:
    model = BaseModelConfig(source="folder:x", parameters=1_500_000_000)
    wanted = pool(dtype="float32", kv_cache_gib=1)

    need = replica_memory_bytes(wanted, model)
    problem = memory_problem("p", wanted, model, 4 * GIB, "node a")

    assert 6 * 10**9 + GIB < need < 12 * 10**9
    assert problem is not None
    assert "5.6 weights as float32" in problem
    assert "node a has 4.0 GiB" in problem
    assert memory_problem("p", wanted, model, need, "node a") is None
