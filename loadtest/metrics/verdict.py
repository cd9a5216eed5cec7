"""Whether a run can be trusted, whether it met its SLO, and the exit code that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.metrics.collected import Collected
from loadtest.metrics.slo import Slo
from loadtest.metrics.summary import Due, distribution_ms, summary

SLO_MISSED, BAD_INPUT, INVALID, INTERRUPTED = 1, 2, 3, 130


@dataclass(frozen=True, slots=True)
class Finished:
    """The figures of a run, and what the process ends with."""

    report: dict[str, Any]
    exit_code: int


def finish(collected: Collected, planned: int | None, slo: Slo | None, max_lateness_s: float) -> Finished:
    """`planned`: calls of the whole run, None where only time ends it. `max_lateness_s` bounds the p99 of
    the starts' lateness and of the generator's own pauses: beyond it the figures are those of the
    generator, not of the server."""
    missing = 0 if collected.interrupted else max(0, (planned or 0) - len(collected.records))
    figures = summary(collected.records, Due(planned, lost=missing, in_flight=collected.in_flight), slo)
    limit = {"limit_p99": round(max_lateness_s * 1000, 3)}
    late = distribution_ms([record.lateness_s for record in collected.records]) | limit
    pauses = distribution_ms(collected.pauses_s) | limit
    reasons = [
        *_too_late("calls started late", late),
        *_too_late("the generator was held up", pauses),
        *_lost(collected, missing),
    ]
    report = {
        **figures,
        "lateness_ms": late,
        "generator_pauses_ms": pauses,
        "valid": not reasons,
        "invalid_reasons": reasons,
        "interrupted": collected.interrupted,
    }
    return Finished(report, _exit_code(report, reasons))


def _exit_code(report: dict[str, Any], reasons: Sequence[str]) -> int:
    if report["interrupted"]:
        return INTERRUPTED
    if reasons:
        return INVALID
    return SLO_MISSED if report["slo"] is not None and not report["slo"]["met"] else 0


def _too_late(what: str, distribution: dict[str, Any]) -> list[str]:
    p99_ms, limit_ms = distribution["p99"], distribution["limit_p99"]
    if p99_ms is None or p99_ms <= limit_ms:
        return []
    advice = "use more --processes, a lower --rate, or a machine of its own"
    return [f"{what}: p99 {p99_ms:.1f} ms, allowed {limit_ms:g} ms; {advice}"]


def _lost(collected: Collected, missing: int) -> list[str]:
    reasons = []
    if collected.lost_workers:
        reasons.append(f"{collected.lost_workers} worker(s) vanished, and what they measured with them")
    if missing:
        reasons.append(f"{missing} planned calls have no result")
    return reasons
