"""Which rows of a batch use which adapter, in the form that the kernels read (KERNELS.md section 4).

Built on the host in one pass and copied to the device once per batch; all layers of a step share it.
CUDA graphs bake in addresses, so each device tensor here keeps its own for the life of the object.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BASE_ROW = -1
"""The slot of a row without adapter."""

TILE_HEIGHTS = (16, 64, 128)
"""Rows of one tile: 16 is the least that a matrix instruction takes (decode), 64 and 128 suit prefill.

Every batch is cut at each height, because which one a launch reads is fixed when its graph is captured.
"""

HOST_COPIES = 3
"""Host buffers in rotation: the next batch is prepared while the copies of earlier ones are in flight."""

TILE_FIELDS = 4
"""A tile is (slot, first position in `row_ids`, number of rows, height): 16 bytes."""


def tile_bound(tokens: int, max_loras: int, height: int) -> int:
    """The most tiles that any batch of `tokens` rows is cut into: what a captured grid must cover."""
    return (tokens + (height - 1) * min(max_loras, tokens)) // height


class LoraBatch:
    """The rows of one batch grouped by adapter slot.

    Device tensors, all int32 and all views of `buffer`:

    | name           | shape             | contents                                                    |
    | -------------- | ----------------- | ----------------------------------------------------------- |
    | `num_tiles`    | `[heights]`       | tiles in use, one number per entry of `TILE_HEIGHTS`        |
    | `tiles(h)`     | `[tile_bound, 4]` | slot, first position, rows, h; tiles of a slot are adjacent |
    | `row_ids`      | `[max_tokens]`    | row numbers by slot, in batch order within it; base rows last |
    | `token_slots`  | `[max_tokens]`    | slot of each row; -1 for base rows and beyond the batch     |
    | `active_slots` | `[max_loras + 1]` | slots in use, then -1                                       |
    | `slot_rows`    | `[max_loras + 1]` | rows of each active slot, base rows after them, then 0      |
    | `slot_starts`  | `[max_loras + 2]` | first position of each of these in `row_ids`, then the end  |

    The kernels need the first three. The others are what vLLM's own kernels read (`LoRAKernelMeta`), for
    the layer types that stay with them.
    """

    def __init__(self, max_tokens: int, max_loras: int, device: torch.device | str) -> None:
        self.max_tokens = max_tokens
        self.max_loras = max_loras
        self.tokens = 0
        self.active_loras = 0
        self._has_base_rows = False
        sizes = {
            "num_tiles": len(TILE_HEIGHTS),
            **{f"tiles_{h}": TILE_FIELDS * tile_bound(max_tokens, max_loras, h) for h in TILE_HEIGHTS},
            "active_slots": max_loras + 1,
            "slot_rows": max_loras + 1,
            "slot_starts": max_loras + 2,
            "row_ids": max_tokens,
            "token_slots": max_tokens,
        }
        # Each part starts on 16 bytes, so that loads of it can be vectors.
        starts = np.cumsum([0, *((size + 3) // 4 * 4 for size in sizes.values())]).tolist()
        self._parts = {
            name: slice(start, start + size)
            for (name, size), start in zip(sizes.items(), starts[:-1], strict=True)
        }
        empty = torch.zeros(starts[-1], dtype=torch.int32)
        for name in ("active_slots", "token_slots"):
            empty[self._parts[name]] = BASE_ROW
        self.buffer = empty.to(device, copy=True)
        self.num_tiles = self._view("num_tiles")
        self.row_ids = self._view("row_ids")
        self.token_slots = self._view("token_slots")
        self.active_slots = self._view("active_slots")
        self.slot_rows = self._view("slot_rows")
        self.slot_starts = self._view("slot_starts")
        on_cuda = self.buffer.is_cuda
        self._hosts = [_HostCopy(empty, pinned=on_cuda) for _ in range(HOST_COPIES if on_cuda else 1)]
        self._scratch: list[Tensor] = []

    @property
    def base_only(self) -> bool:
        """True when no row has an adapter: there is nothing to launch."""
        return self.active_loras == 0

    @property
    def active_groups(self) -> int:
        """Active slots, and one more if there are base rows: how vLLM counts adapters."""
        return self.active_loras + self._has_base_rows

    def tiles(self, height: int) -> Tensor:
        """The tile table for one of `TILE_HEIGHTS`, `[tile_bound, 4]`; `tile_count` are in use."""
        return self._view(f"tiles_{height}").view(-1, TILE_FIELDS)

    def tile_count(self, height: int) -> Tensor:
        """How many entries of `tiles(height)` are in use, `[1]`."""
        index = TILE_HEIGHTS.index(height)
        return self.num_tiles[index : index + 1]

    def update(self, slots: NDArray[np.int32]) -> None:
        """Takes the slot of each row (`[T]`, -1: base row) and starts one asynchronous copy to the device.

        Waits only when the device is `HOST_COPIES` batches behind. Raises `ValueError` for more rows than
        `max_tokens` and for a slot outside [-1, max_loras).
        """
        tokens = len(slots)
        if tokens > self.max_tokens:
            raise ValueError(f"{tokens} rows in a batch of at most {self.max_tokens}")
        try:
            rows_by_slot = np.bincount(slots + 1, minlength=self.max_loras + 1)
        except ValueError:  # one is below -1
            rows_by_slot = np.empty(0, np.intp)
        if len(rows_by_slot) != self.max_loras + 1:
            raise ValueError(f"slots are {BASE_ROW} to {self.max_loras - 1}; this batch has others")
        host = self._hosts[0]
        self._hosts.append(self._hosts.pop(0))
        words = host.writable()

        base_rows, rows_by_slot = int(rows_by_slot[0]), rows_by_slot[1:]
        active = np.flatnonzero(rows_by_slot)
        rows = rows_by_slot[active]
        ends = np.cumsum(rows)

        # Radix sort below 2^15 slots; base rows (-1) come out first and move to the end.
        order = np.argsort(slots.astype(np.int16, copy=False), kind="stable")
        row_ids = words[self._parts["row_ids"]]
        row_ids[: tokens - base_rows] = order[base_rows:]
        row_ids[tokens - base_rows : tokens] = order[:base_rows]

        token_slots = words[self._parts["token_slots"]]
        token_slots[:tokens] = slots
        token_slots[tokens : host.tokens] = BASE_ROW

        self._write_tiles(words, active, rows, ends - rows)
        self._write_slots(words, active, rows, ends, base_rows)

        host.tokens = self.tokens = tokens
        self.active_loras = len(active)
        self._has_base_rows = base_rows > 0
        host.copy_to(self.buffer)

    def follow(self, other: LoraBatch) -> None:
        """Become what `other`, of the same sizes, is now: a copy on the device instead of a second pass."""
        self.buffer.copy_(other.buffer)
        self.tokens, self.active_loras = other.tokens, other.active_loras
        self._has_base_rows = other._has_base_rows

    def scratch(self, count: int) -> Tensor:
        """At least `count` fp32 numbers on the device, shared by all layers: valid until the next launch.

        Captured graphs hold the address, so what was handed out once is never freed. vLLM's profile run
        asks for the largest first; after that this allocates nothing.
        """
        if not self._scratch or self._scratch[-1].numel() < count:
            self._scratch.append(torch.empty(count, dtype=torch.float32, device=self.buffer.device))
        return self._scratch[-1]

    def _view(self, name: str) -> Tensor:
        return self.buffer[self._parts[name]]

    def _write_tiles(
        self,
        words: NDArray[np.int32],
        active: NDArray[np.intp],
        rows: NDArray[np.intp],
        starts: NDArray[np.intp],
    ) -> None:
        """All heights at once: one line per (height, active slot), repeated once per tile."""
        heights = np.asarray(TILE_HEIGHTS)[:, None]
        lines = np.empty((len(TILE_HEIGHTS), len(active), TILE_FIELDS), dtype=np.int32)
        lines[:, :, 0] = active
        lines[:, :, 1] = starts
        lines[:, :, 2] = rows
        lines[:, :, 3] = heights
        per_slot = -(-rows // heights)
        repeats = per_slot.ravel()
        tiles = np.repeat(lines.reshape(-1, TILE_FIELDS), repeats, axis=0)
        nth = np.arange(len(tiles)) - np.repeat(repeats.cumsum() - repeats, repeats)
        rows_before = nth * tiles[:, 3]
        tiles[:, 1] += rows_before
        tiles[:, 2] = np.minimum(tiles[:, 2] - rows_before, tiles[:, 3])

        num_tiles = per_slot.sum(axis=1)
        words[self._parts["num_tiles"]] = num_tiles
        first = 0
        for height, count in zip(TILE_HEIGHTS, num_tiles.tolist(), strict=True):
            words[self._parts[f"tiles_{height}"]][: TILE_FIELDS * count] = tiles[
                first : first + count
            ].ravel()
            first += count

    def _write_slots(
        self,
        words: NDArray[np.int32],
        active: NDArray[np.intp],
        rows: NDArray[np.intp],
        ends: NDArray[np.intp],
        base_rows: int,
    ) -> None:
        count, adapter_rows = len(active), int(ends[-1]) if len(ends) else 0
        active_slots = words[self._parts["active_slots"]]
        active_slots[:count] = active
        active_slots[count:] = BASE_ROW
        slot_rows = words[self._parts["slot_rows"]]
        slot_rows[:count] = rows
        slot_rows[count] = base_rows
        slot_rows[count + 1 :] = 0
        slot_starts = words[self._parts["slot_starts"]]
        slot_starts[0] = 0
        slot_starts[1 : count + 1] = ends
        slot_starts[count + 1 :] = adapter_rows + base_rows


class _HostCopy:
    """One host buffer, and the event after which it may be written again."""

    def __init__(self, empty: Tensor, *, pinned: bool) -> None:
        self._buffer = empty.pin_memory() if pinned else empty.clone()
        self._words: NDArray[np.int32] = self._buffer.numpy()
        self._copied = torch.cuda.Event() if pinned else None
        self.tokens = 0
        """Rows that `token_slots` describes in this buffer; beyond them it is -1."""

    def writable(self) -> NDArray[np.int32]:
        """The words of the buffer, once its last copy has left it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._words

    def copy_to(self, device_buffer: Tensor) -> None:
        device_buffer.copy_(self._buffer, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
