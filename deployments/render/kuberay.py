"""`sprat render kuberay`: a RayService with a worker group per node class, and a Service for the gateways.

Gateways answer on a port of their own and not through Serve's proxies, so the Service here selects the pods
of the gateways' node class, and the readiness of those pods is the gateway's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from cluster.config import ClusterConfig
from cluster.config.memory import GIB
from cluster.errors import ConfigError
from cluster.placement.node_groups import NodeGroup, classes_in_use, node_group
from deployments.ray_cluster import is_loopback
from deployments.render.names import dns_label
from deployments.render.serve import serve_config
from deployments.runtime import REQUIRED_VARIABLES
from deployments.version import ray_version

HEADER = """RayService of the sprat cluster {name}, for KubeRay 1.7, written by `sprat render kuberay`.

Use:      kubectl create secret generic {secret} --from-literal=REDIS_URL=rediss://… \\
            --from-literal=SPRAT_STORE_URL=postgresql://… \\
            --from-literal=SPRAT_GATEWAY_TOKEN=$(openssl rand -hex 32) \\
            --from-literal=SPRAT_PEPPER=$(openssl rand -hex 32)
          kubectl label node NODE {node_class_label}=CLASS      (CLASS: {classes})
          kubectl apply -f THIS_FILE
          The secret also holds, where the YAML asks for them: {more}.
Images:   {image} and {gpu_image}: build them from the Dockerfile of this repository.
Calls:    to the Service {service}, port {port}. Keys: kubectl exec into the head pod, sprat keys create …
No secret is in this file. Ray's ports are guarded by a token that KubeRay makes.
"""

NODE_CLASS_LABEL = "sprat.io/node-class"
"""Kubernetes label of a node: which of the YAML's node classes it is."""

GATEWAY_LABEL = "sprat.io/gateway"
HUB_TOKEN = "HF_TOKEN"  # noqa: S105 (its name)

SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("sprat.io/spot", "true"),
)
"""GKE and AKS taint their spot nodes with these; EKS taints none, so the third is for an operator's own."""

HEAD_CPUS, HEAD_GIB = 2, 8
CACHE_FOLDER = "/home/sprat/.cache/sprat"
STATE_FOLDER = "/home/sprat/state"
RAYLET_HEALTH_PORT = 52365
"""Ray's agent on each node: `/api/healthz`."""


@dataclass(frozen=True, slots=True)
class KubeRayOptions:
    image: str = "sprat:cpu"
    gpu_image: str = "sprat:cuda"
    secret: str = "sprat"  # noqa: S105 (its name)


def ray_service(config: ClusterConfig, options: KubeRayOptions) -> list[dict[str, Any]]:
    """The RayService and the Service of the gateways. Raises ConfigError with what the YAML lacks."""
    if config.gateway.node_class is None:
        raise ConfigError(
            "gateway.node_class is not set: Kubernetes has to know which pods take calls. "
            f"Set it to one of {', '.join(config.node_classes)}."
        )
    if is_loopback(config.gateway.host):
        raise ConfigError(
            f"gateway.host is {config.gateway.host}: nothing outside its pod could call it. "
            "Set it to 0.0.0.0."
        )
    groups = [node_group(config, name) for name in classes_in_use(config)]
    name = dns_label(config.name)
    service: dict[str, Any] = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {
            # Gateways stand behind a Service of their own; this one only has to have endpoints.
            "excludeHeadPodFromServeSvc": True,
            "serveConfigV2": yaml.safe_dump(serve_config(config), sort_keys=False),
            "rayClusterConfig": {
                "rayVersion": ray_version(),
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": any(group.min_nodes < group.max_nodes for group in groups),
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 120},
                "headGroupSpec": _head(config, options),
                "workerGroupSpecs": [_worker_group(config, group, options) for group in groups],
            },
        },
    }
    return [service, _gateway_service(config, name)]


def header(config: ClusterConfig, options: KubeRayOptions) -> str:
    """How to use the file."""
    return HEADER.format(
        name=config.name,
        secret=options.secret,
        node_class_label=NODE_CLASS_LABEL,
        more=", ".join(
            [*secret_variables(config)[len(REQUIRED_VARIABLES) :], f"{HUB_TOKEN} for gated models"]
        ),
        classes=", ".join(dns_label(name) for name in classes_in_use(config)),
        image=options.image,
        gpu_image=options.gpu_image,
        service=gateway_service_name(config),
        port=config.gateway.port,
    )


def gateway_service_name(config: ClusterConfig) -> str:
    return f"{dns_label(config.name)}-gateway"


def _gateway_service(config: ClusterConfig, cluster: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": gateway_service_name(config)},
        "spec": {
            "selector": {GATEWAY_LABEL: cluster},
            "ports": [{"name": "http", "port": config.gateway.port, "targetPort": config.gateway.port}],
        },
    }


def _head(config: ClusterConfig, options: KubeRayOptions) -> dict[str, Any]:
    size = {"cpu": str(HEAD_CPUS), "memory": f"{HEAD_GIB}Gi"}
    container = _container(config, "ray-head", options.image, size, options)
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    return {
        # No replica on the head: Ray's control plane dies with what runs beside it.
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": _pod([container])},
    }


def _worker_group(config: ClusterConfig, group: NodeGroup, options: KubeRayOptions) -> dict[str, Any]:
    size = {"cpu": str(group.size.cpus), "memory": f"{-(-group.size.memory_bytes // GIB)}Gi"}
    if group.size.gpus:
        size["nvidia.com/gpu"] = str(group.size.gpus)
    image = options.gpu_image if group.size.gpus else options.image
    container = _container(config, "ray-worker", image, size, options)
    container["readinessProbe"] = _readiness(config, group)
    container["livenessProbe"] = _probe({"path": "/api/healthz", "port": RAYLET_HEALTH_PORT}, failures=120)
    # Serve drains gateways and engines when the raylet ends; a spot node has less time, and takes it.
    pod = _pod([container]) | {
        "nodeSelector": {NODE_CLASS_LABEL: dns_label(group.node_class)},
        "terminationGracePeriodSeconds": 60,
    }
    tolerations = _tolerations(group)
    if tolerations:
        pod["tolerations"] = tolerations
    labels = {GATEWAY_LABEL: dns_label(config.name)} if group.runs_gateways else {}
    return {
        "groupName": dns_label(group.node_class),
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        "labels": group.labels,
        "rayStartParams": {},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }


def secret_variables(config: ClusterConfig) -> list[str]:
    """What the secret has to hold: ours, and the keys of upstreams."""
    keys = {pool.upstream.api_key_env for pool in config.pools.values() if pool.upstream is not None}
    return [*REQUIRED_VARIABLES, *sorted(key for key in keys if key is not None)]


def _container(
    config: ClusterConfig, name: str, image: str, size: dict[str, str], options: KubeRayOptions
) -> dict[str, Any]:
    secrets = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": options.secret, "key": variable}}}
        for variable in secret_variables(config)
    ]
    secrets.append(
        {
            "name": HUB_TOKEN,
            "valueFrom": {"secretKeyRef": {"name": options.secret, "key": HUB_TOKEN, "optional": True}},
        }
    )
    return {
        "name": name,
        "image": image,
        "env": [
            *secrets,
            {"name": "SPRAT_STATE", "value": STATE_FOLDER},
            {"name": "SPRAT_CACHE", "value": CACHE_FOLDER},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "resources": {"requests": size, "limits": size},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "weights", "mountPath": CACHE_FOLDER},
            {"name": "state", "mountPath": STATE_FOLDER},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108,
        ],
    }


def _pod(containers: list[dict[str, Any]]) -> dict[str, Any]:
    """The journal of a gateway is money until it is in the ledger: where a claim is at hand, put it in place
    of `state`. `weights` is fetched again when a pod moves."""
    return {
        "containers": containers,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "volumes": [
            {"name": "weights", "emptyDir": {}},
            {"name": "state", "emptyDir": {}},
            # NCCL between tensor-parallel ranks, and Ray's object store.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }


def _readiness(config: ClusterConfig, group: NodeGroup) -> dict[str, Any]:
    """Of a gateway pod: the gateway answers. KubeRay's own probe asks Serve's proxy, which is off."""
    if group.runs_gateways:
        gateway = config.gateway
        return _probe(
            {
                "path": "/livez",
                "port": gateway.port,
                "scheme": "HTTP" if gateway.tls is None else "HTTPS",
            },
            failures=2,
        )
    return _probe({"path": "/api/healthz", "port": RAYLET_HEALTH_PORT}, failures=10)


def _probe(http_get: dict[str, Any], *, failures: int) -> dict[str, Any]:
    return {
        "httpGet": http_get,
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def _tolerations(group: NodeGroup) -> list[dict[str, str]]:
    """Spot nodes are tainted so that only what can bear their loss lands there; GPU nodes are as well."""
    tolerations = (
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if group.size.gpus else []
    )
    if group.node.market == "spot":
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in SPOT_TAINTS
        ]
    return tolerations
