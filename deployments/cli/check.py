"""`sprat check FILE`: every error of a cluster YAML, with its path and the fix."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import click

from cluster.config import ConfigProblems, Problem, load_config
from cluster.cost import prices, usd
from cluster.errors import ConfigError
from cluster.placement.memory import GIB, replica_memory_bytes
from cluster.router.router import Router


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
    pools = [
        {
            "name": name,
            "tier": pool.tier,
            "base_model": pool.base_model,
            "prompt_usd_per_mtok": usd(price_of[name].prompt_micro_usd_per_mtok),
            "output_usd_per_mtok": usd(price_of[name].output_micro_usd_per_mtok),
            "replica_memory_gib": round(
                replica_memory_bytes(pool, config.base_models[pool.base_model]) / GIB, 1
            ),
        }
        for name, pool in config.pools.items()
    ]
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
