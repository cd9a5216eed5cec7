"""`make prove-models`: every family of the catalogue on real replicas, each trial in a process of its own.

    python -m deployments.catalogue.prove [--only FAMILY] [--kind KIND] [--again] [--out FILE]

Each row is kept when its trial ends, so that an interrupted run goes on where it stopped; rows of the
installed vLLM are not proved twice unless `--again` says so. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.catalogue import RESULTS, Entry, Family, Proof, ProofsFile, families
from deployments.bench.own_process import run_module
from deployments.catalogue.trial import Kind, commit
from deployments.catalogue.versions import versions

TIME_LIMIT_S = 900.0
"""Of one trial: two starts of an engine and, at worst, a download with its conversion."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tiny model for each architecture of a family, and each model whose weights come as packages."""

    family: str
    entry: Entry
    kind: Kind

    @property
    def architecture(self) -> str:
        return self.entry.served_architecture if self.kind == "tiny" else self.entry.architecture

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.family, self.architecture, self.kind, self.entry.model if self.kind == "real" else "")


def targets(catalogue: Iterable[Family]) -> Iterator[Target]:
    """Tiny ones first."""
    for family in catalogue:
        tiny: dict[str, Entry] = {}
        for entry in family.entries:
            if entry.unsupported is None and entry.not_on_cpu is None:
                tiny.setdefault(entry.served_architecture, entry)
        yield from (Target(family.family, entry, "tiny") for entry in tiny.values())
    for family in catalogue:
        yield from (Target(family.family, each, "real") for each in family.entries if each.source is not None)


def prove(target: Target) -> Proof:
    """A trial that does not end, or that ends without a proof, is a proof that it does not run."""
    try:
        return Proof.model_validate(
            run_module(
                "deployments.catalogue.trial",
                target.entry.model,
                "--kind",
                target.kind,
                timeout_s=TIME_LIMIT_S,
            )
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {TIME_LIMIT_S:.0f} s"
    except RuntimeError as error:
        reason = str(error)
    return Proof(
        family=target.family,
        model=target.entry.model,
        architecture=target.architecture,
        kind=target.kind,
        reason=reason,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        versions=versions(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="FAMILY", action="append", help="this family; may be repeated")
    parser.add_argument("--kind", choices=("tiny", "real"), help="only these trials")
    parser.add_argument("--again", action="store_true", help="also what was proved with this vLLM already")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are kept")
    arguments = parser.parse_args()
    catalogue = families()
    unknown = set(arguments.only or ()) - {family.family for family in catalogue}
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}; see `sprat models list`")
    file = ProofsFile(arguments.out)
    proved = {row.key for row in file.rows if row.versions.get("vllm") == versions().get("vllm")}
    wanted = [
        target
        for target in targets(catalogue)
        if (not arguments.only or target.family in arguments.only)
        and arguments.kind in (None, target.kind)
        and (arguments.again or target.key not in proved)
    ]
    for number, target in enumerate(wanted, 1):
        started_s = time.monotonic()
        proof = prove(target)
        file.keep(proof)
        _tell(
            f"[{number}/{len(wanted)}] {target.family} {target.architecture} {target.kind}: "
            f"{proof.reason or 'runs'} ({time.monotonic() - started_s:.0f} s)"
        )
    ok = sum(row.runs for row in file.rows)
    print(json.dumps({"rows": len(file.rows), "run": ok, "file": str(arguments.out)}))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
