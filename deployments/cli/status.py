"""`sprat status`: nodes, pools, replicas, queue, adapters, money."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table

from deployments.cluster_status import cluster_status
from deployments.state_folder import StateFolder


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def status(state: StateFolder, *, as_json: bool) -> None:
    """Show what runs."""
    found = asyncio.run(cluster_status(state))
    if as_json:
        click.echo(json.dumps(found))
        return
    Console().print(summary(found))


def summary(found: dict[str, Any]) -> RenderableType:
    """For people. Nothing of it is parsed by anybody."""
    if found["phase"] == "down":
        return "No cluster runs from this state folder. `make up` or `sprat up FILE` starts one."
    parts: list[RenderableType] = [
        f"sprat {found['version']}: {'ready' if found['ready'] else found['phase']}, endpoint {found['endpoint']}, "
        f"Redis {found['redis']['kind']} {found['redis']['state']}"
    ]
    if found["problem"]:
        parts.append(f"[red]{found['problem']}[/red]")
    parts += [_nodes(found["nodes"]), _pools(found["pools"])]
    parts += [f"[red]{pool['name']}: {pool['problem']}[/red]" for pool in found["pools"] if pool["problem"]]
    queue, spend = found["queue"], found["spend"]
    parts.append(
        f"queue: interactive {queue['interactive']}, normal {queue['normal']}, batch {queue['batch']}   "
        f"today: {spend['calls']} calls, {spend['today_usd']:.6f} USD spent, "
        f"{spend['saved_usd']:.6f} USD saved against the large tier (declared prices)"
    )
    return Group(*parts)


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = Table("node", "address", "labels", "CPU", "GPU", title="Nodes", title_justify="left")
    for node in nodes:
        labels = {key: value for key, value in node["labels"].items() if not key.startswith("ray.io/")}
        shown = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"
        resources = node["resources"]
        table.add_row(
            node["id"][:12], node["address"], shown, f"{resources.get('CPU', 0):g}", f"{resources.get('GPU', 0):g}"
        )
    return table


def _pools(pools: list[dict[str, Any]]) -> Table:
    table = Table(
        "pool", "tier", "base model", "engine", "node class", "ready", "replica", "state", "node", "load", "adapters",
        "USD/M out", title="Pools", title_justify="left",
    )  # fmt: skip
    for pool in pools:
        replicas = pool["replicas"] or [None]
        for index, replica in enumerate(replicas):
            head = (
                (
                    pool["name"], pool["tier"], pool["base_model"], pool["engine"], pool["node_class"],
                    f"{pool['ready']}/{pool['target']}",
                )
                if index == 0
                else ("", "", "", "", "", "")
            )  # fmt: skip
            table.add_row(*head, *_replica(replica), f"{pool['price']['output_usd_per_mtok']:.4f}")
    return table


def _replica(replica: dict[str, Any] | None) -> tuple[str, str, str, str, str]:
    if replica is None:
        return ("-", "none yet", "-", "-", "-")
    state = replica["state"] + (f": {replica['detail']}" if replica["detail"] else "")
    adapters = ", ".join(f"{adapter['id']} ({adapter['state']})" for adapter in replica["adapters"]) or "-"
    return (
        replica["id"],
        state,
        replica["node"],
        f"{replica['outstanding_requests']}/{replica['max_concurrency']}",
        adapters,
    )
