"""`sprat check FILE`: every error of a cluster YAML, with its path and the fix."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cluster.config import ClusterConfig, ConfigProblems, Problem, load_config
from cluster.config.memory import GIB, classes_that_fit, replica_memory, usable_bytes
from cluster.cost import prices, usd
from cluster.errors import ConfigError
from cluster.router.router import Router
from cluster.types import Price


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def check(file: Path, *, as_json: bool) -> None:
    """Check a cluster YAML without starting anything."""
    try:
        config = load_config(file, os.environ)
        Router.of(config)
    except ConfigError as error:
        if not as_json:
            raise
        unreadable = [Problem("(file)", error.message, "")]
        problems = error.problems if isinstance(error, ConfigProblems) else unreadable
        click.echo(json.dumps({"ok": False, "problems": [asdict(problem) for problem in problems]}))
        raise SystemExit(2) from None
    price_of = prices(config)
    pools = [_pool(config, name, price_of[name]) for name in config.pools]
    if as_json:
        click.echo(json.dumps({"ok": True, "problems": [], "pools": pools}))
        return
    click.echo(f"{file} is fine: {len(config.tiers)} tiers, {len(pools)} pools.")
    for each in pools:
        click.echo(
            f"  {each['name']}: tier {each['tier']}, {each['base_model']}, "
            f"{each['prompt_usd_per_mtok']:.4f} / {each['output_usd_per_mtok']:.4f} USD per million prompt / "
            "output tokens, "
            f"{each['replica_memory_gib']} GiB per replica"
        )
        if each["replica_memory_gib"]:  # an upstream takes none
            click.echo(f"    {each['arithmetic']} of {each['memory_of']}; {_fits(each)}")


def _pool(config: ClusterConfig, name: str, price: Price) -> dict[str, Any]:
    pool = config.pools[name]
    model = config.base_models[pool.base_model]
    node = config.node_classes[pool.node_class]
    need = replica_memory(pool, model)
    usable = usable_bytes(pool, node)
    return {
        "name": name,
        "tier": pool.tier,
        "base_model": pool.base_model,
        "prompt_usd_per_mtok": usd(price.prompt_micro_usd_per_mtok),
        "output_usd_per_mtok": usd(price.output_micro_usd_per_mtok),
        "replica_memory_gib": round(need.total_bytes / GIB, 1),
        "arithmetic": need.arithmetic,
        "memory_of": "each card" if need.on_cards else "main memory",
        "node_class": pool.node_class,
        "node_usd_per_hour": node.paid_usd_per_hour,
        "usable_memory_gib": None if usable is None else round(usable / GIB, 1),
        "fits": list(classes_that_fit(pool, model, config.node_classes)),
    }


def _fits(pool: dict[str, Any]) -> str:
    if pool["usable_memory_gib"] is None:
        return f"node class {pool['node_class']} declares no memory, so it is looked at when it starts"
    fits = ", ".join(pool["fits"])
    return f"node class {pool['node_class']} gives it {pool['usable_memory_gib']} GiB (fits: {fits})"
