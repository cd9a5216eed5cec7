"""What became of calls that carry an Idempotency-Key, in Redis. Answers are sealed by the gateway: nothing in
here can be read without the client's own key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from cluster import keys
from cluster.scheduler import scripts
from cluster.scheduler.breaker import Breaker
from cluster.scheduler.redis_connection import unavailable_on_error

KEPT_MS = 24 * 3_600_000


class Outcome(StrEnum):
    """`other`: the key was used with another body. `running`: its first call has not ended yet."""

    NEW = "new"
    OTHER = "other"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class FirstCall:
    """`request_id` and `sealed` are those of a call that is `done`."""

    outcome: Outcome
    request_id: str = ""
    sealed: str = ""


class IdempotencyKeys:
    """Each method is one script. Raises SchedulerUnavailable, at once while the breaker is open."""

    def __init__(self, client: Redis, breaker: Breaker) -> None:
        self._client = client
        self._breaker = breaker

    async def begin(
        self, tenant: str, key_digest: str, body_digest: str, request_id: str, running_ttl_ms: int
    ) -> FirstCall:
        """`running_ttl_ms`: after that a call whose gateway died may be tried again."""
        reply = await self._run(
            scripts.IDEMPOTENCY_BEGIN, tenant, key_digest, [body_digest, request_id, running_ttl_ms]
        )
        return FirstCall(Outcome(reply[0]), *reply[1:])

    async def finish(self, tenant: str, key_digest: str, request_id: str, sealed: str) -> None:
        await self._run(scripts.IDEMPOTENCY_END, tenant, key_digest, [request_id, sealed, KEPT_MS])

    async def forget(self, tenant: str, key_digest: str, request_id: str) -> None:
        await self._run(scripts.IDEMPOTENCY_END, tenant, key_digest, [request_id, "", KEPT_MS])

    async def _run(
        self, script: scripts.LuaScript, tenant: str, key_digest: str, arguments: list[str | int]
    ) -> Any:
        with self._breaker, unavailable_on_error():
            return await script(self._client, [keys.idempotency(tenant, key_digest)], arguments)
