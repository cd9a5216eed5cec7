"""Closed loop: so many callers, each of whom asks again as soon as it has its answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from time import perf_counter, process_time

from loadtest.call import Call
from loadtest.cpu_time import cpu_s, rss_bytes
from loadtest.percentiles import nearest_rank
from loadtest.streaming_client import Endpoint, StreamingClient
from loadtest.systems import System

# A refused caller that asks again at once would take the processor from everybody else.
PAUSE_AFTER_ERROR_S = 0.01

CALLS_PER_WINDOW = 4


@dataclass(slots=True)
class Tally:
    """What the slices of one cell add up to. `window_s` is the time in which every caller was at work, and
    `in_window` the calls that succeeded in it: the rate of a slice's beginning and end would be another.
    Where calls are too long for that, both are of all calls, to the end of the last. Processor times of the
    gateway and of its store are None once they could not be read; `client_cpu_s` is this process's own.
    `rss_bytes` is the gateway's, the most that was seen at the end of a slice."""

    concurrency: int
    e2e_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)
    output_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_error: str | None = None
    window_s: float = 0.0
    in_window: int = 0
    cpu_s: float | None = 0.0
    store_cpu_s: float | None = 0.0
    client_cpu_s: float = 0.0
    rss_bytes: int | None = None

    def median_e2e_s(self) -> float:
        return nearest_rank(sorted(self.e2e_s), 50) or 0.0

    def add(self, call: Call) -> None:
        if call.error is not None:
            self.errors[call.error.kind.value] += 1
            self.first_error = self.first_error or call.error.message
            return
        if call.e2e_s is not None:
            self.e2e_s.append(call.e2e_s)
        if call.ttft_s is not None:
            self.ttft_s.append(call.ttft_s)
        self.itl_s.extend(call.itl_s)
        self.output_tokens += call.output_tokens


@dataclass(frozen=True, slots=True)
class _Cpu:
    gateway_s: float | None
    store_s: float | None
    client_s: float


def _with_difference(sum_s: float | None, before_s: float | None, after_s: float | None) -> float | None:
    if sum_s is None or before_s is None or after_s is None:
        return None
    return sum_s + after_s - before_s


class Callers:
    """The callers of one system. Their connections stay open from slice to slice."""

    def __init__(
        self, system: System, endpoint: Endpoint, request: bytes, concurrency: int, timeout_s: float
    ) -> None:
        self.system = system
        self._request = request
        self._clients = [StreamingClient(endpoint, timeout_s) for _ in range(concurrency)]
        self._window_s = (0.0, 0.0)
        self.tally = Tally(concurrency)

    async def slice(self, seconds_s: float, spread_s: float = 0.0) -> None:
        """Starts no call after `seconds_s`, and waits for those that run: the next system finds a quiet
        machine. The callers begin evenly over `spread_s`, the length of a call; with calls of equal length
        they would otherwise all ask in the same moment, again and again, and TTFT would be that of a
        burst."""
        started_s = perf_counter()
        has_window = spread_s <= seconds_s / CALLS_PER_WINDOW
        self._window_s = (started_s + spread_s, started_s + seconds_s) if has_window else (0.0, inf)
        before = self._cpu()
        step_s = spread_s / len(self._clients)
        await asyncio.gather(
            *(
                self._ask(client, started_s + number * step_s, started_s + seconds_s)
                for number, client in enumerate(self._clients)
            )
        )
        after, tally = self._cpu(), self.tally
        tally.window_s += seconds_s - spread_s if has_window else perf_counter() - started_s
        tally.cpu_s = _with_difference(tally.cpu_s, before.gateway_s, after.gateway_s)
        tally.store_cpu_s = _with_difference(tally.store_cpu_s, before.store_s, after.store_s)
        tally.client_cpu_s += after.client_s - before.client_s
        used_bytes = rss_bytes(self.system.pids)
        if used_bytes is not None:
            tally.rss_bytes = max(used_bytes, tally.rss_bytes or 0)

    def _cpu(self) -> _Cpu:
        return _Cpu(cpu_s(self.system.pids), cpu_s(self.system.store_pids), process_time())

    def forget(self) -> None:
        """After the warm-up: what was counted so far does not count."""
        self.tally = Tally(self.tally.concurrency)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    async def _ask(self, client: StreamingClient, begin_s: float, deadline_s: float) -> None:
        await asyncio.sleep(begin_s - perf_counter())
        while perf_counter() < deadline_s:
            last = await client.call_until(self._request, deadline_s, self._add)
            if last.error is not None:
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    def _add(self, call: Call) -> None:
        self.tally.add(call)
        begin_s, end_s = self._window_s
        if call.error is None and begin_s <= perf_counter() < end_s:
            self.tally.in_window += 1
