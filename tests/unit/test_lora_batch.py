"""The grouping of a batch's rows by adapter: contents against a plain loop, addresses, and time."""

from __future__ import annotations

import timeit
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.batch import TILE_HEIGHTS, LoraBatch, tile_bound

MAX_TOKENS, MAX_LORAS = 300, 5
a_batch = st.lists(st.integers(-1, MAX_LORAS - 1), max_size=MAX_TOKENS)


def updated(slots: Sequence[int], batch: LoraBatch | None = None) -> LoraBatch:
    batch = batch or LoraBatch(MAX_TOKENS, MAX_LORAS, "cpu")
    batch.update(np.asarray(slots, np.int32))
    return batch


def tiles_in_use(batch: LoraBatch, height: int) -> list[list[int]]:
    return batch.tiles(height)[: batch.tile_count(height).item()].tolist()


@given(slots=a_batch)
def test_tiles_hold_each_adapter_row_once_in_batch_order(slots: list[int]) -> None:
    batch = updated(slots)

    for height in TILE_HEIGHTS:
        rows: dict[int, list[int]] = {}
        for slot, start, count, tile_height in tiles_in_use(batch, height):
            assert 1 <= count <= tile_height == height
            rows.setdefault(slot, []).extend(batch.row_ids[start : start + count].tolist())
        assert rows == {
            slot: [row for row, each in enumerate(slots) if each == slot] for slot in {*slots} - {-1}
        }


@given(slots=a_batch)
def test_tiles_of_a_slot_are_full_but_the_last_and_adjacent(slots: list[int]) -> None:
    batch = updated(slots)

    for height in TILE_HEIGHTS:
        tiles = tiles_in_use(batch, height)
        assert [slot for slot, *_ in tiles] == sorted(slot for slot, *_ in tiles)
        for this, following in pairwise(tiles):
            assert this[2] == height or this[0] != following[0]


@given(slots=a_batch)
def test_no_batch_has_more_tiles_than_the_grid_covers(slots: list[int]) -> None:
    batch = updated(slots)

    for height in TILE_HEIGHTS:
        assert len(tiles_in_use(batch, height)) <= tile_bound(len(slots), MAX_LORAS, height)


@pytest.mark.parametrize(("tokens", "max_loras"), [(1, 1), (64, 64), (64, 4), (300, 5), (17, 2)])
@pytest.mark.parametrize("height", TILE_HEIGHTS)
def test_the_bound_on_tiles_is_reached(tokens: int, max_loras: int, height: int) -> None:
    """One row each for all adapters but one is the worst that a batch can do."""
    slots = np.zeros(tokens, np.int32)
    others = min(max_loras, tokens) - 1
    slots[:others] = np.arange(1, others + 1)
    batch = LoraBatch(tokens, max_loras, "cpu")
    batch.update(slots)

    bound = tile_bound(tokens, max_loras, height)
    assert bound - 1 <= len(tiles_in_use(batch, height)) <= bound


@given(slots=a_batch)
def test_what_vllm_reads(slots: list[int]) -> None:
    """Active slots, then the base rows as one more group of -1, as LoRAKernelMeta wants it."""
    batch = updated(slots)
    groups = sorted({*slots} - {-1})
    counts = [slots.count(slot) for slot in groups]

    assert batch.active_slots.tolist() == groups + [-1] * (MAX_LORAS + 1 - len(groups))
    assert batch.slot_rows.tolist()[: len(groups) + 1] == [*counts, slots.count(-1)]
    starts = batch.slot_starts.tolist()
    assert starts[: len(groups) + 1] == [sum(counts[:i]) for i in range(len(groups) + 1)]
    assert set(starts[len(groups) + 1 :]) == {len(slots)}
    assert sorted(batch.row_ids[: len(slots)].tolist()) == list(range(len(slots)))
    assert batch.active_loras == len(groups)
    assert batch.active_groups == len({*slots})
    assert batch.base_only == (not groups)


@given(batches=st.lists(a_batch, min_size=2, max_size=4))
def test_nothing_of_an_earlier_batch_is_left(batches: list[list[int]]) -> None:
    batch = LoraBatch(MAX_TOKENS, MAX_LORAS, "cpu")
    for slots in batches:
        updated(slots, batch)

    slots, fresh = batches[-1], updated(batches[-1])
    assert batch.token_slots.tolist() == slots + [-1] * (MAX_TOKENS - len(slots))
    for height in TILE_HEIGHTS:
        assert tiles_in_use(batch, height) == tiles_in_use(fresh, height)
    for name in ("active_slots", "slot_rows", "slot_starts", "num_tiles"):
        assert getattr(batch, name).tolist() == getattr(fresh, name).tolist()


@given(first=a_batch, second=a_batch, third=a_batch)
def test_following_another_batch(first: list[int], second: list[int], third: list[int]) -> None:
    """Then a batch of its own again."""
    batch, other = updated(first), updated(second)

    batch.follow(other)

    assert batch.buffer.equal(other.buffer)
    assert (batch.tokens, batch.base_only, batch.active_groups) == (
        *(other.tokens, other.base_only, other.active_groups),
    )
    assert updated(third, batch).token_slots.tolist() == third + [-1] * (MAX_TOKENS - len(third))


def test_addresses_stay() -> None:
    """A captured graph reads them again and again."""
    batch = updated([0, 1, 2])

    def addresses() -> list[int]:
        tensors = [batch.buffer, batch.row_ids, batch.token_slots, batch.num_tiles, batch.scratch(100)]
        return [each.data_ptr() for each in (*tensors, *map(batch.tiles, TILE_HEIGHTS))]

    before = addresses()
    updated([4] * MAX_TOKENS, batch)
    assert addresses() == before


def test_scratch_grows_and_keeps_what_it_gave() -> None:
    batch = updated([0])
    small = batch.scratch(10)
    small.fill_(7)

    assert batch.scratch(5).data_ptr() == small.data_ptr()
    assert batch.scratch(1000).numel() >= 1000
    assert small.tolist() == [7] * 10
    assert batch.scratch(10).numel() >= 1000, "the largest serves all"


@pytest.mark.parametrize("slots", [[MAX_LORAS], [0, -2], [0] * (MAX_TOKENS + 1)])
def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing(slots: list[int]) -> None:
    batch = updated([1, 2])
    before = batch.buffer.clone()

    with pytest.raises(ValueError, match=r"slots are|rows in a batch"):
        updated(slots, batch)

    assert batch.buffer.equal(before)
    assert batch.tokens == 2


def test_a_changed_batch_of_256_rows_costs_less_than_a_tenth_of_a_millisecond() -> None:
    """Bound times 3, as the machine of the tests has other work; the least of many is what it takes."""
    batch = LoraBatch(8192, 64, "cpu")
    random = np.random.default_rng(0)
    changing = [random.integers(-1, 64, 256).astype(np.int32) for _ in range(8)]

    seconds = min(timeit.repeat(lambda: [batch.update(each) for each in changing], number=5, repeat=20))

    assert seconds / (5 * len(changing)) < 3 * 100e-6
