"""`sprat adapters …`: the registry of adapters, and where they are."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cluster.adapters.errors import BaseMismatch
from cluster.adapters.fit import pool_fits
from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterVersion, Lineage, check_name
from cluster.config import AUTO, ClusterConfig, adapter_name
from cluster.store.adapters import MAX_COPIES, AdapterChange
from deployments.adapters.checking import SourceState, check_source, source_state
from deployments.adapters.whereabouts import ReplicaAdapters, whereabouts
from deployments.cli.running_config import running_config
from deployments.cli.store import opened_store
from deployments.cli.tables import print_table
from deployments.state_folder import StateFolder

as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="YAML; default: the running cluster's."
)


class JsonObjectFile(click.ParamType[dict[str, Any]]):
    name = "file.json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = json.loads(Path(value).read_text(encoding="utf-8"))
        except OSError as error:
            self.fail(f"{value} cannot be read: {error.strerror}.", param, ctx)
        except ValueError as error:
            self.fail(f"{value} is no JSON: {error}.", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value} holds no JSON object.", param, ctx)
        return found


@click.group()
def adapters() -> None:
    """The registry of adapters, with the cluster up or down. A running one obeys within seconds."""


@adapters.command()
@click.argument("name")
@click.argument("source")
@click.option("--base-model", required=True, help="The base model that it was trained on, as in the YAML.")
@click.option("--recipe", default="", help="What it was trained by.")
@click.option("--dataset-hash", default="", help="What it was trained on.")
@click.option(
    "--gate", type=JsonObjectFile(), default=None, metavar="FILE.json", help="The result of its evaluation."
)
@click.option("--live", is_flag=True, help="It answers to NAME at once.")
@config_option
@as_json_option
@click.pass_obj
def add(
    state: StateFolder,
    *,
    name: str,
    source: str,
    base_model: str,
    recipe: str,
    dataset_hash: str,
    gate: Mapping[str, Any] | None,
    live: bool,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Check the adapter at SOURCE and register it as the next version of NAME.

    SOURCE is folder:PATH, hf:REPO@REVISION or s3://BUCKET/PREFIX; every node fetches from there."""
    check_name(name)
    config = running_config(state, config_path)
    _check_free(name, config)
    checked, pinned = check_source(source, base_model, config)
    with opened_store(state) as store:
        added = store.adapters.add(
            name,
            base_model=base_model,
            content=checked.content,
            source=str(pinned),
            who=_who(),
            lineage=Lineage(recipe, dataset_hash, gate or {}),
        )
        version = added.version
        if live:
            version = store.adapters.move(version.adapter_id, AdapterLife.LIVE, who=_who())
    warnings = [*checked.warnings, *_unservable(version, config)]
    if as_json:
        found = {"adapter": version_fields(version), "is_new": added.is_new, "warnings": warnings}
        click.echo(json.dumps(found))
        return
    for warning in warnings:
        click.echo(f"sprat: {warning}", err=True)
    what = "registered" if added.is_new else "registered before, with the same files"
    click.echo(f"{version.adapter_id} ({version.state}) is {what}: rank {version.rank}, {_modules(version)}.")


@adapters.command("list")
@as_json_option
@click.pass_obj
def list_(state: StateFolder, *, as_json: bool) -> None:
    """Show all versions, retired ones too."""
    with opened_store(state) as store:
        versions, copies = store.adapters.versions(), store.adapters.copies()
    if as_json:
        found = [version_fields(version, copies.get(version.adapter_id)) for version in versions]
        click.echo(json.dumps({"adapters": found}))
        return
    print_table(
        ("adapter", "state", "base model", "rank", "modules", "MB", "copies", "made", "source"),
        [
            (
                version.adapter_id,
                version.state,
                version.base_model,
                str(version.rank),
                _modules(version),
                f"{version.size_bytes / 1e6:.1f}",
                _copies(copies.get(version.adapter_id)),
                _moment(version.created_at_ms)[:10],
                version.source,
            )
            for version in versions
        ],
    )


@adapters.command()
@click.argument("adapter")
@click.option("--no-fetch", is_flag=True, help="Leave the source alone.")
@config_option
@as_json_option
@click.pass_obj
def show(
    state: StateFolder, *, adapter: str, no_fetch: bool, config_path: Path | None, as_json: bool
) -> None:
    """Show everything about ADAPTER (NAME@N, or NAME for the live version), and whether it can be served.

    The files are fetched from the source and checked once more."""
    config = running_config(state, config_path)
    with opened_store(state) as store:
        version = store.adapters.find(adapter)
        copies = store.adapters.copies().get(version.adapter_id)
        history = store.adapters.history(version.name)
    source = SourceState("not_fetched") if no_fetch else source_state(version, config)
    fits = pool_fits(version, config)
    replicas = _holding(version.adapter_id, _whereabouts(state) or ())
    if as_json:
        shown = {
            "adapter": version_fields(version, copies),
            "source": {"state": source.state, "detail": source.detail},
            "pools": [
                {"pool": fit.pool, "usable": fit.usable, "state": fit.state, "detail": fit.detail}
                for fit in fits
            ],
            "replicas": replicas,
            "history": [change_fields(change) for change in history],
        }
        click.echo(json.dumps(shown))
        return
    click.echo(
        f"{version.adapter_id}: {version.state}, for {version.base_model}, rank {version.rank}, "
        f"{_modules(version)}, {version.size_bytes / 1e6:.1f} MB, copies {_copies(copies)}"
    )
    click.echo(f"content {version.content_hash}")
    click.echo(f"source {version.source}: {_said(source.state, source.detail)}")
    for fit in fits:
        click.echo(f"pool {fit.pool}: {_said(fit.state, fit.detail)}")
    for replica in replicas:
        click.echo(f"replica {replica['id']}: {_said(replica['state'], replica['detail'])}")
    for change in history:
        before = "" if change.state_before is None else f"{change.state_before} → "
        note = f" ({change.note})" if change.note else ""
        when = _moment(change.at_ms)
        click.echo(f"{when} {change.adapter_id}: {before}{change.state_after} by {change.who}{note}")


@adapters.command()
@click.argument("adapter_ids", nargs=-1)
@click.option(
    "--copies",
    type=click.IntRange(0, MAX_COPIES),
    help="How many replicas shall hold it, whatever the demand.",
)
@click.option("--as-demanded", is_flag=True, help="Take such a wish back.")
@as_json_option
@click.pass_obj
def place(
    state: StateFolder,
    *,
    adapter_ids: tuple[str, ...],
    copies: int | None,
    as_demanded: bool,
    as_json: bool,
) -> None:
    """Show which replicas hold ADAPTER_IDS and which shall (default: all); with --copies, pin them first."""
    if copies is not None and as_demanded:
        raise click.UsageError("--copies and --as-demanded contradict each other.")
    changes = copies is not None or as_demanded
    if changes and not adapter_ids:
        raise click.UsageError("Name the adapters whose copies change.")
    with opened_store(state) as store:
        wanted = [store.adapters.find(each).adapter_id for each in adapter_ids]
        if changes:
            for adapter_id in wanted:
                store.adapters.set_copies(adapter_id, copies, who=_who())
        wishes = store.adapters.copies()
        wanted = wanted or [version.adapter_id for version in store.adapters.usable()]
    replicas = _whereabouts(state)
    holding = {each: _holding(each, replicas or ()) for each in wanted}
    if as_json:
        found = [{"id": each, "copies": wishes.get(each), "replicas": holding[each]} for each in wanted]
        click.echo(json.dumps({"adapters": found, "cluster": "down" if replicas is None else "up"}))
        return
    print_table(
        ("adapter", "copies", "replicas"),
        [
            (
                each,
                _copies(wishes.get(each)),
                ", ".join(f"{replica['id']} ({replica['state']})" for replica in holding[each]) or "-",
            )
            for each in wanted
        ],
    )
    if replicas is None:
        click.echo("No cluster runs from this state folder, so no replica holds anything.", err=True)


@adapters.command()
@click.argument("adapter_ids", nargs=-1, required=True)
@as_json_option
@click.pass_obj
def retire(state: StateFolder, *, adapter_ids: tuple[str, ...], as_json: bool) -> None:
    """End ADAPTER_IDS for good. A NAME whose live version is retired answers no more."""
    with opened_store(state) as store:
        ended = [store.adapters.move(each, AdapterLife.RETIRED, who=_who()) for each in adapter_ids]
    _told(ended, as_json=as_json)


@adapters.command()
@click.argument("adapter_id")
@click.option(
    "--to",
    type=click.Choice([each.value for each in (AdapterLife.SHADOW, AdapterLife.CANARY, AdapterLife.LIVE)]),
    default=AdapterLife.LIVE.value,
    show_default=True,
    help="How far.",
)
@click.option("--note", default="", help="Why, for the history.")
@as_json_option
@click.pass_obj
def promote(state: StateFolder, *, adapter_id: str, to: str, note: str, as_json: bool) -> None:
    """Make ADAPTER_ID (NAME@N) the version that answers to NAME; the one until now answers to NAME@N only."""
    with opened_store(state) as store:
        moved = store.adapters.move(adapter_id, AdapterLife(to), who=_who(), note=note)
    _told([moved], as_json=as_json)


@adapters.command()
@click.argument("name")
@click.option("--note", default="", help="Why, for the history.")
@as_json_option
@click.pass_obj
def rollback(state: StateFolder, *, name: str, note: str, as_json: bool) -> None:
    """Let the version of NAME answer again that did so before the present one."""
    with opened_store(state) as store:
        moved = store.adapters.rollback(name, who=_who(), note=note)
    _told([moved], as_json=as_json)


def version_fields(version: AdapterVersion, copies: int | None = None) -> dict[str, Any]:
    """Times in ISO 8601, UTC. `copies` null: as many as the demand asks for."""
    return {
        "id": version.adapter_id,
        "name": version.name,
        "version": version.number,
        "state": version.state.value,
        "base_model": version.base_model,
        "rank": version.rank,
        "target_modules": list(version.target_modules),
        "size_bytes": version.size_bytes,
        "content_hash": version.content_hash,
        "source": version.source,
        "created_at": _moment(version.created_at_ms),
        "lineage": {
            "recipe": version.lineage.recipe,
            "dataset_hash": version.lineage.dataset_hash,
            "gate": dict(version.lineage.gate),
        },
        "copies": copies,
    }


def change_fields(change: AdapterChange) -> dict[str, Any]:
    return {
        "revision": change.revision,
        "id": change.adapter_id,
        "at": _moment(change.at_ms),
        "who": change.who,
        "before": change.state_before,
        "after": change.state_after,
        "note": change.note,
    }


def _whereabouts(state: StateFolder) -> list[ReplicaAdapters] | None:
    return asyncio.run(whereabouts(state))


def _holding(adapter_id: str, replicas: Sequence[ReplicaAdapters]) -> list[dict[str, str]]:
    """The replicas that have something to do with an adapter."""
    found = []
    for each in replicas:
        state, detail = each.state_of(adapter_id)
        if state != "absent":
            replica = each.replica
            found.append({"id": replica.replica_id, "pool": replica.pool, "state": state, "detail": detail})
    return found


def _check_free(name: str, config: ClusterConfig) -> None:
    """Clients write it where they also write tiers and base models."""
    declared = {adapter_name(adapter_id) for adapter_id in config.adapters}
    for kind, names in (
        ("the router's own choice", {AUTO}),
        ("a tier", config.tiers),
        ("a base model", config.base_models),
        ("an adapter of the YAML", declared),
    ):
        if name in names:
            raise click.UsageError(f"{name!r} is {kind} already. Use another name.")


def _unservable(version: AdapterVersion, config: ClusterConfig) -> list[str]:
    """A warning where no pool can serve it: a registry outlives configurations, so it is no error."""
    fits = pool_fits(version, config)
    if any(fit.usable for fit in fits):
        return []
    near = [f"{fit.pool}: {fit.detail}" for fit in fits if fit.state != BaseMismatch.code]
    why = "; ".join(near) or f"none serves base model {version.base_model!r}"
    return [f"no pool of this configuration can serve it: {why}"]


def _told(versions: Sequence[AdapterVersion], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"adapters": [version_fields(version) for version in versions]}))
        return
    for version in versions:
        click.echo(f"{version.adapter_id} is {version.state}.")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"


def _modules(version: AdapterVersion) -> str:
    return ", ".join(version.target_modules)


def _copies(copies: int | None) -> str:
    return "as demanded" if copies is None else str(copies)


def _said(state: str, detail: str) -> str:
    return f"{state}: {detail}" if detail else state


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
