"""One timer for all calls."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments.gateway.time_limit import TimeLimit


async def run(limit: TimeLimit, seconds: float) -> str:
    try:
        with limit.of_call():
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "timed out"
    return "done"


async def test_each_call_has_its_own_time() -> None:
    limit = TimeLimit(0.1, asyncio.get_running_loop())
    began = time.monotonic()

    async def later(delay: float, seconds: float) -> tuple[str, float]:
        await asyncio.sleep(delay)
        outcome = await run(limit, seconds)
        return outcome, time.monotonic() - began

    outcomes = await asyncio.gather(later(0, 5), later(0.05, 5), later(0, 0.01), later(0.12, 0.01))

    assert [outcome for outcome, _ in outcomes] == ["timed out", "timed out", "done", "done"]
    assert 0.1 <= outcomes[0][1] < 0.15 <= outcomes[1][1]
    assert limit._running == {}


async def test_a_task_that_timed_out_goes_on() -> None:
    limit = TimeLimit(0.01, asyncio.get_running_loop())
    assert await run(limit, 5) == "timed out"
    assert asyncio.current_task().cancelling() == 0
    assert await run(limit, 0) == "done"
    await asyncio.sleep(0.03)


async def test_a_client_that_has_gone_comes_first() -> None:
    limit = TimeLimit(0.01, asyncio.get_running_loop())

    async def stubborn() -> None:
        with limit.of_call():
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                task.cancel()  # meanwhile
                raise

    task = asyncio.create_task(stubborn())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_passes_and_ends_the_watch() -> None:
    limit = TimeLimit(0.02, asyncio.get_running_loop())
    with pytest.raises(ValueError, match="x"), limit.of_call():
        raise ValueError("x")
    await asyncio.sleep(0.05)
    assert limit._timer is None
