"""`hf:REPO@REVISION`: the two files of a repository on the Hugging Face hub, at one commit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from cluster.adapters.content import FILES
from cluster.adapters.errors import AdapterProblem, AdapterRefused, AdapterUnavailable
from cluster.adapters.folder import check_size, missing_files
from cluster.sources import HubSource

TIMEOUT_S = 30.0


def download_from_hub(source: HubSource, into: Path) -> HubSource:
    """Pinned to the commit that the revision means now. Raises AdapterUnavailable, AdapterRefused."""
    own = into / ".hub"  # the library leaves notes beside what it downloads
    try:
        return _download(source, into, own)
    except AdapterProblem:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise  # the disk, not the hub: the caller names it
        raise _unavailable(source, error) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _download(source: HubSource, into: Path, own: Path) -> HubSource:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # the library reads it only when it is imported
    found: Any = hub.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S)
    sizes_bytes = {file.rfilename: file.size for file in found.siblings}
    if problem := missing_files(set(sizes_bytes)):
        raise AdapterRefused(f"{source}: {problem}")
    for name in FILES:
        if sizes_bytes[name] is not None:
            check_size(name, sizes_bytes[name])
        hub.hf_hub_download(source.repo, name, revision=found.sha, local_dir=own, etag_timeout=TIMEOUT_S)
        (own / name).rename(into / name)
    return HubSource(source.repo, found.sha)


def _unavailable(source: HubSource, error: Exception) -> AdapterUnavailable:
    """Connection, proxy, endpoint and storage errors come as many types from several libraries."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return AdapterUnavailable(
            f"{source}: the authors ask for consent first. Accept the terms on the hub, then run "
            "`hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return AdapterUnavailable(
            f"{source}: the repository has no such revision. Name an existing branch, tag or commit."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return AdapterUnavailable(
            f"{source}: there is no such repository, or it is private. Check the name; for a private one run "
            "`hf auth login`."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return AdapterUnavailable(f"{source}: the hub is switched off here (HF_HUB_OFFLINE). Unset it.")
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return AdapterUnavailable(
        f"{source}: the hub does not answer ({why}). Check the network, set HF_ENDPOINT to a mirror, or add "
        "the adapter from a folder."
    )
