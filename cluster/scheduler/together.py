"""Calls that are admitted, or settled, by one script: which may be, and what `lua/admit_all.lua` and
`lua/settle_all.lua` get. Both do only what is plain, and leave the rest to the scripts for one call.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import starmap
from typing import TypeVar

import orjson

from cluster import keys
from cluster.scheduler.scheduler import (
    CLASS_NUMBERS,
    DEAD_AFTER_MS,
    LOOK_AT_REPLICAS,
    RESERVATION_TTL_MS,
)
from cluster.types import AdmitRequest, SettleRequest

T = TypeVar("T", bound=Hashable)

Command = tuple[list[str], list[str | int | bytes]]
"""Keys and arguments of a script."""


def is_plain(request: AdmitRequest) -> bool:
    """Only the pool of the first candidate matters, and no adapter has to be there."""
    candidates = request.candidates
    first = candidates[0]
    if request.step or first.adapter is not None or request.exclude_replicas:
        return False
    if len(candidates) == 1:
        return True
    return not request.spill and [each.tier for each in candidates].count(first.tier) == 1


def _position(name: T, positions: dict[T, int]) -> int:
    """Names in the order in which they were first asked for, from 1."""
    position = positions.get(name)
    if position is None:
        position = positions[name] = len(positions) + 1
    return position


def admission(requests: Sequence[AdmitRequest]) -> Command:
    """Plain ones of one pool, at least one."""
    pool = requests[0].candidates[0].pool
    buckets: dict[str, int] = {}
    budgets: dict[tuple[str, str], int] = {}
    calls = []
    for request in requests:
        placement = request.placement_of_each[0]
        rates: list[int] = []
        for rate in request.rates:
            rates += (_position(rate.bucket, buckets), rate.increment_us, rate.burst_us)
        lines: list[int] = []
        for line in request.budgets:
            lines += (_position((line.owner, line.window), budgets), line.limit_micro_usd, line.ttl_ms)
        calls.append(
            (
                request.request_id,
                request.tokens,
                CLASS_NUMBERS[request.priority],
                request.tenant,
                request.hold_micro_usd,
                note_of(request),
                checked_of(request),
                placement.base_nano_usd,
                placement.per_token_nano_usd,
                placement.affine_replica,
                placement.credit_nano_usd,
                rates,
                lines,
            )
        )
    script_keys = [
        *(keys.FENCE, keys.EPOCH, keys.EVENTS),
        *keys.of_pool(pool),
        *map(keys.rate_bucket, buckets),
        *starmap(keys.budget, budgets),
        *[keys.reservation(request.request_id) for request in requests],
    ]
    arguments: list[str | int | bytes] = [
        pool,
        requests[0].lease_ttl_ms,
        RESERVATION_TTL_MS,
        DEAD_AFTER_MS,
        LOOK_AT_REPLICAS,
        len(buckets),
        len(budgets),
        orjson.dumps(calls),
    ]
    return script_keys, arguments


def by_pool(requests: Sequence[SettleRequest]) -> dict[str, list[SettleRequest]]:
    """Those that may be settled together, by their likeliest pool."""
    found: dict[str, list[SettleRequest]] = {}
    for request in requests:
        if not request.cancelled and request.pools:
            found.setdefault(request.pools[0], []).append(request)
    return found


def settlement(pool: str, requests: Sequence[SettleRequest], day: str) -> Command:
    buckets: dict[str, int] = {}
    budgets: dict[tuple[str, str], int] = {}
    calls = []
    for request in requests:
        rates: list[int] = []
        for bucket, back_us in request.rates:
            rates += (_position(bucket, buckets), back_us)
        calls.append(
            (
                request.request_id,
                request.cost_micro_usd,
                request.saved_micro_usd,
                request.tier,
                rates,
                [_position(owner_and_window, budgets) for owner_and_window in request.budgets],
            )
        )
    script_keys = [
        *(keys.stats(day), keys.EVENTS),
        *keys.of_pool(pool),
        *map(keys.rate_bucket, buckets),
        *starmap(keys.budget, budgets),
        *[keys.reservation(request.request_id) for request in requests],
    ]
    arguments: list[str | int | bytes] = [
        pool,
        RESERVATION_TTL_MS,
        len(buckets),
        len(budgets),
        orjson.dumps(calls),
    ]
    return script_keys, arguments


def checked_of(request: AdmitRequest) -> str:
    """0: budgets need not be exact; 1: they must be; or the id of the epoch in which they are known to be."""
    if not request.checked:
        return "0"
    return request.epoch_id or "1"


def note_of(request: AdmitRequest) -> str:
    """What `reap` needs of a request whose gateway is gone."""
    return orjson.dumps(
        {
            "rates": [(rate.bucket, rate.increment_us) for rate in request.rates],
            "budgets": request.budget_names,
            "note": request.note,
        }
    ).decode()
