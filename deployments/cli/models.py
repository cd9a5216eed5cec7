"""`sprat models`: the families of the catalogue, what each needs, and what was seen to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import click
import yaml

from cluster.catalogue import Entry, Family, Standing, entry_named, families, read_proofs, standing
from cluster.config.memory import GIB
from deployments.catalogue.versions import vllm_version
from deployments.cli.tables import print_table


@click.group()
def models() -> None:
    """Model families: what they need, and which were seen to run."""


@models.command("list")
@click.option("--family", "only", help="This family.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def list_models(only: str | None, *, as_json: bool) -> None:
    """Every model of the catalogue with its status: real, tiny, registered or unsupported."""
    catalogue = [family for family in families() if only in (None, family.family)]
    if not catalogue:
        known = ", ".join(family.family for family in families())
        raise click.UsageError(f"there is no family {only!r}; families are {known}")
    rows = _rows(catalogue)
    if as_json:
        told = [
            {
                "family": family.family,
                "title": family.title,
                "publisher": family.publisher,
                "entries": [row.told() for row in rows if row.family is family],
            }
            for family in catalogue
        ]
        click.echo(json.dumps({"vllm": vllm_version(), "families": told}))
        return
    print_table(
        ("family", "model", "parameters", "context", "tools", "reasoning", "LoRA", "status", "reason"),
        [row.line() for row in rows],
    )


@models.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def show_model(model: str, *, as_json: bool) -> None:
    """All that is known of MODEL, and how it stands in a cluster YAML."""
    family, entry = entry_named(model)
    (row,) = (each for each in _rows([family]) if each.entry is entry)
    if as_json:
        proof = row.standing.proof
        click.echo(
            json.dumps(
                {
                    "family": family.family,
                    **row.told(),
                    **entry.model_dump(mode="json", exclude={"model", "architecture"}),
                    "proof": proof.model_dump() if proof is not None else None,
                }
            )
        )
        return
    for name, value in _facts(family, row):
        click.echo(f"{name:>18}  {value}")
    click.echo("\nIn a cluster YAML:\n")
    click.echo(yaml.safe_dump(_yaml_of(entry), sort_keys=False, width=100))


@dataclass(frozen=True, slots=True)
class _Row:
    family: Family
    entry: Entry
    standing: Standing

    def told(self) -> dict[str, Any]:
        entry = self.entry
        return {
            "model": entry.model,
            "architecture": entry.architecture,
            "status": self.standing.status,
            "reason": self.standing.reason,
            "parameters": entry.parameters,
            "context_tokens": entry.context_tokens,
            "weight_memory_bytes": entry.weight_memory_bytes,
            "kv_bytes_per_token": entry.kv_cache.bytes_per_token if entry.kv_cache else None,
            "adapters": self.adapters,
        }

    @property
    def adapters(self) -> bool | None:
        """Whether an adapter was seen to work; None: not tried."""
        if self.entry.no_adapters is not None:
            return False
        return self.standing.proof.adapter.ok if self.standing.proof is not None else None

    def line(self) -> tuple[str, ...]:
        entry = self.entry
        return (
            self.family.family,
            entry.model,
            _count(entry.parameters),
            str(entry.context_tokens),
            entry.tool_call_parser or "-",
            entry.reasoning_parser or "-",
            {True: "yes", False: "no", None: "?"}[self.adapters],
            self.standing.status,
            self.standing.reason,
        )


def _rows(catalogue: list[Family]) -> list[_Row]:
    proofs, vllm = read_proofs(), vllm_version()
    return [
        _Row(family, entry, standing(family.family, entry, proofs, vllm))
        for family in catalogue
        for entry in family.entries
    ]


def _facts(family: Family, row: _Row) -> list[tuple[str, str]]:
    entry = row.entry
    active = f", {_count(entry.active_parameters)} active per token" if entry.active_parameters else ""
    found = [
        ("model", f"{entry.model}: {family.title} by {family.publisher}"),
        ("repository", f"https://huggingface.co/{entry.repository}"),
        ("licence", entry.licence),
        ("status", f"{row.standing.status}: {row.standing.reason}"),
        ("figures", {"weights": "compared with the weights", "declared": "as declared"}[entry.checked]),
        ("architecture", entry.architecture),
        ("parameters", _count(entry.parameters) + active),
        ("context", f"{entry.context_tokens} tokens"),
        ("memory", _memory(entry)),
        ("chat template", entry.chat_template),
        ("tool calls", entry.tool_call_parser or "no parser"),
        ("reasoning", entry.reasoning_parser or "no parser"),
        ("quantisations", ", ".join(entry.quantisations) or "-"),
        ("LoRA", entry.no_adapters or ", ".join(entry.adapter_targets) or "-"),
        ("notes", entry.notes),
    ]
    return [(name, value) for name, value in found if value]


def _memory(entry: Entry) -> str:
    weights = f"{entry.weight_memory_bytes / GIB:.1f} GiB of weights"
    if entry.kv_cache is None:
        return weights
    per_token = entry.kv_cache.bytes_per_token
    return (
        f"{weights}; {per_token / 1024:.0f} KiB of cache per token, "
        f"{per_token * entry.context_tokens / GIB:.1f} GiB for one full context"
    )


def _yaml_of(entry: Entry) -> dict[str, Any]:
    base_model: dict[str, Any] = {"source": entry.source or f"hf:{entry.repository}@main"}
    if entry.sha256 is not None:
        base_model["sha256"] = entry.sha256
    base_model["parameters"] = entry.parameters
    if entry.kv_cache is not None:
        base_model["kv_bytes_per_token"] = entry.kv_cache.bytes_per_token
    base_model["licence"] = entry.licence
    pool = {"base_model": entry.model, "engine_options": [*entry.parser_flags, *entry.engine_options]}
    return {"base_models": {entry.model: base_model}, "pools": {"NAME": pool}}


def _count(parameters: int) -> str:
    if parameters < 999.5e6:
        return f"{parameters / 1e6:.0f}M"
    return f"{parameters / 1e9:.1f}B" if parameters < 1e11 else f"{parameters / 1e9:.0f}B"
