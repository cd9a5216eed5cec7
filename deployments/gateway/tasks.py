"""Cancellation that arrives. On Python 3.11 `asyncio.wait_for` (redis-py uses it for every command) drops a
cancellation that comes together with the result it waits for.
"""

from __future__ import annotations

import asyncio

AGAIN_S = 0.2


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel until it has ended."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_S)


def raise_if_cancelled() -> None:
    """After a call into redis-py: the cancellation of this task that may have been dropped there."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
