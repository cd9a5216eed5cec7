"""Call records → the plots of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.metrics.call_record import CallRecord
from loadtest.metrics.slo import MEASURES, Slo
from loadtest.report.plot import COLOURS, Axis, Curve, plot

BINS = 60
CURVES = 4
LINEAR_UP_TO = 8
"""Ratio of the ends of an axis from which it is logarithmic."""

ValueOf = Callable[[CallRecord], float | None]
SLO_KEYS = {"TTFT": "ttft_p95_s", "TPOT": "tpot_p95_ms", "E2E": "e2e_p95_s"}


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    note: str
    svg: str
    legend: tuple[tuple[str, str], ...]
    """Label and colour of each curve."""


def charts(records: Sequence[CallRecord], slo: Slo | None) -> list[Chart]:
    if not records:
        return []
    drawn = [
        _rates(records),
        _tokens(records),
        _cdf("TTFT", records, lambda call: call.ttft_s if call.is_ok else None, slo),
        _cdf("TPOT", records, lambda call: call.tpot_s, slo),
        _cdf("E2E", records, lambda call: call.e2e_s if call.is_ok else None, slo),
        _lateness(records),
    ]
    return [chart for chart in drawn if chart is not None]


def _rates(records: Sequence[CallRecord]) -> Chart:
    ok = [record for record in records if record.is_ok]
    bad = [record for record in records if not record.is_ok]
    end_s = max(record.ended_s for record in records)
    bin_s = _bin_s(end_s)
    curves = [
        Curve("arrivals", _binned([(each.intended_s, 1.0) for each in records], end_s, bin_s), COLOURS[0]),
        Curve("answered", _binned([(each.ended_s, 1.0) for each in ok], end_s, bin_s), COLOURS[2]),
    ]
    if bad:
        ended = [(each.ended_s, 1.0) for each in bad]
        curves.append(Curve("refused or failed", _binned(ended, end_s, bin_s), COLOURS[1]))
    return _over_time("Arrivals and answers", "requests/s", curves, end_s, bin_s)


def _tokens(records: Sequence[CallRecord]) -> Chart | None:
    """An answer's tokens count evenly between its first and last one."""
    end_s = max(record.ended_s for record in records)
    bin_s = _bin_s(end_s)
    events = [
        (begin_s + (record.ended_s - begin_s) * (number + 0.5) / slices, record.output_tokens / slices)
        for record in records
        if record.is_ok and record.output_tokens
        for begin_s in [record.intended_s + (record.ttft_s or 0.0)]
        for slices in [max(1, math.ceil((record.ended_s - begin_s) / bin_s * 2))]
        for number in range(slices)
    ]
    if not events:
        return None
    curve = Curve("output tokens", _binned(events, end_s, bin_s), COLOURS[0])
    return _over_time("Output throughput", "tokens/s", [curve], end_s, bin_s)


def _over_time(title: str, unit: str, curves: Sequence[Curve], end_s: float, bin_s: float) -> Chart:
    highest = max(value for curve in curves for _, value in curve.points)
    svg = plot(
        title, curves, Axis("seconds since the start", 0.0, end_s), Axis(unit, 0.0, highest * 1.05 or 1.0)
    )
    legend = tuple((curve.label, curve.colour) for curve in curves)
    return Chart(title, f"{unit}, mean over {bin_s:g} s", svg, legend)


def _bin_s(end_s: float) -> float:
    """About `BINS` of them, of 0.5, 1, 2, 5, 10 … seconds."""
    wanted_s = end_s / BINS
    sizes_s = (factor * 10.0**power for power in range(-1, 6) for factor in (1, 2, 5))
    return next(size_s for size_s in sizes_s if size_s >= max(0.5, wanted_s))


def _binned(events: Sequence[tuple[float, float]], end_s: float, bin_s: float) -> list[tuple[float, float]]:
    """(middle of the bin, sum ÷ width). The last bin ends with the run and is as wide as that leaves it."""
    count = max(1, math.ceil(end_s / bin_s))
    sums = [0.0] * count
    for at_s, weight in events:
        sums[min(count - 1, int(at_s / bin_s))] += weight
    edges = [*(number * bin_s for number in range(count)), end_s]
    widths = [right - left for left, right in pairwise(edges)]
    if count > 1 and widths[-1] < bin_s / 2:  # too short to have a rate of its own
        sums[-2:], edges[-2:], widths[-2:] = [sums[-2] + sums[-1]], [end_s], [widths[-2] + widths[-1]]
    return [
        (left + width / 2, total / width if width else 0.0)
        for left, width, total in zip(edges, widths, sums, strict=False)
    ]


def _cdf(
    title: str,
    records: Sequence[CallRecord],
    value_of: ValueOf,
    slo: Slo | None,
) -> Chart | None:
    """Over all calls that were due: a curve that ends below 100 % has refused or failed calls. Good calls
    without such a time (TPOT of one token) are left out."""
    by_tier: dict[str, list[CallRecord]] = {}
    for record in records:
        if record.tier is not None:
            by_tier.setdefault(record.tier, []).append(record)
    named = [("all", records)]
    if 1 < len(by_tier) < CURVES:
        named += [(f"tier {tier}", by_tier[tier]) for tier in sorted(by_tier)]
    curves = [
        Curve(label, _cumulated([value_of(each) for each in group if _counts(each, value_of)]), colour)
        for (label, group), colour in zip(named, COLOURS, strict=False)
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    values_ms = [value_ms for curve in curves for value_ms, _ in curve.points]
    mark = _mark(title, slo)
    ends_ms = [*values_ms, mark[1]] if mark else values_ms
    low_ms = max(0.01, min(ends_ms) / 1.2)
    high_ms = max(max(ends_ms) * 1.2, low_ms * 2)
    is_log = high_ms / low_ms > LINEAR_UP_TO
    x = Axis(f"{title}, ms{' (logarithmic)' if is_log else ''}", low_ms, high_ms, is_log=is_log)
    svg = plot(title, curves, x, Axis("% of the calls", 0.0, 100.0), mark)
    legend = tuple((curve.label, curve.colour) for curve in curves)
    return Chart(f"{title}, cumulative", "share of all calls that were at most this slow", svg, legend)


def _counts(record: CallRecord, value_of: ValueOf) -> bool:
    return not record.is_ok or value_of(record) is not None


def _cumulated(values_s: Sequence[float | None]) -> list[tuple[float, float]]:
    known_ms = sorted(value_s * 1000 for value_s in values_s if value_s is not None)
    return [(value_ms, 100 * number / len(values_s)) for number, value_ms in enumerate(known_ms, start=1)]


def _mark(title: str, slo: Slo | None) -> tuple[str, float] | None:
    key = SLO_KEYS[title]
    if slo is None or key not in slo.limits:
        return None
    return f"SLO p95 {slo.limits[key]:g} {key.rsplit('_', 1)[1]}", slo.limits[key] * MEASURES[
        key
    ].unit_s * 1000


def _lateness(records: Sequence[CallRecord]) -> Chart | None:
    if not any(record.lateness_s for record in records):  # a closed loop has no time to be late for
        return None
    end_s = max(record.intended_s for record in records) or 1.0
    bin_s = _bin_s(end_s)
    largest: dict[int, float] = {}
    for record in records:
        number = int(record.intended_s / bin_s)
        largest[number] = max(largest.get(number, 0.0), record.lateness_s * 1000)
    curve = Curve("latest start", [((n + 0.5) * bin_s, largest[n]) for n in sorted(largest)], COLOURS[3])
    highest = max(max(largest.values()) * 1.05, 1.0)
    svg = plot("Lateness", [curve], Axis("seconds since the start", 0.0, end_s), Axis("ms", 0.0, highest))
    note = f"largest lateness of the generator itself in each {bin_s:g} s"
    return Chart("Lateness", note, svg, ((curve.label, curve.colour),))
