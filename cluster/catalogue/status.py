"""How far a model of the catalogue has been seen to run. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cluster.catalogue.entry import Entry
from cluster.catalogue.proofs import Proof

Status = Literal["real", "tiny", "registered", "unsupported"]


@dataclass(frozen=True, slots=True)
class Standing:
    """`real`: its own weights answered on a replica. `tiny`: its architecture did, with random weights.
    `registered`: vLLM has the architecture, but it was not seen to run; `reason` says why. `unsupported`:
    vLLM does not have it."""

    status: Status
    reason: str
    proof: Proof | None = None


def standing(family: str, entry: Entry, proofs: Iterable[Proof], vllm: str | None) -> Standing:
    """The best that was seen. A family that was not tried itself is judged by another one of the same
    architecture, whose parsers may differ.

    `vllm` is the installed version, None where there is none. A proof of another version says so."""
    if entry.unsupported is not None:
        return Standing("unsupported", entry.unsupported)
    if entry.not_on_cpu is not None:
        return Standing("registered", f"not on CPU: {entry.not_on_cpu}")
    about = [row for row in proofs if _is_about(row, family, entry)]
    own = [row for row in about if row.family == family]
    rows = sorted(own or about, key=lambda row: (not row.runs, row.kind != "real"))
    if not rows:
        return Standing("registered", "not run yet: `make prove-models`")
    best = rows[0]
    if not best.runs:
        return Standing("registered", best.reason, best)
    return Standing(best.kind, _told(family, entry, best, vllm), best)


def _is_about(row: Proof, family: str, entry: Entry) -> bool:
    if row.kind == "real":
        return (row.family, row.model) == (family, entry.model)
    return row.architecture in (entry.architecture, entry.text_architecture)


def _told(family: str, entry: Entry, row: Proof, vllm: str | None) -> str:
    parts = [f"ran on CPU on {row.date[:10]}"]
    if row.family != family:
        parts.append(f"as one of {row.family}, with that family's parsers")
    if row.kind == "tiny" and row.architecture != entry.architecture:
        parts.append(f"text only, as {row.architecture}")
    if row.adapter.ok is None and row.adapter.detail:
        parts.append(f"no adapter: {row.adapter.detail}")
    if row.adapter.ok is False:
        parts.append(f"adapter failed: {row.adapter.detail}")
    proved = row.versions.get("vllm", "")
    if vllm is not None and proved != vllm:
        parts.append(f"with vLLM {proved}, not the installed {vllm}")
    return "; ".join(parts)
