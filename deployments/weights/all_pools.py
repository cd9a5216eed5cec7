"""The weights of a whole cluster, before anything starts."""

from __future__ import annotations

from cluster.config import ClusterConfig
from deployments.weights.progress import open_progress
from deployments.weights.store import WeightsStore, default_root


def ensure_weights(config: ClusterConfig) -> dict[str, str]:
    """Base model → ready folder, for every pool with a real engine. Progress goes to standard error."""
    store = WeightsStore(default_root())
    wanted = dict.fromkeys(pool.base_model for pool in config.pools.values() if pool.engine == "vllm")
    folders: dict[str, str] = {}
    with open_progress() as progress:
        for name in wanted:
            model = config.base_models[name]
            folders[name] = str(store.ensure(name, model.source, model.sha256, progress=progress))
    return folders
