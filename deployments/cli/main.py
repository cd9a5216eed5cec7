"""`sprat`: verbs and exit codes. 0 = did its work, 1 = failed, 2 = the configuration or the call is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cluster.errors import ConfigError, SpratError
from deployments.cli import (
    adapters,
    bench,
    budget,
    check,
    down,
    drain,
    evaluate,
    explain,
    keys,
    loadtest,
    logs,
    models,
    render,
    replay,
    route,
    router,
    status,
    up,
)
from deployments.state_folder import STATE_VARIABLE, StateFolder
from deployments.version import version


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(), prog_name="sprat")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar=STATE_VARIABLE,
    default=Path(".sprat"),
    show_default=True,
    help="Folder that holds this cluster's state.",
)
@click.pass_context
def sprat(context: click.Context, state: Path) -> None:
    """Small specialist models answer the routine calls of agents; a large one stays in reserve."""
    context.obj = StateFolder(state.absolute())


for command in (
    *(up.up, down.down, drain.drain, status.status, check.check, route.route, logs.logs),
    *(keys.keys, budget.budget, bench.bench, loadtest.loadtest, evaluate.evaluation, router.router),
    *(explain.explain, replay.replay, render.render, adapters.adapters, models.models),
):
    sprat.add_command(command)


def main() -> None:
    try:
        sprat.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        click.echo(f"sprat: {error}", err=True)
        sys.exit(2)
    except SpratError as error:
        click.echo(f"sprat: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
