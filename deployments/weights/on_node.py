"""The weights of one model on the node that serves it."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.config import BaseModelConfig
from deployments.weights.progress import LineProgress
from deployments.weights.store import WeightsStore, default_root


def weights_on_node(name: str, model: BaseModelConfig, prepared: str | None) -> Path:
    """The ready folder. `prepared` is where another machine made it; where that is not on this one, this node
    fetches for itself, once for all its replicas. Blocks, minutes for a large model. Raises WeightsError."""
    if prepared is not None and Path(prepared).exists():
        return Path(prepared)
    store = WeightsStore(default_root())
    return store.ensure(name, model.source, model.sha256, progress=LineProgress(sys.stderr))
