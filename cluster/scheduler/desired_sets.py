"""The desired adapters of each replica, in Redis: written by the controller that is in charge, read by the
replicas. Nothing is lost with them: the next tick writes them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from cluster import keys
from cluster.scheduler.redis_connection import unavailable_on_error
from cluster.scheduler.scripts import DESIRE

IN_CHARGE_MS = 10_000
"""How long a controller that stopped keeps others from taking over."""

KEPT_MS = 24 * 3600 * 1000
"""Replicas that are gone never read theirs."""


class DesiredSets:
    def __init__(self, client: Redis) -> None:
        self._client = client

    async def write(
        self, controller: str, desired: Mapping[str, Sequence[str]], report: Mapping[str, Any]
    ) -> bool:
        """`desired`: replica id → adapter ids, the most wanted first. False: another controller is in charge,
        nothing was written. Raises SchedulerUnavailable."""
        with unavailable_on_error():
            written = await DESIRE(
                self._client,
                [keys.CONTROLLER, keys.PLACEMENT, *map(keys.desired_adapters, desired)],
                [
                    controller,
                    IN_CHARGE_MS,
                    KEPT_MS,
                    json.dumps(report),
                    *(json.dumps(list(adapters)) for adapters in desired.values()),
                ],
            )
        return bool(written)

    async def read(self, replica_id: str) -> tuple[str, ...] | None:
        """None: no controller has seen this replica yet. Raises SchedulerUnavailable."""
        with unavailable_on_error():
            text = await self._client.get(keys.desired_adapters(replica_id))
        return None if text is None else tuple(json.loads(text))

    async def report(self) -> dict[str, Any]:
        """What the controller said when it last wrote; {} where none has. Raises SchedulerUnavailable."""
        with unavailable_on_error():
            text = await self._client.get(keys.PLACEMENT)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    async def close(self) -> None:
        await self._client.aclose()
