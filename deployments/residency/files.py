"""Where the files of an adapter are: those of the YAML in their folder, those of the registry in the node's
cache, which fetches and checks what is not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from cluster.adapters.base_shapes import BaseShapes
from cluster.adapters.errors import RankAbovePool, UnknownAdapter
from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterVersion
from cluster.config import AdapterConfig, PoolConfig
from cluster.store import open_store
from cluster.store.adapters import Adapters
from deployments.adapters.cache import AdapterCache
from deployments.runtime import Runtime
from deployments.weights.store import default_root

CACHE_FOLDER = "adapters"
"""Beside the weights of the base models, shared by all clusters of a node: names are hashes of content."""


class RegistryFiles:
    """`residency.AdapterFiles` for one pool."""

    def __init__(
        self,
        pool: PoolConfig,
        declared: Mapping[str, AdapterConfig],
        registry: Adapters,
        cache: AdapterCache,
    ) -> None:
        self._pool = pool
        self._declared = declared
        self._registry = registry
        self._cache = cache
        self._held: dict[str, str] = {}

    @classmethod
    async def of(cls, runtime: Runtime, pool_name: str, base: Path | None) -> RegistryFiles:
        """`base`: the weights that every adapter has to fit. Raises StoreUnavailable."""

        def made() -> RegistryFiles:
            shapes = None if base is None else BaseShapes.of_folder(base)
            cache = AdapterCache(default_root() / CACHE_FOLDER, base=shapes)
            registry = Adapters(open_store(runtime.store_url))
            return cls(runtime.config.pools[pool_name], runtime.config.adapters, registry, cache)

        return await asyncio.to_thread(made)

    async def folder_of(self, adapter_id: str) -> Path:
        """Raises AdapterProblem, StoreUnavailable."""
        declared = self._declared.get(adapter_id)
        if declared is not None:
            return Path(declared.source.removeprefix("folder:"))
        version = await asyncio.to_thread(self._registry.find, adapter_id)
        self._check(version)
        folder = await self._cache.fetch(version)
        self._held[adapter_id] = version.content_hash
        return folder

    def release(self, adapter_id: str) -> None:
        content_hash = self._held.pop(adapter_id, None)
        # The same files may be here under another name.
        if content_hash is not None and content_hash not in self._held.values():
            self._cache.release(content_hash)

    def _check(self, version: AdapterVersion) -> None:
        """Gateways and controller look at the same: this is for what they ask in the moment of a change."""
        if version.state is AdapterLife.RETIRED:
            raise UnknownAdapter(f"{version.adapter_id} is retired.")
        if version.rank > self._pool.max_rank:
            raise RankAbovePool(
                f"{version.adapter_id} has rank {version.rank}, its pool takes "
                f"{self._pool.max_rank} at most. Raise max_rank."
            )
