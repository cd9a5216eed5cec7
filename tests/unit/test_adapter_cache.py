"""The adapters of a node: fetched once, checked, bounded, and never taken from under somebody."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.adapters.base_shapes import BaseShapes
from cluster.adapters.content import FILES, folder_hash
from cluster.adapters.errors import (
    AdapterCacheFull,
    AdapterCorrupt,
    AdapterRefused,
    AdapterUnavailable,
    BaseMismatch,
)
from cluster.adapters.life import AdapterLife
from cluster.adapters.sources import AdapterSource
from cluster.adapters.version import AdapterVersion
from deployments.adapters.cache import AdapterCache
from deployments.adapters.fetch import Fetch, fetch_files
from tests.lora_files import write_adapter, write_base
from tests.processes import at_once

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "node" / "adapters"


def version_of(folder: Path, adapter_id: str = "support@1") -> AdapterVersion:
    return AdapterVersion(
        adapter_id=adapter_id,
        base_model="small-base",
        rank=4,
        target_modules=("q_proj",),
        size_bytes=sum((folder / name).stat().st_size for name in FILES),
        content_hash=folder_hash(folder),
        source=f"folder:{folder}",
        state=AdapterLife.LIVE,
        created_at_ms=0,
    )


def made(tmp_path: Path, seed: int = 1) -> AdapterVersion:
    return version_of(write_adapter(tmp_path / f"source-{seed}", seed=seed), f"support@{seed}")


def counting(calls: list[str]) -> Fetch:
    def fetch(source: AdapterSource, into: Path) -> AdapterSource:
        calls.append(str(source))
        return fetch_files(source, into)

    return fetch


async def test_a_fetched_adapter_lies_under_its_hash(tmp_path: Path, root: Path) -> None:
    version = made(tmp_path)
    calls: list[str] = []
    cache = AdapterCache(root, fetch=counting(calls))

    path = await cache.fetch(version)

    assert path == root / version.content_hash
    assert folder_hash(path) == version.content_hash
    assert await cache.fetch(version) == path
    assert calls == [version.source]


async def test_many_that_want_it_at_once_share_one_download(tmp_path: Path, root: Path) -> None:
    version = made(tmp_path)
    calls: list[str] = []

    def slow(source: AdapterSource, into: Path) -> AdapterSource:
        time.sleep(0.2)
        return counting(calls)(source, into)

    caches = [AdapterCache(root, fetch=slow) for _ in range(3)]

    paths = await asyncio.gather(*(cache.fetch(version) for cache in caches for _ in range(2)))

    assert set(paths) == {root / version.content_hash}
    assert calls == [version.source]


def fetched_by_another(root: Path, version: AdapterVersion, log: Path) -> str:
    def fetch(source: AdapterSource, into: Path) -> AdapterSource:
        with log.open("a") as file:
            file.write("fetched\n")
        return fetch_files(source, into)

    return str(AdapterCache(root, fetch=fetch).fetch_now(version))


def test_processes_share_one_download(tmp_path: Path, root: Path) -> None:
    version, log = made(tmp_path), tmp_path / "log"

    found = at_once(fetched_by_another, [(root, version, log)] * 4)

    assert set(found) == {str(root / version.content_hash)}
    assert log.read_text() == "fetched\n"


def test_what_a_killed_process_left_is_no_adapter(tmp_path: Path, root: Path) -> None:
    version = made(tmp_path)
    half = root / ".partial" / version.content_hash
    half.mkdir(parents=True)
    (half / WEIGHTS).write_bytes(b"half")

    path = AdapterCache(root).fetch_now(version)

    assert folder_hash(path) == version.content_hash
    assert not half.exists()


def cut(weights: Path) -> None:
    os.truncate(weights, 100)


def flip_a_bit(weights: Path) -> None:
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@pytest.mark.parametrize("rot", [cut, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("same_process", [True, False])
def test_a_copy_that_rotted_is_fetched_again(
    tmp_path: Path, root: Path, rot: Callable[[Path], None], same_process: bool
) -> None:
    version = made(tmp_path)
    cache = AdapterCache(root)
    for _ in range(2):
        path = cache.fetch_now(version)
    rot(path / WEIGHTS)

    again = (cache if same_process else AdapterCache(root)).fetch_now(version)

    assert folder_hash(again) == version.content_hash


def test_files_that_nobody_touched_are_read_once(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the second fetch, as a download is checked on its own."""
    version = made(tmp_path)
    cache = AdapterCache(root)
    for _ in range(2):
        cache.fetch_now(version)
    read: list[Path] = []
    monkeypatch.setattr("deployments.adapters.cache.check_unchanged", lambda path, _hash: read.append(path))

    cache.fetch_now(version)

    assert read == []


# What is refused leaves nothing behind.


def other_files(source: Path) -> None:
    write_adapter(source, seed=99)


def truncated(source: Path) -> None:
    os.truncate(source / WEIGHTS, 50)


def gone(source: Path) -> None:
    (source / WEIGHTS).unlink()
    (source / "adapter_config.json").unlink()
    source.rmdir()


def pickled(source: Path) -> None:
    (source / WEIGHTS).rename(source / "adapter_model.bin")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (other_files, AdapterCorrupt, "not those that were registered"),
        (truncated, AdapterCorrupt, "not those that were registered"),
        (gone, AdapterUnavailable, "cannot be read: No such file"),
        (pickled, AdapterRefused, "only as a pickle"),
    ],
)
def test_a_source_that_changed_since_it_was_registered(
    tmp_path: Path, root: Path, change: Callable[[Path], None], error: type[Exception], words: str
) -> None:
    version = made(tmp_path)
    change(tmp_path / "source-1")

    with pytest.raises(error, match=words):
        AdapterCache(root).fetch_now(version)

    assert not (root / version.content_hash).exists()
    assert list((root / ".partial").iterdir()) == []


def test_an_adapter_for_another_base_is_refused_fetched_or_not(tmp_path: Path, root: Path) -> None:
    version = made(tmp_path)
    other = BaseShapes.of_folder(write_base(tmp_path / "wide", hidden=16))
    with pytest.raises(BaseMismatch):
        AdapterCache(root, base=other).fetch_now(version)

    AdapterCache(root).fetch_now(version)

    with pytest.raises(BaseMismatch):
        AdapterCache(root, base=other).fetch_now(version)
    fits = BaseShapes.of_folder(write_base(tmp_path / "base"))
    assert AdapterCache(root, base=fits).fetch_now(version).is_dir()


def test_a_registered_hash_does_not_let_a_bad_adapter_in(tmp_path: Path, root: Path) -> None:
    """Somebody wrote into the registry without the checks."""
    version = version_of(write_adapter(tmp_path / "dora", use_dora=True))

    with pytest.raises(AdapterRefused, match="DoRA"):
        AdapterCache(root).fetch_now(version)


def test_a_refused_version_does_not_let_go_of_the_same_files_under_another_name(
    tmp_path: Path, root: Path
) -> None:
    folder = write_adapter(tmp_path / "source")
    good, bad = version_of(folder), replace(version_of(folder, "sql@1"), base_model="other")
    shapes = BaseShapes.of_folder(write_base(tmp_path / "base"))
    cache = AdapterCache(root, max_bytes=int(1.5 * good.size_bytes), base=shapes)
    cache.fetch_now(good)

    def refuse(_self: object, _modules: object, base_model: str) -> None:
        if base_model == "other":
            raise BaseMismatch("made for another.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseShapes, "check", refuse)
        with pytest.raises(BaseMismatch):
            cache.fetch_now(bad)

    with pytest.raises(AdapterCacheFull):
        AdapterCache(root, max_bytes=int(1.5 * good.size_bytes)).fetch_now(made(tmp_path, 2))


# Bounded disk.


def kept(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if not path.name.startswith(".")}


def test_the_longest_unused_leaves_first(tmp_path: Path, root: Path) -> None:
    first, second, third = (made(tmp_path, seed) for seed in (1, 2, 3))
    cache = AdapterCache(root, max_bytes=int(2.5 * first.size_bytes))
    for version in (first, second, first):
        cache.fetch_now(version)
        cache.release(version.content_hash)

    cache.fetch_now(third)

    assert kept(root) == {first.content_hash, third.content_hash}


def test_what_any_process_holds_never_leaves(tmp_path: Path, root: Path) -> None:
    first, second, third = (made(tmp_path, seed) for seed in (1, 2, 3))
    here, another = (AdapterCache(root, max_bytes=int(2.5 * first.size_bytes)) for _ in range(2))
    another.fetch_now(first)
    here.fetch_now(second)

    with pytest.raises(AdapterCacheFull, match=r"support@3 needs .* all others are in use"):
        here.fetch_now(third)
    assert kept(root) == {first.content_hash, second.content_hash}

    another.release(first.content_hash)
    here.fetch_now(third)
    assert kept(root) == {second.content_hash, third.content_hash}


def hold_and_die(root: Path, version: AdapterVersion) -> None:
    AdapterCache(root).fetch_now(version)


def test_a_process_that_died_holds_nothing(tmp_path: Path, root: Path) -> None:
    first, second = made(tmp_path, 1), made(tmp_path, 2)
    at_once(hold_and_die, [(root, first)])

    AdapterCache(root, max_bytes=int(1.5 * first.size_bytes)).fetch_now(second)

    assert kept(root) == {second.content_hash}


def test_an_adapter_larger_than_all_the_room_is_refused_before_it_is_fetched(
    tmp_path: Path, root: Path
) -> None:
    version, calls = made(tmp_path), []

    with pytest.raises(AdapterCacheFull):
        AdapterCache(root, max_bytes=10, fetch=counting(calls)).fetch_now(version)

    assert calls == []


def test_removals_and_fetches_at_once_keep_their_promises(tmp_path: Path, root: Path) -> None:
    """Threads with caches of their own as processes would have; room for two of six adapters."""
    versions = [made(tmp_path, seed) for seed in range(1, 7)]
    room = int(2.5 * versions[0].size_bytes)
    broken: list[str] = []

    def use(number: int) -> None:
        cache = AdapterCache(root, max_bytes=room)
        for turn in range(12):
            version = versions[(number * 5 + turn * (number + 1)) % len(versions)]
            try:
                path = cache.fetch_now(version)
            except AdapterCacheFull:
                continue
            if folder_hash(path) != version.content_hash:
                broken.append(version.adapter_id)
            cache.release(version.content_hash)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert broken == []
    assert len(kept(root)) <= 2
    assert list((root / ".partial").iterdir()) == []


def test_a_disk_that_is_full_is_said(tmp_path: Path, root: Path) -> None:
    version = made(tmp_path)

    def full(_source: AdapterSource, _into: Path) -> AdapterSource:
        raise OSError(28, "No space left on device")

    with pytest.raises(AdapterCacheFull, match=r"the disk of .* is full\. Free some space there"):
        AdapterCache(root, fetch=full).fetch_now(version)
