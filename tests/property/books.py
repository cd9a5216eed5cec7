"""The whole state of a scheduler as plain values: the same shape from Redis and from the twin."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from cluster import keys
from cluster.scheduler.memory_pool import PoolBooks
from cluster.scheduler.memory_queue import Pace, Queue
from cluster.scheduler.memory_scheduler import MemoryScheduler

State = dict[str, Any]


async def books_in_redis(client: Redis, pools: Sequence[str], adapters: Sequence[str], now_ms: int) -> State:
    """Of a server with stopped time. Everything but the event stream, the entries in the directory, and what
    only names things."""
    state: State = {}
    async with client.pipeline(transaction=False) as pipeline:
        for pool in pools:
            pipeline.zrange(keys.leases(pool), 0, -1, withscores=True)
            pipeline.hgetall(keys.lease_details(pool))
            pipeline.zrange(keys.replicas(pool), 0, -1, withscores=True)
            pipeline.hgetall(keys.load(pool))
            pipeline.zrange(keys.lines(pool), 0, -1)
            pipeline.zrange(keys.queue(pool), 0, -1, withscores=True)
            pipeline.hgetall(keys.tickets(pool))
            pipeline.zrange(keys.waits(pool), 0, -1, withscores=True)
            pipeline.hgetall(keys.virtual_time(pool))
            pipeline.smembers(keys.directory(pool))
            for adapter in adapters:
                pipeline.zrange(keys.adapter_holders(pool, adapter), 0, -1, withscores=True)
        pipeline.get(keys.FENCE)
        pipeline.get(keys.EPOCH)
        pipeline.keys(keys.rate_bucket("*"))
        pipeline.keys(keys.budget("*", "*"))
        pipeline.keys(keys.reservation("*"))
        found = iter(await pipeline.execute())
        for pool in pools:
            leases, details, ready, load = (next(found) for _ in range(4))
            lines, turns, tickets, waits, virtual, directory = (next(found) for _ in range(6))
            state[pool] = {
                "leases": _leases(leases, details),
                "ready": _ranking(ready),
                "replicas": _replicas(load, directory),
                "service_us": int(load["#service_us"]) if "#service_us" in load else None,
                "asked": int(load.get("#asked", 0)),
                "lines": lines,
                "turns": _ranking(turns),
                "tickets": {id_: _ticket(json.loads(text)) for id_, text in tickets.items()},
                "waits": dict(_ranking(waits)),
                "virtual": {name: value for name, value in virtual.items() if value != "0"},
                "holders": {adapter: holders for adapter in adapters if (holders := _ranking(next(found)))},
            }
        state["fence"] = int(next(found) or 0)
        state["epoch"] = next(found) or ""
        names = [sorted(next(found)) for _ in range(3)]
        for name in (name for group in names for name in group):
            pipeline.get(name)
        values = iter(await pipeline.execute())
    buckets, budgets, reservations = ({name: next(values) for name in group} for group in names)
    prefix = len(keys.rate_bucket(""))
    state["buckets"] = {
        name[prefix:]: int(arrival)
        for name, arrival in buckets.items()
        if arrival and int(arrival) > now_ms * 1000
    }
    prefix = len(keys.budget("", "")) - 1
    state["budgets"] = {
        tuple(name[prefix:].rsplit(":", 1)): tuple(map(int, row.split()))
        for name, row in budgets.items()
        if row
    }
    prefix = len(keys.reservation(""))
    state["reservations"] = {
        name[prefix:]: _reservation(row) for name, row in reservations.items() if row is not None
    }
    return state


def _ranking(row: list[tuple[str, float]]) -> list[tuple[str, int]]:
    return [(name, int(score)) for name, score in row]


def _leases(expiries: list[tuple[str, float]], details: dict[str, str]) -> dict[str, tuple[Any, ...]]:
    assert {name for name, _ in expiries} == details.keys()
    leases = {}
    for request_id, expiry_ms in expiries:
        tokens, fence, _, granted_ms, sent, address, replica_id = details[request_id].split("|", 6)
        leases[request_id] = (
            *(replica_id, address, int(tokens), int(fence)),
            *(int(granted_ms), int(expiry_ms), sent == "1"),
        )
    return leases


def _replicas(load: dict[str, str], directory: set[str]) -> dict[str, dict[str, int]]:
    rows: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for name, value in load.items():
        replica_id, _, field = name.rpartition("|")
        if field in ("req", "tok", "since"):
            rows[replica_id][field] = int(value)
    assert rows.keys() == directory
    return dict(rows)


def _ticket(ticket: dict[str, Any]) -> tuple[Any, ...]:
    return (
        *(ticket["step"], ticket["class"], ticket["tenant"], ticket["tokens"], ticket["since"]),
        ticket["weight"],
        *(ticket["deadline"], sorted(ticket["excluded"]), list(ticket["holders"]), ticket["sent"]),
    )


def _reservation(row: str) -> tuple[Any, ...]:
    state, step, first, second, *_ = row.split("|")
    if state in ("open", "waiting"):
        return ("open", int(step), first, int(second))
    return (state, int(step), int(first), int(second))


def books_in_memory(twin: MemoryScheduler, pools: Sequence[str], now_ms: int) -> State:
    state: State = {}
    for pool in pools:
        state[pool] = _pool(twin._pools[pool].books, twin._pools[pool].queue)
    state["fence"] = twin._fence
    state["epoch"] = twin._epoch
    state["buckets"] = {
        name: arrival for name, arrival in twin._money._arrivals_us.items() if arrival > now_ms * 1000
    }
    state["budgets"] = {
        name: (window.spent, window.held)
        for name, window in twin._money._windows.items()
        if window.ends_ms is None or window.ends_ms > now_ms
    }
    state["reservations"] = {
        request_id: _reservation_in_memory(each)
        for request_id, each in twin._reservations.items()
        if each.forget_at_ms > now_ms
    }
    return state


def _reservation_in_memory(known: Any) -> tuple[Any, ...]:
    if known.over is None:
        return ("open", known.step, known.pool, known.hold)
    return (known.over, known.step, known.cost, known.hold if known.over == "expired" else known.saved)


def _pace(pace: Pace) -> str:
    return f"{pace.start_ms}|{pace.length_ms}|{pace.current}|{pace.before}"


def _pool(books: PoolBooks, queue: Queue) -> State:
    return {
        "leases": {
            request_id: (
                *(lease.replica_id, lease.address, lease.tokens, lease.fence),
                *(lease.granted_ms, lease.expiry_ms, lease.dispatched),
            )
            for request_id, lease in books.leases.items()
        },
        "ready": [(name, score) for score, name in books.ready._order],
        "replicas": {
            replica_id: {"req": each.requests, "tok": each.tokens, "since": each.since}
            for replica_id, each in books.replicas.items()
        },
        "service_us": books.service_us,
        "asked": books.asked,
        "lines": sorted(
            f"{owner}{number:012d}|{queue.tickets[request_id].virtual_cost}|{request_id}"
            for owner, line in queue.lines.items()
            for request_id, number in line.items()
        ),
        "turns": [(name, score) for score, name in queue.turns._order],
        "tickets": {
            request_id: (
                *(each.step, each.level, each.tenant, each.tokens, each.since_ms),
                each.weight,
                *(each.deadline_ms, sorted(each.excluded), list(each.holders), each.sent),
            )
            for request_id, each in queue.tickets.items()
        },
        "waits": queue.ends_ms,
        "virtual": {
            name: str(value)
            for name, value in (
                ("number", queue._number),
                *((f"clock|{level}", time) for level, time in queue._clock.items()),
                *((f"pace|{level}", _pace(pace)) for level, pace in queue.paces.items()),
                *((f"weight|{level}", weight) for level, weight in queue._class_weight.items()),
                *((f"last|{owner}", time) for owner, time in queue._last.items()),
                *((f"weight|{owner}", weight) for owner, weight in queue._weight.items()),
            )
            if value
        },
        "holders": {
            adapter: [(name, score) for score, name in ranking._order]
            for adapter, ranking in books.holders.items()
            if len(ranking)
        },
    }
