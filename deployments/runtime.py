"""What every replica process is handed when it starts. Crosses actor boundaries, so plain fields only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio

from cluster.clock import SystemClock
from cluster.config import ClusterConfig
from cluster.scheduler.pipelined_redis import PipelinedRedis
from cluster.scheduler.redis_connection import connect, normal_url
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import REBUILD_GRACE_MS


@dataclass(frozen=True, slots=True)
class Runtime:
    """`gateway_token` opens the engines to the gateways and to nobody else (THREATS.md 3)."""

    config: ClusterConfig
    redis_url: str
    store_url: str = field(repr=False)
    journal_folder: str
    weights: dict[str, str] = field(default_factory=dict)
    gateway_token: str = field(default="", repr=False)
    pepper: bytes = field(default=b"", repr=False)
    rebuild_grace_ms: int = REBUILD_GRACE_MS

    def weights_of(self, base_model: str) -> Path:
        return Path(self.weights[base_model])

    def redis(self) -> redis.asyncio.Redis:
        return connect(
            self.redis_url,
            connect_timeout_s=self.config.redis.connect_timeout_ms / 1000,
            operation_timeout_s=self.config.redis.timeout_ms / 1000,
        )

    def pipelined_redis(self) -> PipelinedRedis:
        return PipelinedRedis(
            normal_url(self.redis_url),
            connect_timeout_s=self.config.redis.connect_timeout_ms / 1000,
            operation_timeout_s=self.config.redis.timeout_ms / 1000,
        )

    def scheduler(self) -> RedisScheduler:
        return RedisScheduler(self.redis(), SystemClock())
