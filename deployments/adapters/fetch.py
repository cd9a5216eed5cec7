"""The files of an adapter from its source into a folder of ours.

Only the two files that count are asked for, by our own names: nothing that a source says becomes a path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.adapters.sources import AdapterSource, S3Source
from cluster.sources import FolderSource
from deployments.adapters.folder_source import copy_from_folder
from deployments.adapters.hub_source import download_from_hub
from deployments.adapters.s3_source import download_from_s3

Fetch = Callable[[AdapterSource, Path], AdapterSource]


def fetch_files(source: AdapterSource, into: Path) -> AdapterSource:
    """Returns the source as it should be remembered: absolute, and pinned where it can be. Blocks.

    Raises AdapterUnavailable where the source does not answer, AdapterRefused where it holds no adapter that
    we take; OSError of our own disk."""
    if isinstance(source, FolderSource):
        return copy_from_folder(source, into)
    if isinstance(source, S3Source):
        return download_from_s3(source, into)
    return download_from_hub(source, into)
