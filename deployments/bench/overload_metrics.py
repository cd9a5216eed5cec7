"""From the results of one replay to its row in the report. Arithmetic only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.types import PriorityClass
from deployments.bench.arrivals import TENANT_SHARES, Fleet
from deployments.bench.overload import Ending, Replay, Result
from deployments.bench.percentiles import nearest_rank

LEAST_CONTENDED_STARTS = 5 * len(TENANT_SHARES)
"""With fewer than five choices per tenant the sizes of single requests would decide the index."""


def report(replay: Replay, seconds: float, fleet: Fleet) -> dict[str, Any]:
    """One system's row. Definitions stand at the functions below.

    `jain` is the least of the classes that have one. `cores` tells whether the machine was the limit,
    `send_lag_p99_ms` whether the trace was sent in time.
    """
    results = replay.results
    classes = {
        str(priority): _class_row([each for each in results if each.arrival.priority is priority])
        for priority in PriorityClass
    }
    return {
        "interactive_attainment": classes[PriorityClass.INTERACTIVE]["attainment"],
        "jain": min((row["jain"] for row in classes.values() if row["jain"] is not None), default=None),
        "started_late": started_late(results),
        "arrivals": len(results),
        **endings(results),
        "utilisation": utilisation(results, seconds, fleet),
        "idle_ms_per_start": idle_ms_per_start(results, seconds, fleet),
        "cores": replay.cores,
        "send_lag_p99_ms": nearest_rank([(each.sent_s - each.arrival.at_s) * 1000 for each in results], 99),
        "classes": classes,
    }


def _class_row(results: Sequence[Result]) -> dict[str, Any]:
    contended = contended_starts(results)
    waits_s = [each.started_s - each.arrival.at_s for each in results if each.started_s is not None]
    return {
        "attainment": attainment(results),
        "jain": jain(contended.tokens.values()) if contended.count >= LEAST_CONTENDED_STARTS else None,
        "contended_starts": contended.count,
        "started_late": started_late(results),
        "arrivals": len(results),
        **endings(results),
        "wait_p50_s": nearest_rank(waits_s, 50),
        "wait_p99_s": nearest_rank(waits_s, 99),
    }


def attainment(results: Sequence[Result]) -> float | None:
    """Share of all arrivals whose work began by its deadline: refused, failed, abandoned ones are misses."""
    return sum(each.in_time for each in results) / len(results) if results else None


def started_late(results: Iterable[Result]) -> int:
    """Requests whose work began after their deadline: slots spent on answers that came too late.
    A lower bound where some were abandoned."""
    return sum(each.ending is Ending.SERVED and not each.in_time for each in results)


def endings(results: Iterable[Result]) -> dict[str, int]:
    count = Counter(each.ending for each in results)
    return {str(ending): count[ending] for ending in Ending}


@dataclass(frozen=True, slots=True)
class ContendedStarts:
    """`tokens` per tenant of a class."""

    count: int
    tokens: Mapping[str, int]


def contended_starts(of_one_class: Sequence[Result]) -> ContendedStarts:
    """The starts at which every tenant of the class had a request waiting, the started one included.

    A start is a choice between tenants, and only such a choice says anything about fairness between all of
    them: who has nothing waiting is served less because it asks for less. Tokens count in full at the start,
    as fair queueing charges them. What a system refuses is not waiting, so read the index beside `refused`.
    """
    tokens = dict.fromkeys((each.arrival.tenant for each in of_one_class), 0)
    count = 0
    for chosen in of_one_class:
        if chosen.started_s is None:
            continue
        waiting = {
            each.arrival.tenant
            for each in of_one_class
            if each.arrival.at_s <= chosen.started_s <= each.left_s
        }
        if len(waiting) == len(tokens):
            count += 1
            tokens[chosen.arrival.tenant] += chosen.arrival.tokens
    return ContendedStarts(count, tokens)


def jain(shares: Iterable[float]) -> float | None:
    """Jain's index of what tenants of equal weight got: 1 when all got the same, 1/n when one got all."""
    got = list(shares)
    squares = sum(each**2 for each in got)
    return sum(got) ** 2 / (len(got) * squares) if squares else None


def utilisation(results: Iterable[Result], seconds: float, fleet: Fleet) -> float:
    """Share of the slot time while requests arrive (`seconds`) that went into work. Work counts with the time
    that the trace asks for, so a system that stretches it does not look busier."""
    return _busy_s(results, seconds) / (seconds * fleet.slots)


def idle_ms_per_start(results: Sequence[Result], seconds: float, fleet: Fleet) -> float | None:
    """What a slot stands idle between two requests while there is too much to do: what a dispatch costs."""
    starts = sum(each.started_s is not None and each.started_s < seconds for each in results)
    return (seconds * fleet.slots - _busy_s(results, seconds)) / starts * 1000 if starts else None


def _busy_s(results: Iterable[Result], seconds: float) -> float:
    return sum(
        max(0.0, min(each.started_s + each.arrival.service_s, seconds) - each.started_s)
        for each in results
        if each.started_s is not None
    )
