"""How many nodes of which size a fleet needs."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.placement.node_groups import NodeSize, classes_in_use, concrete_labels, node_group
from tests.configs import config_of, simulated

CARD = {"cpus": 2, "gpus": 1}


def fleet(specialist: dict[str, Any], reserve: dict[str, Any], **changes: Any) -> ClusterConfig:
    """Both pools on the class `cheap`."""
    raw = simulated(pools__reserve__node_class="cheap", **changes)
    raw["pools"]["specialist"] |= specialist
    raw["pools"]["reserve"] |= reserve
    return config_of(raw)


def test_replicas_that_share_a_card_share_a_node() -> None:
    """Four quarters and two three-quarters: three cards, or less."""
    group = node_group(
        fleet(
            {"gpus": 0.25, "gpu_memory_share": 0.2, "replicas": 4},
            {"gpus": 0.75, "gpu_memory_share": 0.7, "replicas": 2},
        ),
        "cheap",
    )

    assert (group.size.gpus, group.min_nodes) == (1, 3)


def test_bounds_of_pools_become_bounds_of_nodes() -> None:
    group = node_group(fleet(CARD | {"replicas": {"min": 0, "max": 3}}, CARD | {"replicas": 2}), "cheap")

    assert (group.min_nodes, group.max_nodes) == (2, 5)


def test_a_class_that_sleeps_still_has_a_node_to_wake_on() -> None:
    sleeping = {"replicas": {"min": 0, "max": 1}}
    group = node_group(fleet(sleeping, sleeping), "cheap")

    assert (group.min_nodes, group.max_nodes) == (0, 1)


def test_processors_limit_as_cards_do() -> None:
    group = node_group(fleet({"cpus": 4, "replicas": 3}, {"cpus": 1}), "cheap", NodeSize(8, 0, 0))

    assert group.min_nodes == 2


def test_a_replica_that_fits_no_node_of_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pool 'reserve' needs 0\.1 CPUs and 4 GPUs"):
        node_group(fleet(CARD, {"tensor_parallel": 4}), "cheap", NodeSize(96, 2, 0))


def test_gateways_have_a_node_each_and_a_processor_of_their_own() -> None:
    config = config_of(simulated(gateway__node_class="big", gateway__replicas=3))

    group = node_group(config, "big")

    assert (group.min_nodes, group.size.cpus, group.runs_gateways) == (3, 2, True)
    assert not node_group(config, "cheap").runs_gateways


def test_classes_without_pools_are_left_out() -> None:
    assert classes_in_use(fleet({}, {})) == ["cheap"]
    assert classes_in_use(fleet({}, {}, gateway__node_class="big")) == ["cheap", "big"]


def test_labels_are_those_that_make_the_selector_match() -> None:
    selector = {"a": "x", "b": "in(y, z)", "c": "!w", "d": "!in(u,v)"}

    assert concrete_labels(selector) == {"a": "x", "b": "y"}
