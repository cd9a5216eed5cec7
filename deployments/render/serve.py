"""`sprat render serve`: the Serve config of a cluster, for `serve deploy` and for KubeRay."""

from __future__ import annotations

from typing import Any

from cluster.config import ClusterConfig

HEADER = """Ray Serve config of the sprat cluster {name}, written by `sprat render serve`.

Use:      serve deploy THIS_FILE          (on a node of the Ray cluster, or with --address http://HEAD:8265)
Needs:    sprat installed on every node, and in the environment of every node before `ray start`:
          REDIS_URL, SPRAT_STORE_URL (PostgreSQL), SPRAT_GATEWAY_TOKEN, SPRAT_PEPPER
          (two secrets of 64 hexadecimal digits: `openssl rand -hex 32`). No secret is in this file.
Keys:     sprat keys create … with the same SPRAT_STORE_URL and SPRAT_PEPPER in the environment.
"""

GATEWAY_IMPORT_PATH = "deployments.app:build_gateway"
CONTROLLER_IMPORT_PATH = "deployments.app:build_controller"
POOL_IMPORT_PATH = "deployments.app:build_pool"


def serve_config(config: ClusterConfig) -> dict[str, Any]:
    """One application for the gateway, one for the controller where adapters are placed, and one per pool,
    the smallest tier first; each gets the whole YAML."""
    whole = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for section in ("redis", "store"):
        whole.get(section, {}).pop("url", None)  # may hold a password; nodes take it from their environment
    gateway = config.gateway
    by_proxy = gateway.serve_proxy_port is not None
    pools = sorted(config.pools, key=lambda name: config.tiers.index(config.pools[name].tier))
    rendered: dict[str, Any] = {"proxy_location": "EveryNode" if by_proxy else "Disabled"}
    if by_proxy:
        rendered["http_options"] = {"host": gateway.host, "port": gateway.serve_proxy_port}
    applications: list[dict[str, Any]] = [
        {
            "name": "gateway",
            "route_prefix": "/" if by_proxy else None,
            "import_path": GATEWAY_IMPORT_PATH,
            "args": {"config": whole},
        }
    ]
    if config.places_adapters:
        applications.append(
            {
                "name": "controller",
                "route_prefix": None,
                "import_path": CONTROLLER_IMPORT_PATH,
                "args": {"config": whole},
            }
        )
    applications += [
        {
            "name": f"pool-{name}",
            "route_prefix": None,
            "import_path": POOL_IMPORT_PATH,
            "args": {"config": whole, "pool": name},
        }
        for name in pools
    ]
    return rendered | {"applications": applications}
