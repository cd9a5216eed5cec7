"""What must hold before sprat deploys onto a Ray cluster of others; what is said of each node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StartError
from cluster.types import NodeState
from deployments.joining import check_names, check_shared, gateway_address
from deployments.node_facts import NodeFacts, facts_of_this_node, node_problems
from deployments.state_folder import StateFolder
from tests.configs import config_of, simulated

HERE = NodeState("1", "10.0.0.1", {"sprat.node": "cheap"}, {"CPU": 4})
THERE = NodeState("2", "10.0.0.2", {"sprat.node": "big"}, {"CPU": 4})
CONFIG = config_of(simulated())
REDIS, POSTGRES = "rediss://redis.internal:6379", "postgresql://sql.internal/sprat"
FACTS = NodeFacts({"Python": "3.11", "sprat": "0.1.0", "Ray": "2.60.0", "vLLM": ""}, authenticates=True)


def refusal(redis_url: str, store_url: str, **changes: Any) -> str:
    with pytest.raises(StartError) as refused:
        check_shared(config_of(simulated(**changes)), [HERE, THERE], redis_url, store_url)
    return refused.value.message


def test_one_machine_may_keep_all_of_it_to_itself() -> None:
    """However many raylets it has."""
    check_shared(CONFIG, [HERE, replace(THERE, address=HERE.address)], "", "sqlite:////s.sqlite")


def test_several_machines_share_redis_and_postgresql() -> None:
    check_shared(CONFIG, [HERE, THERE], REDIS, POSTGRES)


@pytest.mark.parametrize(
    ("redis_url", "store_url", "words"),
    [
        ("", POSTGRES, "embedded Valkey listens on a unix socket of this one: set REDIS_URL"),
        ("unix:///redis.sock", POSTGRES, "REDIS_URL is a unix socket"),
        ("/redis.sock", POSTGRES, "REDIS_URL is a unix socket"),
        (REDIS, "sqlite:////s.sqlite", "SQLite file on this one: set SPRAT_STORE_URL"),
    ],
)
def test_what_other_machines_cannot_reach_is_refused(redis_url: str, store_url: str, words: str) -> None:
    assert words in refusal(redis_url, store_url)


def test_every_reason_is_given_at_once_and_no_url_is_repeated() -> None:
    said = refusal("", "sqlite:////secret.sqlite")

    assert "REDIS_URL" in said
    assert "SPRAT_STORE_URL" in said
    assert "secret" not in said


def test_gateways_elsewhere_do_not_listen_on_loopback() -> None:
    said = refusal(REDIS, POSTGRES, gateway__node_class="big")

    assert "gateway.host to 0.0.0.0" in said


def test_clients_are_told_the_address_of_a_gateways_machine() -> None:
    everywhere = config_of(simulated(gateway__host="0.0.0.0", gateway__node_class="big"))
    pinned = config_of(simulated(gateway__host="10.9.9.9", gateway__node_class="big"))

    assert gateway_address(everywhere, [HERE, THERE]) == "10.0.0.2"
    assert gateway_address(pinned, [HERE, THERE]) == "10.9.9.9"
    assert gateway_address(CONFIG, [HERE, THERE]) == "127.0.0.1"


def test_gateways_without_a_machine_are_refused() -> None:
    config = config_of(
        simulated(
            gateway__host="0.0.0.0",
            gateway__node_class="big",
            node_classes__big__fallbacks=[],
            node_classes__big__label_selector={"sprat.node": "gone"},
        )
    )

    with pytest.raises(StartError, match=r"no node matches gateway\.node_class 'big'"):
        gateway_address(config, [HERE, THERE])


def test_applications_of_others_are_not_replaced() -> None:
    check_names(["gateway", "pool-a"], ["somebody-elses"])
    with pytest.raises(StartError, match="already runs gateway there"):
        check_names(["gateway", "pool-a"], ["gateway", "other"])


# Nodes


def problems(*there: NodeFacts | str, alone: bool = False, config: Any = CONFIG) -> str:
    nodes = [HERE, THERE][: len(there)]
    found = {node.node_id: facts for node, facts in zip(nodes, there, strict=True)}
    return " ".join(node_problems(config, nodes, found, FACTS, alone=alone))


def test_equal_nodes_have_no_problem() -> None:
    assert problems(FACTS, FACTS) == ""


@pytest.mark.parametrize("name", ["Python", "sprat", "Ray"])
def test_another_version_is_named_with_both_sides(name: str) -> None:
    other = replace(FACTS, versions={**FACTS.versions, name: "9.9"})

    said = problems(FACTS, other)

    assert f"node 10.0.0.2 has {name} 9.9, this machine {FACTS.versions[name]}" in said


def test_a_node_without_sprat_says_so() -> None:
    assert "node 10.0.0.2: sprat is not installed there" in problems(FACTS, "sprat is not installed there")


def test_a_ray_that_anybody_may_use_is_refused_unless_it_is_on_loopback() -> None:
    open_to_all = replace(FACTS, authenticates=False)

    assert "RAY_AUTH_MODE=token" in problems(FACTS, open_to_all)
    assert problems(FACTS, open_to_all, alone=True) == ""


def test_a_node_that_does_not_reach_redis_is_named() -> None:
    assert "node 10.0.0.2: Redis does not answer" in problems(
        FACTS, replace(FACTS, problems=("Redis does not answer from there.",))
    )


def test_vllm_is_asked_for_only_where_its_pool_may_run() -> None:
    config = config_of(
        simulated(
            pools__reserve__engine="vllm",
            pools__reserve__simulated=None,
            node_classes__big__fallbacks=[],
        )
    )
    with_vllm = replace(FACTS, versions={**FACTS.versions, "vLLM": "0.32.0"})

    assert problems(FACTS, with_vllm, config=config) == ""
    assert "node 10.0.0.2 has no vLLM" in problems(with_vllm, FACTS, config=config)


def test_the_facts_of_this_machine_are_those_installed() -> None:
    facts = facts_of_this_node()

    assert facts.versions["Ray"]
    assert facts.versions["Python"].startswith("3.1")
    assert facts.problems == ()


# Secrets that several machines share


def test_keys_made_beside_the_nodes_use_their_pepper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFolder(tmp_path)
    own = state.secrets()
    monkeypatch.setenv("SPRAT_GATEWAY_TOKEN", "t" * 64)
    monkeypatch.setenv("SPRAT_PEPPER", "ab" * 32)

    shared = state.secrets()

    assert (shared.pepper, shared.gateway_token) == (b"\xab" * 32, "t" * 64)
    assert shared.ray_token == own.ray_token, "the token of a Ray of its own stays its own"


@pytest.mark.parametrize("missing", ["SPRAT_GATEWAY_TOKEN", "SPRAT_PEPPER"])
def test_half_of_the_shared_secrets_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in {"SPRAT_GATEWAY_TOKEN", "SPRAT_PEPPER"} - {missing}:
        monkeypatch.setenv(name, "ab" * 32)
    monkeypatch.delenv(missing, raising=False)

    with pytest.raises(StartError, match=f"{missing} must have at least 32"):
        StateFolder(tmp_path).secrets()
