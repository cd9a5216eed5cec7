"""Many paced streams at a time through one gateway: does any of them stutter, and what memory do they take?

The engine sends each stream a token every 1/30 s, so what its gaps show beyond those of `direct` is the
gateway's doing. Read per stream: an average over 500 streams hides the one that stalls.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from itertools import chain
from typing import Any

from loadtest.call import Call
from loadtest.cpu_time import cpu_s, rss_bytes
from loadtest.percentiles import nearest_rank
from loadtest.request_body import request_bytes
from loadtest.streaming_client import StreamingClient
from loadtest.stub_engine import TOKENS_PER_S
from loadtest.systems import BASELINE, Mode, System
from loadtest.turns import turn_of

SPREAD_S = 1.0
"""The streams begin evenly over this time, as calls of many users do."""

SECONDS_S = 15.0
SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Streams:
    """What one system made of them. `rss_bytes` is the most that was seen."""

    calls: tuple[Call, ...]
    cpu_s: float | None
    rss_bytes: int | None


async def many_streams(
    systems: tuple[System, ...], count: int, timeout_s: float, seconds_s: float = SECONDS_S
) -> dict[str, Any]:
    """Rows, one system after the other, and how each compares with `direct`. `seconds_s` is how long a stream
    takes; `timeout_s` is allowed on top."""
    tokens = round(seconds_s * TOKENS_PER_S)
    rows = []
    for system in systems:
        gc.collect()
        gc.disable()
        try:
            async with turn_of(system):
                rows.append(_row(system.name, await _run(system, count, tokens, seconds_s + timeout_s)))
        finally:
            gc.enable()
    own = next((row["worst_stream_itl_p99_ms"] for row in rows if row["system"] == BASELINE), None)
    for row in rows:
        worst = row["worst_stream_itl_p99_ms"]
        row["worst_vs_direct"] = round(worst / own, 2) if own and worst else None
    return {
        "streams": count,
        "tokens_per_s_each": TOKENS_PER_S,
        "tokens_each": tokens,
        "rows": rows,
    }


async def _run(system: System, count: int, tokens: int, timeout_s: float) -> Streams:
    request = request_bytes(system, Mode.STREAM_PACED, tokens)
    clients = [StreamingClient(system.endpoint(Mode.STREAM_PACED), timeout_s) for _ in range(count)]
    before_s = cpu_s(system.pids)
    memory = asyncio.create_task(_most_memory(system))
    calls = await asyncio.gather(
        *(_stream(client, request, number * SPREAD_S / count) for number, client in enumerate(clients))
    )
    memory.cancel()
    after_s = cpu_s(system.pids)
    for client in clients:
        client.close()
    used_s = None if before_s is None or after_s is None else after_s - before_s
    return Streams(tuple(calls), used_s, await memory)


async def _stream(client: StreamingClient, request: bytes, delay_s: float) -> Call:
    await asyncio.sleep(delay_s)
    return await client.call(request)


async def _most_memory(system: System) -> int | None:
    """Until it is cancelled."""
    most: int | None = None
    try:
        while True:
            now = rss_bytes(system.pids)
            if now is not None:
                most = max(now, most or 0)
            await asyncio.sleep(SAMPLE_S)
    except asyncio.CancelledError:
        return most


def _row(system: str, streams: Streams) -> dict[str, Any]:
    good = [call for call in streams.calls if call.error is None]
    p99_s = sorted(nearest_rank(sorted(call.itl_s), 99) or 0.0 for call in good)
    gaps_s = sorted(chain.from_iterable(call.itl_s for call in good))
    ttft_s = sorted(call.ttft_s for call in good if call.ttft_s is not None)
    tokens = sum(call.output_tokens for call in good)
    failed = [call.error for call in streams.calls if call.error is not None]
    return {
        "system": system,
        "worst_stream_itl_p99_ms": _ms(nearest_rank(p99_s, 100)),
        "median_stream_itl_p99_ms": _ms(nearest_rank(p99_s, 50)),
        "itl_p50_ms": _ms(nearest_rank(gaps_s, 50)),
        "itl_max_ms": _ms(nearest_rank(gaps_s, 100)),
        "ttft_p50_ms": _ms(nearest_rank(ttft_s, 50)),
        "ttft_p99_ms": _ms(nearest_rank(ttft_s, 99)),
        "cpu_us_per_chunk": round(streams.cpu_s * 1e6 / tokens, 1) if streams.cpu_s and tokens else None,
        "rss_mib": None if streams.rss_bytes is None else round(streams.rss_bytes / 2**20, 1),
        "n": len(good),
        "errors": len(failed),
        "first_error": failed[0].message if failed else None,
    }


def _ms(seconds_s: float | None) -> float | None:
    return None if seconds_s is None else round(seconds_s * 1000, 3)
