"""The scheduler on Redis >= 7 or Valkey: every operation is one script, one round trip.

Knows how calls become KEYS and ARGV and how replies become records; the decisions are in `lua/`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster import keys
from cluster.clock import Clock
from cluster.scheduler import scripts, together
from cluster.scheduler.gathering import Gathering
from cluster.scheduler.pipelined_redis import PipelinedRedis
from cluster.scheduler.redis_connection import unavailable_on_error
from cluster.scheduler.scheduler import (
    CLASS_NUMBERS,
    CLASSES,
    DEAD_AFTER_MS,
    EXPIRED_PER_REAP,
    GATEWAY_TTL_MS,
    LOOK_AT_REPLICAS,
    REBUILD_GRACE_MS,
    RESERVATION_TTL_MS,
    STATS_TTL_MS,
)
from cluster.scheduler.together import checked_of, is_plain, note_of
from cluster.types import (
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Candidate,
    Grant,
    HeldLease,
    Lost,
    PoolLoad,
    Refusal,
    RefusalReason,
    Renewal,
    ReplicaPhase,
    ReplicaState,
    Settlement,
    SettleRequest,
    Spend,
    Waiting,
)

_REFUSED, _GRANTED, _POOL_MISSING, _WAITING = 0, 1, 2, 4
_SETTLED_NOW, _NO_SUCH_REQUEST = 1, 3

_MAY_NOT_WAIT = -1


@dataclass(frozen=True, slots=True)
class GrantNotice:
    """A waiter was given a slot: what the script publishes."""

    request_id: str
    step: int
    fence: int
    lease_expiry_ms: int
    address: str
    replica_id: str

    def grant_of(self, candidate: Candidate) -> Grant:
        return Grant(
            self.request_id,
            self.step,
            candidate,
            self.replica_id,
            self.address,
            self.fence,
            self.lease_expiry_ms,
        )


class RedisScheduler:
    """`Scheduler` on a client made by `connect`. Leases, waits and heartbeats live by Redis' clock; `clock`
    only says which UTC day a cost belongs to. Scripts go over `pipeline` where one is given."""

    def __init__(self, client: Redis, clock: Clock, pipeline: PipelinedRedis | None = None) -> None:
        self._client = client
        self._clock = clock
        self._pipeline = pipeline
        self._gathering = Gathering(self._admit_together) if pipeline is not None else None
        self._held_adapters: dict[str, frozenset[str]] = {}

    # Calls.

    async def admit(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        if self._gathering is None or not is_plain(request):
            return await self._admit_alone(request)
        granted = await self._gathering.admit(request)
        return granted or await self._admit_alone(request)

    async def _admit_alone(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        pools = _distinct(candidate.pool for candidate in request.candidates)
        reply = await self._run(scripts.ADMIT, *self._admission(request, pools))
        while reply[0] == _POOL_MISSING:
            pools.append(reply[1])
            reply = await self._run(scripts.ADMIT, *self._admission(request, pools))
        if reply[0] == _REFUSED:
            _, reason, retry_after_ms, detail = reply
            return Refusal(RefusalReason(reason), retry_after_ms, detail)
        return _placed(request.request_id, request.step, request.candidates[reply[1]], reply)

    async def _admit_together(self, requests: Sequence[AdmitRequest]) -> list[Grant | None]:
        """All of one pool. None: that one is not plain."""
        script_keys, arguments = together.admission(requests)
        replies = await self._run(scripts.ADMIT_ALL, script_keys, arguments)
        return [
            Grant(request.request_id, 0, request.candidates[0], *reply[2:]) if reply[0] == _GRANTED else None
            for request, reply in zip(requests, replies, strict=True)
        ]

    def _admission(self, request: AdmitRequest, pools: Sequence[str]) -> tuple[list[str], list[str | int]]:
        adapter_keys: list[str] = []
        options: list[str | int] = []
        for candidate, placement in zip(request.candidates, request.placement_of_each, strict=True):
            if candidate.adapter is not None:
                adapter_keys.append(keys.adapter_holders(candidate.pool, candidate.adapter))
            options += (
                pools.index(candidate.pool) + 1,
                candidate.tier,
                placement.base_nano_usd,
                placement.per_token_nano_usd,
                placement.cold_nano_usd,
                len(adapter_keys) if candidate.adapter is not None else 0,
                placement.affine_replica,
                placement.credit_nano_usd,
                placement.service_us,
                placement.slots,
                placement.wake_ms,
            )
        queue = request.queue
        script_keys = [
            keys.reservation(request.request_id),
            keys.FENCE,
            keys.EPOCH,
            *(keys.rate_bucket(rate.bucket) for rate in request.rates),
            *(keys.budget(line.owner, line.window) for line in request.budgets),
            keys.stats(self._today()),
            keys.EVENTS,
            *_pool_keys(pools),
            *adapter_keys,
        ]
        arguments: list[str | int] = [
            request.request_id,
            request.step,
            request.tokens,
            request.lease_ttl_ms,
            RESERVATION_TTL_MS,
            DEAD_AFTER_MS,
            LOOK_AT_REPLICAS,
            int(request.spill),
            CLASS_NUMBERS[request.priority],
            request.tenant,
            request.weight,
            keys.grants_channel(request.gateway),
            request.hold_micro_usd,
            note_of(request),
            request.deadline_ms,
            queue.longest_queue if queue else _MAY_NOT_WAIT,
            queue.longest_wait_ms if queue else 0,
            queue.ticket_ttl_ms if queue else 0,
            queue.ageing_ms if queue else 1,
            checked_of(request),
            len(request.rates),
            len(request.budgets),
            len(request.candidates),
            len(pools),
        ]
        for rate in request.rates:
            arguments += (rate.bucket, rate.increment_us, rate.burst_us)
        for line in request.budgets:
            arguments += (line.name, line.limit_micro_usd, line.ttl_ms)
        return script_keys, [*arguments, *options, *pools, *request.exclude_replicas]

    async def poll(
        self, waiting: Sequence[Waiting], ticket_ttl_ms: int
    ) -> tuple[Grant | Waiting | None, ...]:
        if not waiting:
            return ()
        pools = _distinct(each.candidate.pool for each in waiting)
        arguments: list[str | int] = [ticket_ttl_ms]
        for each in waiting:
            arguments += (pools.index(each.candidate.pool) + 1, each.request_id)
        replies = await self._run(scripts.POLL, _pool_keys(pools), arguments)
        return tuple(_polled(each, reply) for each, reply in zip(waiting, replies, strict=True))

    async def renew(self, gateway: str, leases: Sequence[HeldLease], lease_ttl_ms: int) -> Renewal:
        pools = _distinct(lease.grant.candidate.pool for lease in leases)
        script_keys = [keys.GATEWAYS, keys.EPOCH]
        for pool in pools:
            script_keys += (keys.leases(pool), keys.lease_details(pool))
        arguments: list[str | int] = [lease_ttl_ms, gateway, GATEWAY_TTL_MS]
        for lease in leases:
            grant = lease.grant
            arguments += (
                pools.index(grant.candidate.pool) + 1,
                grant.request_id,
                grant.fence,
                int(lease.dispatched),
            )
        epoch, gateways, server, *kept = await self._run(scripts.RENEW, script_keys, arguments)
        return Renewal(tuple(each == 1 for each in kept), epoch, gateways, server)

    async def settle(self, request: SettleRequest) -> Settlement | None:
        pools = _distinct(request.pools)
        reply = await self._run(scripts.SETTLE, *self._settlement(request, pools))
        while reply[0] == _POOL_MISSING:
            pools.append(reply[1])
            reply = await self._run(scripts.SETTLE, *self._settlement(request, pools))
        return _settled(reply)

    async def settle_all(self, requests: Sequence[SettleRequest]) -> tuple[Settlement | None, ...]:
        settled: dict[str, Settlement] = {}
        for pool, calls in together.by_pool(requests).items():
            for call, settlement in zip(calls, await self._settle_together(pool, calls), strict=True):
                if settlement is not None:
                    settled[call.request_id] = settlement
        return tuple([settled.pop(each.request_id, None) or await self.settle(each) for each in requests])

    async def _settle_together(self, pool: str, requests: Sequence[SettleRequest]) -> list[Settlement | None]:
        """None: that one is not plain."""
        script_keys, arguments = together.settlement(pool, requests, self._today())
        replies = await self._run(scripts.SETTLE_ALL, script_keys, arguments)
        return [
            Settlement(reply[1], reply[2], first=True) if reply[0] == _SETTLED_NOW else None
            for reply in replies
        ]

    def _settlement(self, request: SettleRequest, pools: Sequence[str]) -> tuple[list[str], list[str | int]]:
        script_keys = [
            keys.reservation(request.request_id),
            keys.FENCE,
            keys.stats(self._today()),
            keys.EVENTS,
            *(keys.rate_bucket(bucket) for bucket, _ in request.rates),
            *(keys.budget(owner, window) for owner, window in request.budgets),
            *_pool_keys(pools),
        ]
        arguments: list[str | int] = [
            request.request_id,
            request.cost_micro_usd,
            request.saved_micro_usd,
            request.tier,
            RESERVATION_TTL_MS,
            DEAD_AFTER_MS,
            "cancelled" if request.cancelled else "settled",
            len(request.rates),
            len(request.budgets),
            len(pools),
            *(back_us for _, back_us in request.rates),
            *pools,
        ]
        return script_keys, arguments

    async def listen_for_grants(self, gateway: str, tell: Callable[[GrantNotice], None]) -> None:
        """Tell of every grant to a waiter of this gateway. Runs for ever, also over lost connections;
        messages may be lost, so `poll` has the last word."""
        while True:
            try:
                async with self._client.pubsub() as subscription:
                    await subscription.subscribe(keys.grants_channel(gateway))
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=5.0)
                        if message is not None:
                            tell(_notice_of(message["data"]))
            except (RedisError, OSError):
                await asyncio.sleep(1.0)

    # Janitor.

    async def reap(self, pools: Sequence[str], *, charge_lost: bool = True) -> tuple[Lost, ...]:
        pools = _distinct(pools)
        script_keys = [keys.FENCE, keys.stats(self._today())]
        for pool in pools:
            script_keys += (*keys.of_pool(pool), keys.directory(pool))
        found, dead = await self._run(
            scripts.SWEEP, script_keys, [DEAD_AFTER_MS, EXPIRED_PER_REAP, STATS_TTL_MS]
        )
        for number, replica_id, adapters in zip(dead[::3], dead[1::3], dead[2::3], strict=True):
            await self._take_out(pools[number - 1], replica_id, json.loads(adapters), DEAD_AFTER_MS)
        if not found:
            return ()
        expired = [(pools[number - 1], id_) for number, id_ in zip(found[::2], found[1::2], strict=True)]
        # A request's budgets and buckets stand in its reservation: read first, so that every key is declared.
        with unavailable_on_error():
            rows: list[Any] = await self._client.mget([keys.reservation(id_) for _, id_ in expired])
        lost = []
        for (pool, request_id), row in zip(expired, rows, strict=True):
            rates, budgets, note = _parse_note(row)
            reply = await self._run(
                scripts.REAP,
                [
                    keys.reservation(request_id),
                    keys.FENCE,
                    keys.stats(self._today()),
                    keys.EVENTS,
                    *(keys.rate_bucket(bucket) for bucket, _ in rates),
                    *(keys.budget(owner, window) for owner, window in budgets),
                    *keys.of_pool(pool),
                ],
                [
                    request_id,
                    pool,
                    RESERVATION_TTL_MS,
                    DEAD_AFTER_MS,
                    int(charge_lost),
                    len(rates),
                    len(budgets),
                    *(charged_us for _, charged_us in rates),
                ],
            )
            if reply[0] == 1:
                lost.append(Lost(request_id, reply[1], note, budgets))
        return tuple(lost)

    async def rebuild(self, spent: Sequence[tuple[BudgetLine, int]], grace_ms: int = REBUILD_GRACE_MS) -> str:
        arguments: list[str | int] = [grace_ms]
        for line, micro_usd in spent:
            arguments += (micro_usd, line.ttl_ms)
        script_keys = [keys.EPOCH, *(keys.budget(line.owner, line.window) for line, _ in spent)]
        return str(await self._run(scripts.REBUILD, script_keys, arguments))

    async def reregister(self, request: AdmitRequest, lease: HeldLease) -> Grant | None:
        grant = lease.grant
        pool = grant.candidate.pool
        fence = await self._run(
            scripts.REREGISTER,
            [
                keys.reservation(request.request_id),
                keys.FENCE,
                *(keys.budget(line.owner, line.window) for line in request.budgets),
                *keys.of_pool(pool),
                keys.directory(pool),
            ],
            [
                request.request_id,
                grant.step,
                pool,
                request.hold_micro_usd,
                note_of(request),
                RESERVATION_TTL_MS,
                request.tokens,
                request.candidates.index(grant.candidate) if grant.candidate in request.candidates else 0,
                grant.address,
                grant.replica_id,
                request.lease_ttl_ms,
                int(lease.dispatched),
                len(request.budgets),
                grant.fence,
                DEAD_AFTER_MS,
                *(line.ttl_ms for line in request.budgets),
            ],
        )
        return replace(grant, fence=fence) if fence else None

    # Replicas.

    async def heartbeat(self, state: ReplicaState) -> None:
        if "|" in state.address:
            raise ValueError(
                f"the address {state.address!r} of {state.replica_id} holds a '|', which separates fields"
            )
        held = state.held_adapters
        before = await self._adapters_before(state)
        await self._run(
            scripts.HEARTBEAT,
            [
                keys.replica(state.replica_id),
                keys.directory(state.pool),
                keys.FENCE,
                *keys.of_pool(state.pool),
                *(keys.adapter_holders(state.pool, name) for name in held),
                *(keys.adapter_holders(state.pool, name) for name in sorted(before.difference(held))),
            ],
            [
                state.replica_id,
                json.dumps(asdict(state)),
                DEAD_AFTER_MS,
                int(state.phase is ReplicaPhase.READY),
                state.epoch,
                state.max_concurrency,
                state.max_outstanding_tokens,
                state.address,
                len(held),
                json.dumps(held),
                state.adapters_loading,
            ],
        )
        self._held_adapters[state.replica_id] = frozenset(held)

    async def deregister(self, state: ReplicaState) -> None:
        await self._take_out(state.pool, state.replica_id, sorted(await self._adapters_before(state)), 0)
        self._held_adapters.pop(state.replica_id, None)

    async def _take_out(
        self, pool: str, replica_id: str, adapters: Iterable[str], if_dead_after_ms: int
    ) -> None:
        await self._run(
            scripts.DEREGISTER,
            [
                keys.replica(replica_id),
                keys.directory(pool),
                *keys.of_pool(pool),
                *(keys.adapter_holders(pool, name) for name in adapters),
            ],
            [replica_id, if_dead_after_ms],
        )

    async def _adapters_before(self, state: ReplicaState) -> frozenset[str]:
        """Those of the last heartbeat; asked once for a replica whose earlier process reported others."""
        known = self._held_adapters.get(state.replica_id)
        if known is not None:
            return known
        with unavailable_on_error():
            names = await self._client.hget(keys.load(state.pool), f"{state.replica_id}|adp")
        return frozenset(json.loads(names or "[]"))

    # Views, for people and control loops: several reads, each correct by itself.

    async def pool_load(self, pool: str) -> PoolLoad:
        with unavailable_on_error():
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.smembers(keys.directory(pool))
                (seconds, microseconds), ids = await pipeline.execute()
            now_ms = seconds * 1000 + microseconds // 1000
            replica_ids = sorted(ids)
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.zcount(keys.leases(pool), f"({now_ms}", "+inf")
                for number in range(len(CLASSES)):
                    pipeline.zlexcount(keys.lines(pool), f"[{number}", f"({number + 1}")
                for replica_id in replica_ids:
                    pipeline.get(keys.replica(replica_id))
                    pipeline.hmget(keys.load(pool), f"{replica_id}|req", f"{replica_id}|tok")
                leases, interactive, normal, batch, *rows = await pipeline.execute()
        replicas = tuple(
            replace(_parse_state(entry), load_requests=int(requests or 0), load_tokens=int(tokens or 0))
            for entry, (requests, tokens) in zip(rows[::2], rows[1::2], strict=True)
            if entry is not None
        )
        return PoolLoad(replicas=replicas, leases=leases, waiting=(interactive, normal, batch))

    async def budget_states(self, budgets: Sequence[tuple[str, str]]) -> tuple[BudgetState, ...]:
        if not budgets:
            return ()
        with unavailable_on_error():
            rows = await self._client.mget([keys.budget(owner, window) for owner, window in budgets])
        return tuple(BudgetState(*map(int, row.split())) if row else BudgetState() for row in rows)

    async def spend_today(self) -> Spend:
        with unavailable_on_error():
            reply = await self._client.hgetall(keys.stats(self._today()))
        return spend_of({str(field): int(amount) for field, amount in reply.items()})

    async def ping(self) -> None:
        with unavailable_on_error():
            await self._client.ping()

    async def close(self) -> None:
        await self._client.aclose()
        if self._pipeline is not None:
            await self._pipeline.aclose()

    async def _run(
        self, script: scripts.LuaScript, script_keys: Sequence[str], arguments: Sequence[str | int | bytes]
    ) -> Any:
        with unavailable_on_error():
            return await script(self._pipeline or self._client, script_keys, arguments)

    def _today(self) -> str:
        return keys.utc_day(self._clock.now_ms())


def spend_of(sums: dict[str, int]) -> Spend:
    """The day's counters (`cluster.keys.stats`) as a record."""

    def group(prefix: str) -> tuple[tuple[str, int], ...]:
        return tuple(
            sorted((name.removeprefix(prefix), n) for name, n in sums.items() if name.startswith(prefix))
        )

    return Spend(
        spent_micro_usd=sums.get("spent", 0),
        saved_micro_usd=sums.get("saved", 0),
        calls=sums.get("calls", 0),
        calls_by_tier=group("calls:"),
        refused=group("refused:"),
        lost_calls=sums.get("lost", 0),
        overrun_micro_usd=sums.get("overrun", 0),
    )


def _placed(request_id: str, step: int, candidate: Candidate, reply: Sequence[Any]) -> Grant | Waiting:
    if reply[0] == _WAITING:
        _, _, position, wait_ms = reply
        return Waiting(request_id, step, candidate, position, wait_ms)
    _, _, replica, address, fence, expiry_ms = reply
    return Grant(request_id, step, candidate, replica, address, fence, expiry_ms)


def _settled(reply: Sequence[Any]) -> Settlement | None:
    if reply[0] == _NO_SUCH_REQUEST:
        return None
    outcome, cost, saved, _grants = reply
    return Settlement(cost, saved, first=outcome == _SETTLED_NOW)


def _polled(waiting: Waiting, reply: Sequence[Any]) -> Grant | Waiting | None:
    if reply[0] == _GRANTED:
        return _placed(waiting.request_id, waiting.step, waiting.candidate, reply)
    if reply[0] == _WAITING:
        return replace(waiting, position=reply[1], predicted_wait_ms=0)
    return None


def _notice_of(payload: str) -> GrantNotice:
    request_id, step, _candidate, fence, expiry_ms, address, replica_id = payload.split("|", maxsplit=6)
    return GrantNotice(request_id, int(step), int(fence), int(expiry_ms), address, replica_id)


def _parse_note(row: str | None) -> tuple[list[tuple[str, int]], tuple[tuple[str, str], ...], str]:
    """From a reservation: rates, budgets and note; empty where it is over."""
    state, *rest = (row or "").split("|", maxsplit=4)
    if state not in ("open", "waiting"):
        return [], (), ""
    note = json.loads(rest[3])
    return note["rates"], tuple((owner, window) for owner, window in note["budgets"]), note["note"]


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _pool_keys(pools: Sequence[str]) -> list[str]:
    return [key for pool in pools for key in keys.of_pool(pool)]


def _parse_state(entry: str) -> ReplicaState:
    fields = json.loads(entry)
    fields["phase"] = ReplicaPhase(fields["phase"])
    for name in ("adapters", "adapter_problems", "adapter_uses"):
        fields[name] = tuple(map(tuple, fields[name]))
    return ReplicaState(**fields)
