"""`sprat route BODY`: the decision for a request, without running it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cluster.config import ClusterConfig
from cluster.cost import node_seconds, usd
from cluster.errors import InvalidRequest, UnknownModel
from cluster.router.router import Router
from cluster.types import Candidate, Decision, RequestFeatures
from deployments.cli.running_config import running_config
from deployments.gateway.cascade import without_drafts
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
    "--draw",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="The call's own chance, for policies that leave something to it.",
)
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
    draw: float,
    path: str | None,
) -> None:
    """Print the routing decision for a request BODY (JSON, or - for standard input)."""
    raw = (sys.stdin.read() if body == "-" else body).encode("utf-8", "replace")
    config = running_config(state, config_path)
    chat = b'"messages"' in raw
    endpoint = ENDPOINTS[path or ("/v1/chat/completions" if chat else "/v1/completions")]
    try:
        parsed = endpoint.parse(raw)
        features = endpoint.features(parsed, tier)
        decision = Router.of(config).route(features, draw)
        decision = without_drafts(decision, endpoint, parsed)
    except (InvalidRequest, UnknownModel) as error:
        raise click.UsageError(error.message) from error
    shown = as_fields(decision, config, features)
    if as_json:
        click.echo(json.dumps(shown))
        return
    click.echo(f"tier {shown['tier']}, model {shown['model']}, because {shown['reason']}")
    for candidate in decision.candidates:
        click.echo(f"  {_line(candidate)}")
    if decision.cascade is not None:
        drafts = decision.cascade.drafts
        click.echo(
            f"verified by {decision.cascade.policy}{f' ({drafts} drafts)' if drafts > 1 else ''}, then"
        )
        for candidate in decision.cascade.then.candidates:
            click.echo(f"  {_line(candidate)}")


def _line(candidate: Candidate) -> str:
    line = f"{candidate.tier}: {candidate.model} on pool {candidate.pool}"
    line += f", at most {usd(candidate.estimated_cost_micro_usd):.6f} USD"
    if candidate.p_success is not None:
        line += f", right with P = {candidate.p_success:.2f}"
    if candidate.expected_micro_usd is not None:
        line += f", {usd(candidate.expected_micro_usd):.6f} USD per right answer"
    return line


def as_fields(decision: Decision, config: ClusterConfig, features: RequestFeatures) -> dict[str, object]:
    """COMMANDS.md. `cost_usd` and `node_s` (GPU-seconds, where a node is one GPU) are with all output tokens
    that the call may take; `p_success` is null where the policy has no estimate; `then` are the candidates
    after a refused draft."""

    def of(candidate: Candidate) -> dict[str, object]:
        tokens = features.prompt_tokens_estimate, candidate.max_tokens * features.sequences
        expected = candidate.expected_micro_usd
        return {
            "tier": candidate.tier,
            "model": candidate.model,
            "adapter": candidate.adapter,
            "pool": candidate.pool,
            "p_success": candidate.p_success,
            "cost_usd": usd(candidate.estimated_cost_micro_usd),
            "expected_cost_usd": None if expected is None else usd(expected),
            "node_s": round(node_seconds(config.pools[candidate.pool], *tokens), 6),
        }

    first, cascade = decision.first, decision.cascade
    return {
        "tier": first.tier,
        "model": first.model,
        "adapter": first.adapter,
        "reason": decision.reason,
        "policy": decision.policy,
        "action": decision.action,
        "probability": decision.probability,
        "candidates": [of(candidate) for candidate in decision.candidates],
        "then": [] if cascade is None else [of(candidate) for candidate in cascade.then.candidates],
    }
