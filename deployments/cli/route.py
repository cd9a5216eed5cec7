"""`sprat route BODY`: the decision for a request, without running it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from cluster.config import ClusterConfig, load_config
from cluster.cost import usd
from cluster.errors import InvalidRequest, UnknownModel
from cluster.router.router import Router
from cluster.types import Decision
from deployments.cli.up import EXAMPLE
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.state_folder import StateFolder


@click.command()
@click.argument("body")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="YAML; default: the running cluster's."
)
@click.option("--tier", help="As the header x-sprat-tier would.")
@click.option(
    "--path",
    type=click.Choice(sorted(ENDPOINTS)),
    help="The route that the body is for; default: chat, or completions for a body without messages.",
)
@click.pass_obj
def route(
    state: StateFolder,
    body: str,
    *,
    as_json: bool,
    config_path: Path | None,
    tier: str | None,
    path: str | None,
) -> None:
    """Print the routing decision for a request BODY (JSON, or - for standard input)."""
    raw = (sys.stdin.read() if body == "-" else body).encode("utf-8", "replace")
    running = state.read_supervisor() or {}
    if config_path is None and "running" in running:
        config = ClusterConfig.model_validate(running["running"])
    else:
        config = load_config(config_path or EXAMPLE, os.environ)
    chat = b'"messages"' in raw
    endpoint = ENDPOINTS[path or ("/v1/chat/completions" if chat else "/v1/completions")]
    try:
        decision = Router.of(config).route(endpoint.features(endpoint.parse(raw), tier))
    except (InvalidRequest, UnknownModel) as error:
        raise click.UsageError(error.message) from error
    shown = as_fields(decision)
    if as_json:
        click.echo(json.dumps(shown))
        return
    click.echo(f"tier {shown['tier']}, model {shown['model']}, because {shown['reason']}")
    for candidate in decision.candidates:
        worst_case_usd = usd(candidate.estimated_cost_micro_usd)
        where = f"{candidate.tier}: {candidate.model} on pool {candidate.pool}"
        click.echo(f"  {where}, at most {worst_case_usd:.6f} USD")


def as_fields(decision: Decision) -> dict[str, object]:
    """COMMANDS.md. `cost_usd` is the worst case; `p_success` is null where the policy has no estimate."""
    first = decision.first
    return {
        "tier": first.tier,
        "model": first.model,
        "adapter": first.adapter,
        "reason": decision.reason,
        "policy": decision.policy,
        "candidates": [
            {
                "tier": candidate.tier,
                "model": candidate.model,
                "adapter": candidate.adapter,
                "pool": candidate.pool,
                "p_success": candidate.p_success,
                "cost_usd": usd(candidate.estimated_cost_micro_usd),
            }
            for candidate in decision.candidates
        ],
    }
