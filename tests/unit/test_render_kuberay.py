"""`sprat render kuberay` against KubeRay's own schema (tests/fixtures/kuberay)."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.config import ClusterConfig, load_config
from cluster.errors import ConfigError
from cluster.placement.nodes import matches
from deployments.render.kuberay import KubeRayOptions, gateway_service_name, ray_service
from deployments.render.names import dns_label
from tests.configs import config_of, simulated
from tests.unit.conftest import Sprat

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "deployments/examples/mixed_fleet.yaml"
CRD = ROOT / "tests/fixtures/kuberay/ray.io_rayservices.yaml.gz"


@cache
def schema() -> dict[str, Any]:
    definition = yaml.load(gzip.decompress(CRD.read_bytes()), Loader=yaml.CSafeLoader)
    versions = {each["name"]: each for each in definition["spec"]["versions"]}
    found: dict[str, Any] = versions["v1"]["schema"]["openAPIV3Schema"]
    close(found)
    return found


def close(node: Any) -> None:
    """Kubernetes drops fields that the schema does not know; here they are mistakes."""
    if isinstance(node, dict):
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for each in node.values():
            close(each)
    elif isinstance(node, list):
        for each in node:
            close(each)


def rendered(config: ClusterConfig) -> dict[str, Any]:
    return ray_service(config, KubeRayOptions())[0]


def fleet() -> ClusterConfig:
    return load_config(FLEET)


def small_fleet(**changes: Any) -> ClusterConfig:
    return config_of(simulated(gateway__host="0.0.0.0", gateway__node_class="cheap", **changes))


def groups(config: ClusterConfig) -> dict[str, dict[str, Any]]:
    specs = rendered(config)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return {each["groupName"]: each for each in specs}


@pytest.mark.parametrize("config", [fleet(), small_fleet()], ids=["mixed_fleet", "simulated"])
def test_kuberays_schema_takes_it_without_an_unknown_field(config: ClusterConfig) -> None:
    service = json.loads(json.dumps(rendered(config)))  # as the API server reads it

    jsonschema.validate(service, schema())


def test_the_schema_of_the_test_refuses_what_kubernetes_would_drop() -> None:
    service = rendered(small_fleet())
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minimumReplicas"] = 1

    with pytest.raises(jsonschema.ValidationError, match="minimumReplicas"):
        jsonschema.validate(service, schema())


def test_the_serve_config_inside_is_one_that_ray_accepts() -> None:
    inside = yaml.safe_load(rendered(fleet())["spec"]["serveConfigV2"])

    assert len(ServeDeploySchema.model_validate(inside).applications) == 1 + len(fleet().pools)


def test_every_pool_has_a_group_whose_labels_and_size_hold_a_replica() -> None:
    config = fleet()
    by_class = groups(config)
    for pool in config.pools.values():
        group = by_class[dns_label(pool.node_class)]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert matches(config.node_classes[pool.node_class].label_selector, group["labels"])
        assert int(limits["cpu"]) >= pool.cpus
        assert int(limits["nvidia.com/gpu"]) >= max(pool.gpus, pool.tensor_parallel if pool.gpus == 0 else 0)


def test_groups_grow_with_the_bounds_of_their_pools() -> None:
    pools = groups(fleet())["l4"]

    # 2 to 8 replicas of 0.25 cards, 4 of 0.75, 6 of 1.
    assert (pools["minReplicas"], pools["maxReplicas"]) == (10, 11)
    assert rendered(fleet())["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    assert rendered(small_fleet())["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is False


def test_spot_groups_tolerate_what_spot_nodes_are_tainted_with() -> None:
    by_class = groups(fleet())

    def keys(name: str) -> set[str]:
        return {each["key"] for each in by_class[name]["template"]["spec"].get("tolerations", [])}

    assert "cloud.google.com/gke-spot" in keys("l4")
    assert keys("h100") == {"nvidia.com/gpu"}
    assert keys("front") == set()


def test_secrets_are_references_and_nothing_else() -> None:
    config = small_fleet(redis={"url": "redis://user:hunter2@host"})
    documents = ray_service(config, KubeRayOptions(secret="other"))
    text = json.dumps(documents)

    assert "hunter2" not in text
    for group in [documents[0]["spec"]["rayClusterConfig"]["headGroupSpec"], *groups(config).values()]:
        variables = {each["name"]: each for each in group["template"]["spec"]["containers"][0]["env"]}
        for name in ("REDIS_URL", "SPRAT_STORE_URL", "SPRAT_GATEWAY_TOKEN", "SPRAT_PEPPER"):
            assert "value" not in variables[name]
    assert '"name": "other"' in text


def test_the_service_reaches_the_pods_of_the_gateways_and_no_others() -> None:
    config = fleet()
    service = ray_service(config, KubeRayOptions())[1]
    wanted = service["spec"]["selector"].items()

    selected = [
        name
        for name, group in groups(config).items()
        if wanted <= group["template"]["metadata"]["labels"].items()
    ]

    assert selected == ["front"]
    assert service["metadata"]["name"] == gateway_service_name(config)
    probe = groups(config)["front"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
    assert probe == {"path": "/livez", "port": 8000, "scheme": "HTTP"}


def test_ray_is_guarded_by_a_token_and_the_head_runs_no_replica() -> None:
    cluster = rendered(fleet())["spec"]["rayClusterConfig"]

    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gateway__host": "0.0.0.0"}, "gateway.node_class is not set"),
        ({"gateway__node_class": "cheap"}, "gateway.host is 127.0.0.1"),
    ],
)
def test_a_gateway_that_nobody_could_reach_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rendered(config_of(simulated(**changes)))


@pytest.mark.parametrize(
    ("name", "label"),
    [("Mixed_Fleet", "mixed-fleet"), ("8gpus", "n-8gpus"), ("a" * 80, "a" * 41), ("x.y-", "x-y")],
)
def test_names_become_dns_labels(name: str, label: str) -> None:
    assert dns_label(name) == label


def test_the_verb_prints_both_documents(sprat: Sprat) -> None:
    finished = sprat("render", "kuberay", FLEET)

    assert finished.code == 0, finished.err
    assert [each["kind"] for each in yaml.safe_load_all(finished.out)] == ["RayService", "Service"]
    assert finished.out.startswith("# RayService of the sprat cluster mixed-fleet")


def test_keys_of_upstreams_come_from_the_secret_too() -> None:
    config = load_config(ROOT / "deployments/examples/hosted_large.yaml").model_copy(
        update={"gateway": fleet().gateway.model_copy(update={"node_class": "here"})}
    )
    key = next(pool.upstream.api_key_env for pool in config.pools.values() if pool.upstream is not None)

    container = groups(config)["here"]["template"]["spec"]["containers"][0]
    found = {each["name"]: each.get("valueFrom") for each in container["env"]}

    assert found[str(key)] == {"secretKeyRef": {"name": "sprat", "key": key}}
    assert found["HF_TOKEN"]["secretKeyRef"]["optional"] is True
