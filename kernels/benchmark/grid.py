"""What is measured, in which order: the grid of KERNELS.md section 6.

The full cross product of that section has thousands of cells. `CORE` and `FULL` hold the cells that answer
its questions, each varied around one point; what a target is stated for comes first, because a run may be
cut short by its time budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.batch import BASE_ROW

DECODE_TOKENS_MAX = 256
MIXED_RANKS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Linear:
    """A packed linear layer: `width_in` is K, `widths_out` the width of each of its S slices."""

    projection: str
    width_in: int
    widths_out: tuple[int, ...]

    @property
    def width_out(self) -> int:
        return sum(self.widths_out)


@dataclass(frozen=True)
class Widths:
    """Of one decoder layer with grouped-query attention and a gated MLP."""

    key_value: int
    mlp: int


WIDTHS = {
    64: Widths(key_value=16, mlp=96),  # no real model: small enough for Triton's interpreter
    1024: Widths(key_value=256, mlp=4096),
    2048: Widths(key_value=512, mlp=8192),
    4096: Widths(key_value=1024, mlp=14336),
    8192: Widths(key_value=1024, mlp=28672),
}

PROJECTIONS = ("qkv", "o", "gate_up", "down")
LAYER = "layer"
"""In place of a projection: all four of a layer, one after the other."""


def linears(hidden: int, projection: str) -> tuple[Linear, ...]:
    """One layer's linears, or the one that is named."""
    widths = WIDTHS[hidden]
    layer = (
        Linear("qkv", hidden, (hidden, widths.key_value, widths.key_value)),
        Linear("o", hidden, (hidden,)),
        Linear("gate_up", hidden, (widths.mlp, widths.mlp)),
        Linear("down", widths.mlp, (hidden,)),
    )
    return layer if projection == LAYER else tuple(each for each in layer if each.projection == projection)


@dataclass(frozen=True)
class Cell:
    """One shape and one batch. `question` is why it is measured."""

    question: str
    hidden: int
    projection: str
    tokens: int
    adapters: int
    rank_mix: str
    """The true rank of every adapter, or `mixed`: `MIXED_RANKS` in turn."""
    max_rank: int
    max_loras: int
    base_share: float = 0.0
    """Of the rows, those without adapter."""

    @property
    def path(self) -> str:
        """The code path of ours that it goes through; a whole layer is apart, its linears being cells too."""
        if self.question == "cpu":
            return "cpu"
        if self.projection == LAYER:
            return "layer"
        return "decode" if self.tokens <= DECODE_TOKENS_MAX else "prefill"

    @property
    def shape(self) -> dict[str, str | int | float]:
        """The fields of a row that name the cell; two cells with the same ones are the same."""
        return {
            "path": self.path,
            "projection": self.projection,
            "hidden": self.hidden,
            "rank_mix": self.rank_mix,
            "max_rank": self.max_rank,
            "tokens": self.tokens,
            "adapters": self.adapters,
            "max_loras": self.max_loras,
            "base_share": self.base_share,
        }

    @property
    def linears(self) -> tuple[Linear, ...]:
        return linears(self.hidden, self.projection)

    def ranks(self) -> NDArray[np.int32]:
        """True rank by slot [max_loras]. Every slot holds an adapter, whether the batch uses it or not."""
        ranks = MIXED_RANKS if self.rank_mix == "mixed" else (int(self.rank_mix),)
        return np.resize(np.array(ranks, np.int32), self.max_loras)

    def slots(self) -> NDArray[np.int32]:
        """Slot by row [tokens]. The adapters in use are spread over the slots and have equal shares of the
        rows: in any order in decode, one segment each in prefill with the base rows behind them."""
        base_rows = round(self.tokens * self.base_share)
        used = np.arange(self.adapters) * self.max_loras // self.adapters
        rows = np.sort(np.resize(used, self.tokens - base_rows))
        slots = np.concatenate([rows, np.full(base_rows, BASE_ROW)]).astype(np.int32)
        return (
            slots
            if self.tokens > DECODE_TOKENS_MAX
            else np.random.default_rng(self.tokens).permutation(slots)
        )

    def __str__(self) -> str:
        ranks = f"rank {self.rank_mix} of {self.max_rank}"
        base = f", {self.base_share:.0%} base rows" if self.base_share else ""
        return (
            f"{self.path} {self.projection} {self.hidden}, {self.tokens} tokens, "
            f"{self.adapters} of {self.max_loras} adapters, {ranks}{base}"
        )


DECODE_TOKENS = (1, 4, 16, 64, 128, 256)
FULL_RANKS = (16, 64)


def layer() -> Iterator[Cell]:
    """LoRA time over the time of the base layer: one 8B-class layer."""
    yield Cell("layer", 4096, LAYER, tokens=64, adapters=16, rank_mix="16", max_rank=16, max_loras=16)


def mixed_ranks() -> Iterator[Cell]:
    """What computing true ranks is worth where adapters differ."""
    for projection in PROJECTIONS:
        for tokens in (64, 256, 16):
            adapters = min(tokens, 64)
            yield Cell("mixed_ranks", 4096, projection, tokens, adapters, "mixed", max_rank=64, max_loras=64)


def batch() -> Iterator[Cell]:
    """Speed-up by batch size, no padding of ranks."""
    for rank in FULL_RANKS:
        for projection in PROJECTIONS:
            for tokens in DECODE_TOKENS:
                yield Cell("batch", 4096, projection, tokens, min(tokens, 8), str(rank), rank, max_loras=8)


def short_prefill() -> Iterator[Cell]:
    for rank in FULL_RANKS:
        for projection in PROJECTIONS:
            yield Cell("short_prefill", 4096, projection, 2048, 4, str(rank), rank, max_loras=8)
        for projection in ("qkv", "gate_up"):
            yield Cell("short_prefill", 4096, projection, 8192, 4, str(rank), rank, max_loras=8)


def adapters() -> Iterator[Cell]:
    """Speed-up by number of adapters in the batch, in an engine with 64 slots."""
    for projection in PROJECTIONS:
        for tokens in (64, 256):
            for used in (1, 8, 64):
                yield Cell("adapters", 4096, projection, tokens, used, "16", max_rank=16, max_loras=64)


def rank_mix() -> Iterator[Cell]:
    """Speed-up by true rank in an engine that allows 64."""
    for rank in (8, 16, 64):
        for projection in PROJECTIONS:
            for tokens in (64, 256):
                yield Cell("rank_mix", 4096, projection, tokens, 64, str(rank), max_rank=64, max_loras=64)


def hidden_sizes() -> Iterator[Cell]:
    for hidden in (2048, 8192):
        for rank in FULL_RANKS:
            for projection in PROJECTIONS:
                for tokens in (1, 16, 64, 256):
                    used = min(tokens, 8)
                    yield Cell("hidden_sizes", hidden, projection, tokens, used, str(rank), rank, max_loras=8)


def base_rows() -> Iterator[Cell]:
    """Half of the rows have no adapter."""
    for rank in FULL_RANKS:
        for projection in PROJECTIONS:
            for tokens in (16, 64, 256):
                yield Cell(
                    "base_rows", 4096, projection, tokens, 8, str(rank), rank, max_loras=8, base_share=0.5
                )


def slots() -> Iterator[Cell]:
    """Few adapters in an engine with many slots: what empty slots cost."""
    for rank in FULL_RANKS:
        for projection in PROJECTIONS:
            for tokens in (1, 16, 64, 256):
                for used in sorted({1, min(tokens, 8)}):
                    yield Cell("slots", 4096, projection, tokens, used, str(rank), rank, max_loras=64)


def padding() -> Iterator[Cell]:
    """Rank 8 in an engine that allows 16."""
    for projection in PROJECTIONS:
        for tokens in (1, 16, 64, 256):
            yield Cell("padding", 4096, projection, tokens, min(tokens, 8), "8", max_rank=16, max_loras=8)


def long_prefill() -> Iterator[Cell]:
    for rank in FULL_RANKS:
        for projection in ("qkv", "gate_up"):
            yield Cell("long_prefill", 4096, projection, 16384, 4, str(rank), rank, max_loras=8)
            yield Cell("long_prefill", 2048, projection, 8192, 4, str(rank), rank, max_loras=8)
            yield Cell("long_prefill", 8192, projection, 2048, 4, str(rank), rank, max_loras=8)
            yield Cell("long_prefill", 4096, projection, 2048, 64, str(rank), rank, max_loras=64)
            yield Cell(
                "long_prefill", 4096, projection, 2048, 4, str(rank), rank, max_loras=8, base_share=0.5
            )


def cpu() -> Iterator[Cell]:
    """What the CPU serving path meets: the target's cell first, then one change of it at a time."""
    for tokens, used, share in (
        (256, 8, 0.0),
        (256, 8, 0.5),
        (256, 1, 0.0),
        (64, 8, 0.0),
        (16, 8, 0.5),
        (1, 1, 0.0),
    ):
        yield Cell("cpu", 1024, "o", tokens, used, "16", max_rank=16, max_loras=8, base_share=share)
    yield Cell("cpu", 1024, "qkv", tokens=256, adapters=8, rank_mix="16", max_rank=16, max_loras=8)


def interpreter() -> Iterator[Cell]:
    """Tiny shapes through the same code as the GPU's; nothing is timed. The interpreter runs about 50
    programs a second, and vLLM launches 192 per slice and shrink here."""
    yield Cell("interpreter", 64, "qkv", 5, 2, "mixed", max_rank=16, max_loras=2, base_share=0.2)
    yield Cell("interpreter", 64, "o", 3, 2, "mixed", max_rank=16, max_loras=2, base_share=0.34)


CORE = (layer, mixed_ranks, batch, short_prefill, adapters, rank_mix)
FULL = (*CORE, hidden_sizes, base_rows, slots, padding, long_prefill)


def cells_of(questions: Iterable[Sequence[Cell] | Iterator[Cell]]) -> tuple[Cell, ...]:
    """In order, each cell under the first question that asks for it."""
    first: dict[tuple[object, ...], Cell] = {}
    for cells in questions:
        for cell in cells:
            first.setdefault(tuple(cell.shape.values()), cell)
    return tuple(first.values())


GRIDS = {
    "core": cells_of(question() for question in CORE),
    "full": cells_of(question() for question in FULL),
    "cpu": cells_of([cpu()]),
    "interpreter": cells_of([interpreter()]),
}
