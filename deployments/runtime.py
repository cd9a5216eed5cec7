"""What every replica process is handed when it starts. Crosses actor boundaries, so plain fields only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio

from cluster.clock import SystemClock
from cluster.config import ClusterConfig
from cluster.scheduler.redis_scheduler import RedisScheduler, connect


@dataclass(frozen=True, slots=True)
class Runtime:
    """`gateway_token` opens the engines to the gateways and to nobody else (THREATS.md 3)."""

    config: ClusterConfig
    redis_url: str
    store_url: str
    weights: dict[str, str] = field(default_factory=dict)
    gateway_token: str = field(default="", repr=False)
    pepper: bytes = field(default=b"", repr=False)

    def weights_of(self, base_model: str) -> Path:
        return Path(self.weights[base_model])

    def scheduler(self) -> RedisScheduler:
        client: redis.asyncio.Redis = connect(self.redis_url)
        return RedisScheduler(client, SystemClock())
