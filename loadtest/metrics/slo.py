"""`--slo`: limits on percentiles over all calls, so that a refused call cannot improve them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.bad_input import BadInput
from loadtest.metrics.call_record import CallRecord
from loadtest.percentiles import nearest_rank

PERCENT = 95


@dataclass(frozen=True, slots=True)
class Measure:
    """`of` gives seconds, None where a good call has no such time (TPOT of one token): that meets every
    limit. `unit_s` is the unit of the key in seconds."""

    of: Callable[[CallRecord], float | None]
    unit_s: float
    needs_stream: bool = True


MEASURES = {
    "ttft_p95_s": Measure(lambda call: call.ttft_s, 1.0),
    "tpot_p95_ms": Measure(lambda call: call.tpot_s, 0.001),
    "e2e_p95_s": Measure(lambda call: call.e2e_s, 1.0, needs_stream=False),
}


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in the unit of their key."""

    limits: dict[str, float]

    def __str__(self) -> str:
        return ",".join(f"{key}={limit:g}" for key, limit in self.limits.items())

    def met_by(self, call: CallRecord) -> bool:
        return all(_value_s(call, key) <= limit * MEASURES[key].unit_s for key, limit in self.limits.items())

    def verdict(self, calls: Sequence[CallRecord]) -> dict[str, Any]:
        """`calls` are all that were due. `measured` is None where more than 5 % were not answered."""
        rows = []
        for key, limit in self.limits.items():
            percentile_s = nearest_rank(sorted(_value_s(call, key) for call in calls), PERCENT)
            reached = percentile_s is not None and math.isfinite(percentile_s)
            measured = percentile_s / MEASURES[key].unit_s if reached and percentile_s is not None else None
            met = measured is not None and measured <= limit
            rows.append({"key": key, "limit": limit, "measured": measured, "met": met})
        return {"limits": rows, "met": all(row["met"] for row in rows)}


def _value_s(call: CallRecord, key: str) -> float:
    if not call.is_ok:
        return math.inf
    return MEASURES[key].of(call) or 0.0


def parse_slo(text: str, *, streamed: bool = True) -> Slo:
    """`ttft_p95_s=2,tpot_p95_ms=80,e2e_p95_s=30`, or a YAML file with these keys."""
    listed = _from_text(text) if "=" in text else _from_file(Path(text))
    if not listed:
        raise BadInput(f"--slo {text}: no limit in it; the keys are {', '.join(MEASURES)}")
    limits = {}
    for key, value in listed.items():
        if key not in MEASURES:
            raise BadInput(f"--slo: {key!r} is not known; the keys are {', '.join(MEASURES)}")
        if MEASURES[key].needs_stream and not streamed:
            raise BadInput(f"--slo {key}: a whole answer (--unary) has no first token; use e2e_p95_s")
        try:
            limit = float(value)
        except (TypeError, ValueError) as error:
            raise BadInput(f"--slo {key}={value!r} is not a number") from error
        if not 0 < limit < math.inf:
            raise BadInput(f"--slo {key}={value}: has to be above 0")
        limits[key] = limit
    return Slo(limits)


def _from_text(text: str) -> dict[str, Any]:
    listed: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key.strip() in listed:
            raise BadInput(f"--slo: {key.strip()} stands there twice")
        listed[key.strip()] = value
    return listed


def _from_file(file: Path) -> dict[str, Any]:
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"--slo {file}: {error}. Use key=value,… or a YAML file") from error
    if not isinstance(listed, dict):
        raise BadInput(f"--slo {file}: has to be a mapping of {', '.join(MEASURES)}")
    return listed
