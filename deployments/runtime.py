"""What every replica process is handed when it starts. Crosses actor boundaries, so plain fields only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio

from cluster.clock import SystemClock
from cluster.config import ClusterConfig
from cluster.errors import StartError
from cluster.scheduler.pipelined_redis import PipelinedRedis
from cluster.scheduler.redis_connection import connect, normal_url
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import REBUILD_GRACE_MS
from deployments.state_folder import PEPPER_VARIABLE, TOKEN_VARIABLE, Secrets, StateFolder
from deployments.store_location import STORE_VARIABLE
from deployments.weights.on_node import weights_on_node

REQUIRED_VARIABLES = ("REDIS_URL", STORE_VARIABLE, TOKEN_VARIABLE, PEPPER_VARIABLE)


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

    @classmethod
    def from_environment(cls, config: ClusterConfig, environ: Mapping[str, str] = os.environ) -> Runtime:
        """For nodes whose secrets come from their environment (`sprat render`). Raises StartError."""
        missing = [name for name in REQUIRED_VARIABLES if not environ.get(name)]
        if missing:
            raise StartError(
                f"{', '.join(missing)} must be set on every node before Ray starts there; "
                "deployments/DEPLOYING.md says what they hold."
            )
        secrets = Secrets.from_environment(environ)
        return cls(
            config=config,
            redis_url=environ["REDIS_URL"],
            store_url=environ[STORE_VARIABLE],
            journal_folder=str(StateFolder.default().journal_folder),
            gateway_token=secrets.gateway_token,
            pepper=secrets.pepper,
        )

    def weights_of(self, base_model: str) -> Path:
        """On this node; fetched where they are not there yet. Blocks."""
        model = self.config.base_models[base_model]
        return weights_on_node(base_model, model, self.weights.get(base_model))

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
