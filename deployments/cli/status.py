"""`sprat status`: nodes, pools, replicas, queue, adapters, money."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.cluster_status import cluster_status
from deployments.state_folder import StateFolder

PIPE_WIDTH = 160


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def status(state: StateFolder, *, as_json: bool) -> None:
    """Show what runs."""
    found = asyncio.run(cluster_status(state))
    if as_json:
        click.echo(json.dumps(found))
        return
    # A pipe has no width; wide enough that nothing is cut.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(summary(found))


def summary(found: dict[str, Any]) -> RenderableType:
    """For people. Nothing of it is parsed by anybody."""
    if found["phase"] == "down":
        return "No cluster runs from this state folder. `make up` or `sprat up FILE` starts one."
    state = "ready" if found["ready"] else found["phase"]
    redis = f"{found['redis']['kind']} {found['redis']['state']}"
    headline = f"sprat {found['version']}: {state}, endpoint {found['endpoint']}, Redis {redis}"
    parts: list[RenderableType] = [headline]
    if found["problem"]:
        parts.append(Text(found["problem"], style="red"))
    parts += [_nodes(found["nodes"]), _pools(found["pools"]), _replicas(found["pools"])]
    parts += [
        Text(f"{pool['name']}: {pool['problem']}", style="red") for pool in found["pools"] if pool["problem"]
    ]
    queue, spend = found["queue"], found["spend"]
    parts.append(
        f"queue: interactive {queue['interactive']}, normal {queue['normal']}, batch {queue['batch']}   "
        f"today: {spend['calls']} calls, {spend['today_usd']:.6f} USD spent, "
        f"{spend['saved_usd']:.6f} USD saved against the large tier (declared prices)"
    )
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)


def _nodes(nodes: list[dict[str, Any]]) -> Table:
    table = _table("Nodes", "node", "address", "labels", "CPU", "GPU")
    for node in nodes:
        labels = {key: value for key, value in node["labels"].items() if not key.startswith("ray.io/")}
        shown = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"
        resources = node["resources"]
        table.add_row(
            node["id"][:12],
            node["address"],
            shown,
            f"{resources.get('CPU', 0):g}",
            f"{resources.get('GPU', 0):g}",
        )
    return table


def _pools(pools: list[dict[str, Any]]) -> Table:
    title = "Pools (prices follow from declared node prices)"
    table = _table(
        title, "pool", "tier", "base model", "engine", "node class", "ready", "USD/M in", "USD/M out"
    )
    for pool in pools:
        table.add_row(
            pool["name"],
            pool["tier"],
            pool["base_model"],
            pool["engine"],
            pool["node_class"],
            "asleep" if pool["asleep"] else f"{pool['ready']}/{pool['target']}",
            f"{pool['price']['prompt_usd_per_mtok']:.4f}",
            f"{pool['price']['output_usd_per_mtok']:.4f}",
        )
    return table


def _replicas(pools: list[dict[str, Any]]) -> Table:
    table = _table("Replicas", "replica", "state", "node", "busy", "memory", "kernels", "adapters")
    for pool in pools:
        for replica in pool["replicas"]:
            adapters = ", ".join(f"{adapter['id']} ({adapter['state']})" for adapter in replica["adapters"])
            table.add_row(
                replica["id"],
                replica["state"] + (f": {replica['detail']}" if replica["detail"] else ""),
                replica["node"],
                f"{replica['outstanding_requests']}/{replica['max_concurrency']}",
                f"{replica['rss_bytes'] / 2**30:.1f} GiB",
                replica["kernels"],
                adapters or "-",
            )
        if not pool["replicas"]:
            state = "asleep" if pool["asleep"] else "none yet"
            table.add_row(f"{pool['name']}-…", state, "-", "-", "-", "-", "-")
    return table
