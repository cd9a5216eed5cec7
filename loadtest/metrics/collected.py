"""What a run brought, before it becomes figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.metrics.call_record import CallRecord


@dataclass(frozen=True, slots=True)
class Collected:
    """`records` in the order of the plan. `pauses_s`: how much too late the generators woke up from short
    sleeps, which is also how late they may have seen a token. What the `lost_workers` did is unknown;
    `in_flight` calls were cut off when the run was `interrupted`."""

    records: Sequence[CallRecord]
    pauses_s: Sequence[float] = ()
    workers: int = 1
    lost_workers: int = 0
    in_flight: int = 0
    interrupted: bool = False
