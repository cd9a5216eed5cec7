"""Clocks: how long the systems take, all under the same one.

The systems of a cell are recorded first and then replayed in turn, so that a drift of the device's clock
rate, or a busy neighbour on a CPU, meets all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from kernels.benchmark.graph_nodes import GraphNodes, graph_nodes

Op = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Of one op, in a run of many."""

    us_p20: float
    us_p50: float
    us_p80: float
    replays: int

    @classmethod
    def of(cls, replays_us: Sequence[float], ops: int) -> Timing:
        ordered = sorted(each / ops for each in replays_us)
        p20, p50, p80 = (ordered[(len(ordered) - 1) * percent // 100] for percent in (20, 50, 80))
        return cls(p20, p50, p80, len(ordered))


@dataclass(frozen=True)
class Recording:
    """Ops that run one after the other when it is replayed. It keeps them, and with them what they read: a
    graph holds addresses alone."""

    replay: Op
    ops: tuple[Op, ...]
    nodes: GraphNodes | None = None


class Clock(Protocol):
    name: str
    sets: int
    """Weight sets that a cold recording goes through; a warm one has as many ops."""
    identical_replays: int
    """How many replays have to give the same bits."""
    node_us: float | None
    """What a graph node costs that does next to nothing; None where there are no graphs."""

    def record(self, ops: Sequence[Op]) -> Recording: ...

    def time(
        self, recordings: Mapping[str, Recording], hot: Sequence[torch.Tensor] | None
    ) -> dict[str, Timing]:
        """Cold caches if `hot` is given, which alone are read before each replay; else as the replay before
        left them. Empty if this clock measures nothing."""
        ...


class CudaGraphClock:
    """Replays of CUDA graphs between two events.

    Cold: between two replays a buffer of four times the L2 is read (read, not written: dirty lines would be
    written back in the time of the next replay), then x and y, which the base product has just used. Each
    weight set is used once in a replay, so all weights come from memory whatever their size. Warm: every op
    uses the same set and nothing comes between.
    """

    name = "CUDA graph replay"
    sets = 20
    identical_replays = 100
    replays = 50

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._evict = torch.zeros(l2_bytes, dtype=torch.float32, device=device)  # four times as many bytes
        self._stream = torch.cuda.Stream(device)
        little = torch.zeros(1, device=device)
        little.add_(1)
        nodes = self.record([lambda: little.add_(1)] * 200)
        self.node_us: float | None = self.time({"nodes": nodes}, None)["nodes"].us_p50

    def record(self, ops: Sequence[Op]) -> Recording:
        """The ops have run before: nothing is compiled or looked up during capture.

        Not with `torch.cuda.graph`, which collects garbage and empties the allocator's cache each time:
        seconds per cell.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            graph.capture_begin()
            try:
                for op in ops:
                    op()
            except Exception:
                with suppress(RuntimeError):  # says again that the capture failed
                    graph.capture_end()
                raise
            graph.capture_end()
        graph.instantiate()
        return Recording(graph.replay, tuple(ops), graph_nodes(graph.raw_cuda_graph()))

    def time(
        self, recordings: Mapping[str, Recording], hot: Sequence[torch.Tensor] | None
    ) -> dict[str, Timing]:
        for each in recordings.values():
            each.replay()
        events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in recordings}
        for _ in range(self.replays):
            for name, recording in recordings.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                # This keeps the device behind the host: no launch is waited for between the events.
                if hot is None:
                    for _ in range(4):
                        recording.replay()
                else:
                    self._evict.amax()
                    for tensor in hot:
                        tensor.amax()
                begin.record()
                recording.replay()
                end.record()
                events[name].append((begin, end))
        torch.cuda.synchronize()
        return {
            name: Timing.of(
                [1e3 * begin.elapsed_time(end) for begin, end in events[name]], len(recording.ops)
            )
            for name, recording in recordings.items()
        }


class WallClock:
    """On a CPU. Weights are never cold on purpose: a serving process goes through all layers in each step,
    and the sets of a recording stand for them."""

    name = "wall clock"
    sets = 8
    identical_replays = 10
    node_us: float | None = None

    def __init__(self, seconds_per_cell: float = 2.0, replays_min: int = 20) -> None:
        self._seconds_per_cell = seconds_per_cell
        self._replays_min = replays_min

    def record(self, ops: Sequence[Op]) -> Recording:
        return Recording(lambda: [op() for op in ops], tuple(ops))

    def time(
        self, recordings: Mapping[str, Recording], hot: Sequence[torch.Tensor] | None
    ) -> dict[str, Timing]:
        if hot is None:
            return {}
        replays_us: dict[str, list[float]] = {name: [] for name in recordings}
        stop_s = time.perf_counter() + self._seconds_per_cell
        rounds = 0
        while recordings and (rounds < self._replays_min or time.perf_counter() < stop_s):
            for name, recording in recordings.items():
                begin_ns = time.perf_counter_ns()
                recording.replay()
                replays_us[name].append((time.perf_counter_ns() - begin_ns) / 1e3)
            rounds += 1
        return {name: Timing.of(replays_us[name], len(each.ops)) for name, each in recordings.items()}


class NoClock:
    """In Triton's interpreter: the same ops in the same order, and no figure of them."""

    name = "none: interpreter"
    sets = 1
    identical_replays = 2
    node_us: float | None = None

    def record(self, ops: Sequence[Op]) -> Recording:
        return Recording(lambda: [op() for op in ops], tuple(ops))

    def time(
        self, _recordings: Mapping[str, Recording], _hot: Sequence[torch.Tensor] | None
    ) -> dict[str, Timing]:
        return {}
