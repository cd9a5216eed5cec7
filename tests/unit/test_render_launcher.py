"""`sprat render launcher` against the schema in Ray's wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from cluster.config import ClusterConfig, NodeClass, load_config
from cluster.errors import ConfigError
from cluster.placement.nodes import matches
from deployments.render.launcher import LauncherOptions, launcher_cluster
from deployments.render.machines import MACHINES, accelerator_of, parse_machine
from tests.configs import config_of, simulated
from tests.unit.conftest import Sprat

FLEET = Path(__file__).parents[2] / "deployments/examples/mixed_fleet.yaml"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
AWS = LauncherOptions()
GCP = LauncherOptions(provider="gcp", project="fleet-1")


def fleet() -> ClusterConfig:
    return load_config(FLEET)


def node_types(options: LauncherOptions) -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = launcher_cluster(fleet(), options)["available_node_types"]
    return types


@pytest.mark.parametrize("options", [AWS, GCP], ids=lambda options: options.provider)
def test_rays_schema_takes_it(options: LauncherOptions) -> None:
    jsonschema.validate(launcher_cluster(fleet(), options), SCHEMA)


def test_machines_are_taken_by_accelerator_and_counted_by_what_they_hold() -> None:
    l4, h100 = node_types(AWS)["l4"], node_types(AWS)["h100"]

    assert l4["node_config"]["InstanceType"] == "g6.2xlarge"
    assert (l4["min_workers"], l4["max_workers"]) == (10, 11)
    assert h100["resources"] == {"CPU": 192, "GPU": 8}
    assert h100["min_workers"] == 1, "two replicas of four cards on one machine of eight"


def test_labels_make_the_selectors_match() -> None:
    config = fleet()
    for name, node_type in node_types(AWS).items():
        if name != "head":
            assert matches(config.node_classes[name].label_selector, node_type["labels"])


def test_spot_classes_ask_for_spot_machines() -> None:
    assert node_types(AWS)["l4"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in node_types(AWS)["h100"]["node_config"]
    assert {"preemptible": True} in node_types(GCP)["l4"]["node_config"]["scheduling"]
    assert {"preemptible": True} not in node_types(GCP)["h100"]["node_config"]["scheduling"]


def test_cards_get_the_image_with_cuda() -> None:
    assert node_types(AWS)["l4"]["docker"] == {"worker_image": "sprat:cuda"}
    assert "docker" not in node_types(AWS)["front"]


def test_the_operators_machine_is_taken_instead() -> None:
    chosen = dict([parse_machine("l4=g6.12xlarge:48:4:192")])

    types = node_types(LauncherOptions(machines=chosen))

    assert types["l4"]["node_config"]["InstanceType"] == "g6.12xlarge"
    assert types["l4"]["min_workers"] == 3, "9.5 cards in all"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LauncherOptions(provider="gcp"), "--project"),
        (LauncherOptions(machines=dict([parse_machine("h100=small:8:1:32")])), "needs 4 CPUs and 4 GPUs"),
    ],
)
def test_what_cannot_be_rendered_says_what_to_give(options: LauncherOptions, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        launcher_cluster(fleet(), options)


def test_an_accelerator_without_a_machine_asks_for_one() -> None:
    config = config_of(simulated(node_classes__big__accelerator="B300"))

    with pytest.raises(ConfigError, match="--machine big=TYPE"):
        launcher_cluster(config, AWS)


@pytest.mark.parametrize(
    ("node", "accelerator"),
    [
        (NodeClass(accelerator="8x H100", usd_per_hour=1), "H100"),
        (NodeClass(accelerator="cpu", usd_per_hour=1), "CPU"),
        (NodeClass(label_selector={"ray.io/accelerator-type": "L4"}, usd_per_hour=1), "L4"),
        (NodeClass(label_selector={"ray.io/accelerator-type": "in(L4, T4)"}, usd_per_hour=1), "CPU"),
    ],
)
def test_the_accelerator_is_rays_name_for_it(node: NodeClass, accelerator: str) -> None:
    assert accelerator_of(node) == accelerator


def test_no_machine_of_the_table_is_without_memory_or_processors() -> None:
    for machines in MACHINES.values():
        for accelerator, machine in machines.items():
            assert machine.size.cpus >= 8
            assert machine.size.memory_bytes >= 32 * 2**30
            assert (machine.size.gpus > 0) == (accelerator != "CPU")


def test_the_verb_refuses_a_machine_of_no_class(sprat: Sprat) -> None:
    finished = sprat("render", "launcher", FLEET, "--machine", "l5=g6.xlarge:4:1:16")

    assert finished.code == 2
    assert "there is no node class 'l5'" in finished.sentence


def test_the_verb_prints_yaml(sprat: Sprat) -> None:
    finished = sprat("render", "launcher", FLEET, "--provider", "gcp", "--project", "fleet-1")

    assert finished.code == 0, finished.err
    assert yaml.safe_load(finished.out)["provider"]["project_id"] == "fleet-1"
    assert "ray up THIS_FILE" in finished.out
