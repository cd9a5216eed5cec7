"""Call records → figures. Pure; the names of the fields are the interface of `--json`.

Every share has the same denominator: the calls that were due. Latencies are of calls that were ok, with
their count; the SLO counts all others as missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.metrics.call_record import CallRecord, Outcome
from loadtest.metrics.slo import Slo
from loadtest.percentiles import nearest_rank

PERCENTS = (50, 90, 95, 99)
NO_TIER = "(none)"


@dataclass(frozen=True, slots=True)
class Due:
    """Calls of the plan. `lost` were due and nothing is known of them: their worker died. `in_flight` ran
    when the run was interrupted; they are neither good nor bad and stand outside every figure."""

    planned: int | None
    lost: int = 0
    in_flight: int = 0


def summary(records: Sequence[CallRecord], due: Due, slo: Slo | None) -> dict[str, Any]:
    """`records`: one per call that ended."""
    ok = [record for record in records if record.is_ok]
    window_s = _window_s(records)
    good = [record for record in ok if slo is None or slo.met_by(record)]
    counted = len(records) + due.lost
    return {
        "calls": {
            "planned": due.planned,
            "due": counted,
            "ok": len(ok),
            "refused": sum(record.outcome is Outcome.REFUSED for record in records),
            "failed": sum(record.outcome is Outcome.FAILED for record in records) + due.lost,
            "in_flight_at_interrupt": due.in_flight,
        },
        "window_s": round(window_s, 3),
        "offered_per_s": _per_s(len(records), _span_s(records)),
        "requests_per_s": _per_s(len(ok), window_s),
        "prompt_tokens_per_s": _per_s(_total(ok, lambda record: record.prompt_tokens), window_s),
        "output_tokens_per_s": _per_s(_total(ok, lambda record: record.output_tokens), window_s),
        "goodput_per_s": None if slo is None else _per_s(len(good), window_s),
        "slo_attainment": None if slo is None or not counted else len(good) / counted,
        **latencies(ok),
        **money(records, len(ok)),
        "refusals": reasons(records, Outcome.REFUSED, counted),
        "failures": reasons(records, Outcome.FAILED, counted),
        "tiers": groups(records, lambda record: record.tier or NO_TIER, slo),
        "tenants": groups(records, lambda record: record.tenant, slo),
        "tasks": groups(records, lambda record: record.task or NO_TIER, slo),
        "prompt_tokens": _lengths(ok, lambda record: (record.planned_prompt_tokens, record.prompt_tokens)),
        "output_tokens": _lengths(ok, lambda record: (record.planned_output_tokens, record.output_tokens)),
        "slo": None if slo is None else slo.verdict(records),
    }


def latencies(ok: Sequence[CallRecord]) -> dict[str, Any]:
    return {
        "ttft_ms": distribution_ms(_known(record.ttft_s for record in ok)),
        "itl_ms": distribution_ms([gap_s for record in ok for gap_s in record.gaps_s]),
        "tpot_ms": distribution_ms(_known(record.tpot_s for record in ok)),
        "e2e_ms": distribution_ms([record.e2e_s for record in ok]),
    }


def money(records: Sequence[CallRecord], ok: int) -> dict[str, Any]:
    """None where no answer carried a cost. Saved: the same tokens at the large tier's price, minus cost."""
    costs = _known(record.cost_usd for record in records)
    saved = _known(record.saved_usd for record in records)
    return {
        "cost_usd": sum(costs) if costs else None,
        "saved_usd": sum(saved) if saved else None,
        "usd_per_1000_requests": sum(costs) / ok * 1000 if costs and ok else None,
        "calls_with_cost": len(costs),
    }


def distribution_ms(seconds_s: Sequence[float]) -> dict[str, Any]:
    """Nearest rank, with the count: below 100 values p99 is the maximum."""
    ordered = sorted(seconds_s)
    percentiles = {f"p{percent}": _ms(nearest_rank(ordered, percent)) for percent in PERCENTS}
    mean_s = sum(ordered) / len(ordered) if ordered else None
    return {
        "n": len(ordered),
        "mean": _ms(mean_s),
        **percentiles,
        "max": _ms(ordered[-1] if ordered else None),
    }


def reasons(records: Iterable[CallRecord], outcome: Outcome, counted: int) -> list[dict[str, Any]]:
    """The most frequent first, each with the first message that came with it."""
    ended = [record for record in records if record.outcome is outcome]
    messages: dict[str, str] = {}
    for record in ended:
        messages.setdefault(record.reason, record.message)
    return [
        {"reason": reason, "count": count, "share": count / counted, "first_message": messages[reason]}
        for reason, count in Counter(record.reason for record in ended).most_common()
    ]


def groups(
    records: Sequence[CallRecord], name_of: Callable[[CallRecord], str], slo: Slo | None
) -> list[dict[str, Any]]:
    grouped: dict[str, list[CallRecord]] = {}
    for record in records:
        grouped.setdefault(name_of(record), []).append(record)
    return [_group(name, grouped[name], slo) for name in sorted(grouped)]


def _group(name: str, records: Sequence[CallRecord], slo: Slo | None) -> dict[str, Any]:
    ok = [record for record in records if record.is_ok]
    return {
        "name": name,
        "due": len(records),
        "ok": len(ok),
        "refused": sum(record.outcome is Outcome.REFUSED for record in records),
        "failed": sum(record.outcome is Outcome.FAILED for record in records),
        "slo_attainment": None if slo is None else sum(map(slo.met_by, ok)) / len(records),
        "prompt_tokens": _total(ok, lambda record: record.prompt_tokens),
        "output_tokens": _total(ok, lambda record: record.output_tokens),
        **latencies(ok),
        **money(records, len(ok)),
    }


def _lengths(
    ok: Sequence[CallRecord], pair_of: Callable[[CallRecord], tuple[int, int | None]]
) -> dict[str, Any]:
    """Planned and reported tokens per call, over the calls whose answer reported them."""
    pairs = [(planned, told) for planned, told in map(pair_of, ok) if told is not None]
    planned = sum(pair[0] for pair in pairs)
    told = sum(pair[1] for pair in pairs)
    return {
        "n": len(pairs),
        "mean_planned": round(planned / len(pairs), 2) if pairs else None,
        "mean_reported": round(told / len(pairs), 2) if pairs else None,
        "mean_error": round((told - planned) / len(pairs), 2) if pairs else None,
        "relative_error": round((told - planned) / planned, 4) if pairs else None,
    }


def _window_s(records: Sequence[CallRecord]) -> float:
    """From the first intended start to the last end."""
    if not records:
        return 0.0
    return max(record.ended_s for record in records) - min(record.intended_s for record in records)


def _span_s(records: Sequence[CallRecord]) -> float:
    starts_s = [record.intended_s for record in records]
    return max(starts_s) - min(starts_s) if starts_s else 0.0


def _total(records: Iterable[CallRecord], tokens_of: Callable[[CallRecord], int | None]) -> int:
    return sum(tokens_of(record) or 0 for record in records)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _per_s(count: int, seconds_s: float) -> float | None:
    return round(count / seconds_s, 3) if seconds_s > 0 else None


def _ms(seconds_s: float | None) -> float | None:
    return None if seconds_s is None else round(seconds_s * 1000, 3)
