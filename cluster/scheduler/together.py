"""Calls that are admitted, or settled, by one script: which may be, and what `lua/admit_all.lua` and
`lua/settle_all.lua` get. Both do only what is plain, and leave the rest to the scripts for one call.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from cluster import keys
from cluster.scheduler.scheduler import (
    CLASS_NUMBERS,
    DEAD_AFTER_MS,
    LOOK_AT_REPLICAS,
    RESERVATION_TTL_MS,
)
from cluster.types import AdmitRequest, SettleRequest

Command = tuple[list[str], list[str | int]]
"""Keys and arguments of a script."""


def is_plain(request: AdmitRequest) -> bool:
    """Only the pool of the first candidate matters, and no adapter has to be there."""
    first, *others = request.candidates
    return (
        request.step == 0
        and first.adapter is None
        and not request.exclude_replicas
        and not (request.spill and others)
        and all(other.tier != first.tier for other in others)
    )


class _Positions:
    """Names in the order in which they were first asked for, from 1."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names) + 1)


def admission(requests: Sequence[AdmitRequest]) -> Command:
    """Plain ones of one pool, at least one."""
    pool = requests[0].candidates[0].pool
    buckets, budgets = _Positions(), _Positions()
    calls: list[str | int] = []
    for request in requests:
        placement = request.placement_of_each[0]
        calls += (
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
            len(request.rates),
            len(request.budgets),
        )
        for rate in request.rates:
            calls += (buckets.of(keys.rate_bucket(rate.bucket)), rate.increment_us, rate.burst_us)
        for line in request.budgets:
            calls += (budgets.of(keys.budget(line.owner, line.window)), line.limit_micro_usd, line.ttl_ms)
    script_keys = [
        *(keys.FENCE, keys.EPOCH, keys.EVENTS),
        *keys.of_pool(pool),
        *buckets.names,
        *budgets.names,
        *(keys.reservation(request.request_id) for request in requests),
    ]
    arguments: list[str | int] = [
        pool,
        requests[0].lease_ttl_ms,
        RESERVATION_TTL_MS,
        DEAD_AFTER_MS,
        LOOK_AT_REPLICAS,
        len(buckets.names),
        len(budgets.names),
        len(requests),
    ]
    return script_keys, arguments + calls


def by_pool(requests: Sequence[SettleRequest]) -> dict[str, list[SettleRequest]]:
    """Those that may be settled together, by their likeliest pool."""
    found: dict[str, list[SettleRequest]] = {}
    for request in requests:
        if not request.cancelled and request.pools:
            found.setdefault(request.pools[0], []).append(request)
    return found


def settlement(pool: str, requests: Sequence[SettleRequest], day: str) -> Command:
    buckets, budgets = _Positions(), _Positions()
    calls: list[str | int] = []
    for request in requests:
        calls += (
            request.request_id,
            request.cost_micro_usd,
            request.saved_micro_usd,
            request.tier,
            len(request.rates),
            len(request.budgets),
        )
        for bucket, back_us in request.rates:
            calls += (buckets.of(keys.rate_bucket(bucket)), back_us)
        for owner, window in request.budgets:
            calls.append(budgets.of(keys.budget(owner, window)))
    script_keys = [
        *(keys.stats(day), keys.EVENTS),
        *keys.of_pool(pool),
        *buckets.names,
        *budgets.names,
        *(keys.reservation(request.request_id) for request in requests),
    ]
    arguments: list[str | int] = [
        pool,
        RESERVATION_TTL_MS,
        len(buckets.names),
        len(budgets.names),
        len(requests),
    ]
    return script_keys, arguments + calls


def checked_of(request: AdmitRequest) -> str | int:
    """0: budgets need not be exact; 1: they must be; or the id of the epoch in which they are known to be."""
    return request.epoch_id if request.checked and request.epoch_id else int(request.checked)


def note_of(request: AdmitRequest) -> str:
    """What `reap` needs of a request whose gateway is gone."""
    return orjson.dumps(
        {
            "rates": [(rate.bucket, rate.increment_us) for rate in request.rates],
            "budgets": request.budget_names,
            "note": request.note,
        }
    ).decode()
