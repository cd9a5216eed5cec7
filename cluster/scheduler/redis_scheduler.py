"""The scheduler on Redis >= 7 or Valkey: every operation is one script, one round trip.

Knows how calls become KEYS and ARGV and how replies become records; the decisions are in `lua/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from cluster import keys
from cluster.clock import Clock
from cluster.errors import ConfigError, SchedulerUnavailable
from cluster.scheduler import scripts
from cluster.scheduler.scheduler import (
    DEAD_AFTER_MS,
    EXPIRED_PER_ADMIT,
    EXPIRED_PER_REAP,
    LOOK_AT_REPLICAS,
    RESERVATION_TTL_MS,
    RETRY_AFTER_MS,
)
from cluster.types import (
    AdmitRequest,
    Grant,
    PoolLoad,
    Refusal,
    RefusalReason,
    ReplicaPhase,
    ReplicaState,
    Settlement,
    Spend,
    Usage,
)

# First cut: long enough for a busy laptop, short enough that a hung store cannot hang a request. The breaker
# of SCHEDULER.md 11 comes with 50 to 100 ms.
CONNECT_TIMEOUT_S = 0.25
OPERATION_TIMEOUT_S = 0.5
MAX_CONNECTIONS = 32

_REFUSED, _GRANTED = 0, 1
_SETTLED_BEFORE, _SETTLED_NOW, _NO_SUCH_REQUEST = 0, 1, 3
_POOL_MISSING = 2


def connect(
    url_or_unix_socket: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    operation_timeout_s: float = OPERATION_TIMEOUT_S,
) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://` URLs, or for the path of a unix socket.

    Connects on first use. Raises ConfigError for any other URL.
    """
    url = url_or_unix_socket
    if url.startswith("/"):
        url = f"unix://{quote(url)}"
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=operation_timeout_s,  # for a free connection
            socket_connect_timeout=connect_timeout_s,
            socket_timeout=operation_timeout_s,
            # One retry on a fresh connection, because a pooled one may have died unnoticed: every call is
            # safe to repeat. Never after a timeout: that would double the wait for a store that hangs.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            decode_responses=True,
            protocol=2,  # we need nothing of RESP3, and it costs a round trip per connection
        )
    except ValueError as error:
        # The URL may hold a password, so it is not repeated here.
        raise ConfigError(
            "the Redis URL must start with redis://, rediss:// or unix://, or be the path of a unix socket"
        ) from error
    return Redis.from_pool(pool)


@contextmanager
def _unavailable_on_error() -> Iterator[None]:
    """The seam where Redis' errors become ours: timeouts, refused or lost connections, a full connection
    pool, LOADING, OOM, READONLY, CLUSTERDOWN."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise SchedulerUnavailable(
            "The scheduler's store does not answer; try again shortly.", retry_after_s=1.0
        ) from error


class RedisScheduler:
    """`Scheduler` on a client made by `connect`. Leases and heartbeats live by Redis' clock; `clock` only
    says which UTC day a cost belongs to."""

    def __init__(self, client: Redis, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def admit(self, request: AdmitRequest) -> Grant | Refusal:
        pools = _distinct(candidate.pool for candidate in request.candidates)
        reply = await self._admit(request, pools)
        if reply[0] == _POOL_MISSING:
            reply = await self._admit(request, [*pools, reply[1]])
        if reply[0] == _REFUSED:
            reason = RefusalReason(reply[1])
            return Refusal(reason, RETRY_AFTER_MS[reason])
        _, candidate, replica, address, fence, expiry_ms = reply
        return Grant(
            request_id=request.request_id,
            step=request.step,
            candidate=request.candidates[candidate],
            replica_id=replica,
            address=address,
            fence=fence,
            lease_expiry_ms=expiry_ms,
        )

    async def _admit(self, request: AdmitRequest, pools: Sequence[str]) -> Any:
        arguments: list[str | int] = [
            request.request_id,
            request.step,
            request.tokens,
            request.lease_ttl_ms,
            int(request.spill),
            DEAD_AFTER_MS,
            RESERVATION_TTL_MS,
            EXPIRED_PER_ADMIT,
            LOOK_AT_REPLICAS,
            request.large_price.prompt_micro_usd_per_mtok,
            request.large_price.output_micro_usd_per_mtok,
            len(request.candidates),
        ]
        for candidate in request.candidates:
            arguments += [
                pools.index(candidate.pool) + 1,
                candidate.tier,
                candidate.price.prompt_micro_usd_per_mtok,
                candidate.price.output_micro_usd_per_mtok,
            ]
        arguments += [*pools, *request.exclude_replicas]
        return await self._run(
            scripts.ADMIT,
            [keys.reservation(request.request_id), keys.FENCE, *_pool_keys(pools)],
            arguments,
        )

    async def renew(self, grants: Sequence[Grant], lease_ttl_ms: int) -> tuple[bool, ...]:
        if not grants:
            return ()
        pools = _distinct(grant.candidate.pool for grant in grants)
        script_keys = [key for pool in pools for key in (keys.leases(pool), keys.lease_details(pool))]
        arguments: list[str | int] = [lease_ttl_ms]
        for grant in grants:
            arguments += [pools.index(grant.candidate.pool) + 1, grant.request_id, grant.fence]
        reply = await self._run(scripts.RENEW, script_keys, arguments)
        return tuple(renewed == 1 for renewed in reply)

    async def settle(self, request_id: str, pools: Sequence[str], usage: Usage) -> Settlement | None:
        pools = _distinct(pools)
        reply = await self._settle(request_id, pools, usage)
        if reply[0] == _POOL_MISSING:
            reply = await self._settle(request_id, [*pools, reply[1]], usage)
        if reply[0] == _NO_SUCH_REQUEST:
            return None
        outcome, cost, saved = reply
        return Settlement(int(cost), int(saved), first=outcome == _SETTLED_NOW)

    async def _settle(self, request_id: str, pools: Sequence[str], usage: Usage) -> Any:
        return await self._run(
            scripts.SETTLE,
            [keys.reservation(request_id), keys.spend(self._today()), *_pool_keys(pools)],
            [request_id, usage.prompt_tokens, usage.output_tokens, RESERVATION_TTL_MS, *pools],
        )

    async def reap(self, pools: Sequence[str]) -> int:
        script_keys = [
            key for pool in _distinct(pools) for key in (*_pool_keys([pool]), keys.directory(pool))
        ]
        return int(await self._run(scripts.REAP, script_keys, [DEAD_AFTER_MS, EXPIRED_PER_REAP]))

    async def heartbeat(self, state: ReplicaState) -> None:
        await self._run(
            scripts.HEARTBEAT,
            [
                keys.replica(state.replica_id),
                keys.directory(state.pool),
                keys.FENCE,
                *_pool_keys([state.pool]),
            ],
            [
                state.replica_id,
                json.dumps(asdict(state)),
                DEAD_AFTER_MS,
                int(state.phase is ReplicaPhase.READY),
                state.epoch,
                state.max_concurrency,
                state.address,
            ],
        )

    async def deregister(self, state: ReplicaState) -> None:
        await self._run(
            scripts.DEREGISTER,
            [keys.replica(state.replica_id), keys.directory(state.pool), *_pool_keys([state.pool])],
            [state.replica_id],
        )

    async def pool_load(self, pool: str) -> PoolLoad:
        # For people and control loops: several reads, each correct by itself.
        with _unavailable_on_error():
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.smembers(keys.directory(pool))
                (seconds, microseconds), ids = await pipeline.execute()
            now_ms = seconds * 1000 + microseconds // 1000
            replica_ids = sorted(ids)
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.zcount(keys.leases(pool), f"({now_ms}", "+inf")
                for replica_id in replica_ids:
                    pipeline.get(keys.replica(replica_id))
                    pipeline.hmget(keys.load(pool), f"{replica_id}|req", f"{replica_id}|tok")
                leases, *rows = await pipeline.execute()
        replicas = tuple(
            replace(_parse_state(entry), load_requests=int(requests or 0), load_tokens=int(tokens or 0))
            for entry, (requests, tokens) in zip(rows[::2], rows[1::2], strict=True)
            if entry is not None
        )
        return PoolLoad(replicas=replicas, leases=leases)

    async def spend_today(self) -> Spend:
        with _unavailable_on_error():
            reply = await self._client.hgetall(keys.spend(self._today()))
        sums = {str(field): int(amount) for field, amount in reply.items()}
        return Spend(
            spent_micro_usd=sums.get("spent", 0),
            saved_micro_usd=sums.get("saved", 0),
            calls=sums.get("calls", 0),
            calls_by_tier=tuple(
                sorted(
                    (field.removeprefix("calls:"), count)
                    for field, count in sums.items()
                    if field.startswith("calls:")
                )
            ),
        )

    async def ping(self) -> None:
        with _unavailable_on_error():
            await self._client.ping()

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(
        self, script: scripts.LuaScript, script_keys: Sequence[str], arguments: Sequence[str | int]
    ) -> Any:
        with _unavailable_on_error():
            return await script(self._client, script_keys, arguments)

    def _today(self) -> str:
        return keys.utc_day(self._clock.now_ms())


def _distinct(names: Iterator[str] | Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _pool_keys(pools: Sequence[str]) -> list[str]:
    """In the order that `lua/_pool.lua` expects."""
    return [
        key
        for pool in pools
        for key in (keys.leases(pool), keys.lease_details(pool), keys.replicas(pool), keys.load(pool))
    ]


def _parse_state(entry: str) -> ReplicaState:
    fields = json.loads(entry)
    fields["phase"] = ReplicaPhase(fields["phase"])
    fields["adapters"] = tuple((name, state) for name, state in fields["adapters"])
    return ReplicaState(**fields)
