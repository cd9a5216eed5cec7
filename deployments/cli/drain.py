"""`sprat drain`: a node will go; its replicas start elsewhere first."""

from __future__ import annotations

import json
import os

import click

from cluster.errors import StartError
from deployments.drain import drain_node, node_named
from deployments.ray_cluster import ray_environment
from deployments.state_folder import StateFolder


@click.command()
@click.argument("node")
@click.option("--deadline", "deadline_s", default=120, show_default=True, help="Seconds until it is gone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_obj
def drain(state: StateFolder, *, node: str, deadline_s: int, as_json: bool) -> None:
    """Leave NODE (its sprat.node label, or its id): nothing new starts there, replicas go on elsewhere."""
    record = state.read_supervisor()
    if record is None or "ray_address" not in record:
        raise StartError("no cluster runs from this state folder. `sprat up FILE` starts one.")
    node_id = node_named(node, state.read_observed().get("nodes", []))
    environment = os.environ | ({} if record.get("joined") else ray_environment(state))
    drain_node(record["ray_address"], node_id, deadline_s, environment)
    told = {"node": node_id, "deadline_s": deadline_s}
    click.echo(json.dumps(told) if as_json else f"{node} is left; `sprat status` shows where replicas go.")
