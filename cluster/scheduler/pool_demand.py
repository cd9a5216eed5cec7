"""What autoscaling reads of Redis, and what it says there of its decisions: a few reads per second, none of
them on the way of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis

from cluster import keys
from cluster.record import record
from cluster.scheduler.memory_pool import FULL
from cluster.scheduler.redis_connection import unavailable_on_error
from cluster.scheduler.scheduler import CLASSES

TICKETS_LOOKED_AT = 64
"""A long queue is known by a sample of this size."""

SAID_TTL_MS = 15_000
"""A decision is forgotten after this long: nobody decides any more."""


@record
@dataclass(frozen=True, slots=True)
class Ticket:
    """What counts of a waiter: its class (0 the most urgent), its tokens, and how long it has waited."""

    level: int
    tokens: int
    waited_ms: int


@record
@dataclass(frozen=True, slots=True)
class PoolDemand:
    """A pool at one moment. `ready` replicas may be chosen and have `running_tokens` promised; `running`
    calls have a slot. `waiting`: per class, most urgent first; `tickets` is a sample of them. `service_ms`:
    how long a slot is taken on average, None before the first call has ended. `asked`: calls so far that
    found the pool asleep and could not wait."""

    ready: int
    running: int
    running_tokens: int
    waiting: tuple[int, int, int]
    tickets: tuple[Ticket, ...]
    service_ms: float | None
    asked: int


async def read_demand(client: Redis, pools: Sequence[str]) -> dict[str, PoolDemand]:
    """One round trip. Raises SchedulerUnavailable."""
    with unavailable_on_error():
        async with client.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for pool in pools:
                pipeline.zrange(keys.replicas(pool), 0, -1, withscores=True)
                pipeline.zcard(keys.leases(pool))
                pipeline.hmget(keys.load(pool), "#service_us", "#asked")
                for number in range(len(CLASSES)):
                    pipeline.zlexcount(keys.lines(pool), f"[{number}", f"({number + 1}")
                pipeline.hrandfield(keys.tickets(pool), TICKETS_LOOKED_AT, withvalues=True)
            found = iter(await pipeline.execute())
    seconds, microseconds = next(found)
    now_ms = seconds * 1000 + microseconds // 1000
    return {pool: _demand([next(found) for _ in range(7)], now_ms) for pool in pools}


def _demand(rows: Sequence[Any], now_ms: int) -> PoolDemand:
    replicas, running, (service_us, asked), interactive, normal, batch, sample = rows
    tickets = [orjson.loads(text) for text in sample[1::2]]
    return PoolDemand(
        ready=len(replicas),
        running=running,
        running_tokens=sum([int(score) % FULL for _, score in replicas]),
        waiting=(interactive, normal, batch),
        tickets=tuple(
            [Ticket(each["class"], each["tokens"], max(0, now_ms - each["since"])) for each in tickets]
        ),
        service_ms=int(service_us) / 1000 if service_us else None,
        asked=int(asked or 0),
    )


async def say_targets(client: Redis, targets: Mapping[str, Mapping[str, Any]]) -> None:
    """What was decided for each pool, for `sprat status`. Raises SchedulerUnavailable."""
    with unavailable_on_error():
        async with client.pipeline(transaction=False) as pipeline:
            for pool, target in targets.items():
                pipeline.set(keys.scaling(pool), orjson.dumps(target), px=SAID_TTL_MS)
            await pipeline.execute()


async def said_targets(client: Redis, pools: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of the pools for which somebody decides. Raises SchedulerUnavailable."""
    with unavailable_on_error():
        rows = await client.mget([keys.scaling(pool) for pool in pools])
    return {pool: orjson.loads(row) for pool, row in zip(pools, rows, strict=True) if row}
