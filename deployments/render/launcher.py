"""`sprat render launcher`: the YAML of Ray's cluster launcher (`ray up`), a node type per node class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster.config import ClusterConfig
from cluster.errors import ConfigError
from cluster.placement.node_groups import NodeGroup, classes_in_use, node_group
from deployments.ray_cluster import is_loopback
from deployments.render.machines import MACHINES, Machine, Provider, machine_for
from deployments.render.names import dns_label

HEADER = """Cluster of Ray's launcher for the sprat cluster {name}, written by `sprat render launcher`.

Use:      put the secrets beside this file as sprat.env (mode 600, in no repository):
            RAY_AUTH_MODE=token
            RAY_AUTH_TOKEN=…              openssl rand -hex 32
            REDIS_URL=rediss://…
            SPRAT_STORE_URL=postgresql://…
            SPRAT_GATEWAY_TOKEN=…         openssl rand -hex 32
            SPRAT_PEPPER=…                openssl rand -hex 32
          and the cluster's YAML as cluster.yaml, then:
            ray up THIS_FILE
            ray exec THIS_FILE 'set -a; . ~/sprat/sprat.env; sprat up ~/sprat/cluster.yaml --address auto'
Images:   {image} and {gpu_image}: build them from the Dockerfile of this repository.
Network:  Ray's ports belong in a private network. Open {port} of the gateways' machines to clients, no more.
No secret is in this file.
"""

SPRAT_FOLDER = "~/sprat"
WITH_SECRETS = f"set -a; . {SPRAT_FOLDER}/sprat.env; set +a; ulimit -n 65536;"
IDLE_MINUTES = 5
HEAD = "head"
DEFAULT_REGION: dict[Provider, tuple[str, str]] = {
    "aws": ("us-west-2", "us-west-2a,us-west-2b"),
    "gcp": ("us-west1", "us-west1-a"),
}
DISK_GB = 256


@dataclass(frozen=True, slots=True)
class LauncherOptions:
    """`machines`: chosen by the operator, per node class. `zone`: several separated by commas on AWS."""

    provider: Provider = "aws"
    region: str = ""
    zone: str = ""
    project: str = ""
    image: str = "sprat:cpu"
    gpu_image: str = "sprat:cuda"
    machines: dict[str, Machine] = field(default_factory=dict)


def launcher_cluster(config: ClusterConfig, options: LauncherOptions) -> dict[str, Any]:
    """Raises ConfigError with what is missing."""
    if options.provider == "gcp" and not options.project:
        raise ConfigError("Google Cloud needs a project. Give --project.")
    if is_loopback(config.gateway.host) and config.gateway.node_class is not None:
        raise ConfigError(
            f"gateway.host is {config.gateway.host}: nothing outside its machine could call it. "
            "Set it to 0.0.0.0."
        )
    groups = [_group(config, name, options) for name in classes_in_use(config)]
    region, zone = DEFAULT_REGION[options.provider]
    provider: dict[str, Any] = {
        "type": options.provider,
        "region": options.region or region,
        "availability_zone": options.zone or zone,
    }
    if options.provider == "gcp":
        provider["project_id"] = options.project
    head_machine = MACHINES[options.provider]["CPU"]
    return {
        "cluster_name": dns_label(config.name),
        "max_workers": sum(group.max_nodes for group, _ in groups),
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "head_image": options.image,
            "worker_image": options.image,
            "container_name": "sprat",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536"],
        },
        "file_mounts": {
            f"{SPRAT_FOLDER}/sprat.env": "./sprat.env",
            f"{SPRAT_FOLDER}/cluster.yaml": "./cluster.yaml",
        },
        "available_node_types": {
            HEAD: {
                # No replica on the head: Ray's control plane dies with what runs beside it.
                "resources": {"CPU": 0},
                "node_config": _node_config(head_machine, options.provider, spot=False),
                "min_workers": 0,
                "max_workers": 0,
            },
            **{group.node_class: _node_type(group, machine, options) for group, machine in groups},
        },
        "head_node_type": HEAD,
        "head_start_ray_commands": [
            "ray stop",
            (
                f"{WITH_SECRETS} ray start --head --port=6379 --dashboard-host=127.0.0.1"
                " --autoscaling-config=~/ray_bootstrap_config.yaml"
            ),
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{WITH_SECRETS} ray start --address=$RAY_HEAD_IP:6379",
        ],
    }


def _group(config: ClusterConfig, node_class: str, options: LauncherOptions) -> tuple[NodeGroup, Machine]:
    if node_class == HEAD:
        raise ConfigError(f"a node class cannot be called {HEAD!r} here. Rename it.")
    machine = machine_for(node_class, config.node_classes[node_class], options.provider, options.machines)
    try:
        return node_group(config, node_class, machine.size), machine
    except ValueError as error:
        raise ConfigError(
            f"{error} ({machine.instance_type}). Give a larger one: "
            f"--machine {node_class}=TYPE:CPUS:GPUS:MEMORY_GIB."
        ) from error


def _node_type(group: NodeGroup, machine: Machine, options: LauncherOptions) -> dict[str, Any]:
    resources = {"CPU": machine.size.cpus}
    if machine.size.gpus:
        resources["GPU"] = machine.size.gpus
    rendered: dict[str, Any] = {
        "resources": resources,
        "labels": group.labels,
        "node_config": _node_config(machine, options.provider, spot=group.node.market == "spot"),
        "min_workers": group.min_nodes,
        "max_workers": group.max_nodes,
    }
    if machine.size.gpus:
        rendered["docker"] = {"worker_image": options.gpu_image}
    return rendered


def _node_config(machine: Machine, provider: Provider, *, spot: bool) -> dict[str, Any]:
    if provider == "aws":
        node: dict[str, Any] = {
            "InstanceType": machine.instance_type,
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}
            ],
        }
        return node | ({"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {})
    disk = {
        "boot": True,
        "autoDelete": True,
        "type": "PERSISTENT",
        "initializeParams": {
            "diskSizeGb": DISK_GB,
            "sourceImage": "projects/deeplearning-platform-release/global/images/family/common-cpu",
        },
    }
    node = {"machineType": machine.instance_type, "disks": [disk]}
    if machine.size.gpus:
        disk["initializeParams"] = {
            "diskSizeGb": DISK_GB,
            "sourceImage": "projects/deeplearning-platform-release/global/images/family/common-cu128",
        }
        # A machine with cards cannot move to another host while it runs.
        node["scheduling"] = [{"onHostMaintenance": "TERMINATE"}]
    if spot:
        node.setdefault("scheduling", []).append({"preemptible": True})
    return node
