"""What only shows after long, or at one moment in a thousand: an outage of minutes, a soak, and a client that
leaves at any await point (rows 5, 8 and 10 of the peers' failures).

Short in the normal run; `make prove-endurance` runs them at full length and commits what was measured.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cluster.tenants import Budget, BudgetWindow, RateLimit, key_owner
from tests.fault_matrix import fault
from tests.gateways import FAST, GatewayUnderTest, cost_of, running_gateway

pytestmark = pytest.mark.contract

Measured = Callable[..., None]

DOLLAR = 1_000_000


# A client that leaves at any await point.

EVERY_AWAIT = os.environ.get("SPRAT_EVERY_AWAIT") == "1"
STRIDE = 1 if EVERY_AWAIT else 3
SHORT = {"model": "small", "max_tokens": 4}
ONE_SLOT = {"cap": 1, "profile": replace(FAST, decode_tokens_per_s=400)}


class CancelledAt:
    """Awaits `handler` and cancels its task when it suspends for the `at`-th time: at once, or `together`
    with the result that it waits for (which Python 3.11's `wait_for` may then prefer)."""

    def __init__(self, handler: Coroutine[Any, Any, Any], at: int, *, together: bool) -> None:
        self._handler = handler
        self._at = at
        self._together = together
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = lambda: self._handler.send(None)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._at:
                self._cancel(waits_for)
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 (handed on)
                resume = lambda error=error: self._handler.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                resume = lambda value=value: self._handler.send(value)  # type: ignore[misc]  # noqa: E731

    def _cancel(self, waits_for: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._together and waits_for is not None:
            # Before the task's own callback, which is added when this step ends.
            waits_for.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


class Cancelling:
    """Between aiohttp and the gateway's application: cancels the handler of chosen keys as aiohttp does when
    their client leaves."""

    def __init__(self, gateway: GatewayUnderTest) -> None:
        server = gateway.gateway.runner.server
        assert server is not None
        self._handle: Callable[[Any], Coroutine[Any, Any, web.StreamResponse]] = server.request_handler  # type: ignore[assignment]
        self._chosen: dict[str, tuple[int, bool]] = {}
        self.runs: dict[str, CancelledAt] = {}
        server.request_handler = self._handler

    def choose(self, key: str, at: int, *, together: bool) -> None:
        self._chosen["Bearer " + key] = (at, together)

    async def _handler(self, request: Any) -> web.StreamResponse:
        authorization = request.headers.get("authorization", "")
        chosen = self._chosen.pop(authorization, None)
        if chosen is None:
            return await self._handle(request)
        run = CancelledAt(self._handle(request), chosen[0], together=chosen[1])
        self.runs[authorization.removeprefix("Bearer ")] = run
        response: web.StreamResponse = await run
        return response


async def ask_unary(gateway: GatewayUnderTest, key: str) -> int | None:
    """What the call cost, told by its answer; None when there was none."""
    try:
        status, answer = await gateway.ask(SHORT, key=key)
    except aiohttp.ClientError:
        return None
    assert status == 200, answer
    return cost_of(answer)


async def ask_streamed(gateway: GatewayUnderTest, key: str) -> int | None:
    try:
        async with gateway.post(
            SHORT | {"stream": True, "stream_options": {"include_usage": True}}, key=key
        ) as response:
            assert response.status == 200
            text = await response.text()
    except aiohttp.ClientError:
        return None
    import json

    chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    return cost_of(next(chunk for chunk in chunks if chunk.get("usage")))


async def ask_idempotent(gateway: GatewayUnderTest, key: str) -> int | None:
    try:
        status, answer = await gateway.ask(SHORT, key=key, idempotency_key=key)
    except aiohttp.ClientError:
        return None
    assert status == 200, answer
    return cost_of(answer)


async def waiting(gateway: GatewayUnderTest) -> int:
    return sum((await gateway.scheduler.pool_load("specialist")).waiting)


@asynccontextmanager
async def slot_taken(gateway: GatewayUnderTest) -> AsyncIterator[None]:
    """By a call whose client leaves at the end."""
    occupant = asyncio.create_task(gateway.ask({"model": "small", "max_tokens": 200}))
    await gateway.until_leases(1)
    yield
    occupant.cancel()
    await asyncio.wait({occupant})


async def ask_queued(gateway: GatewayUnderTest, key: str) -> int | None:
    async with slot_taken(gateway):
        call = asyncio.create_task(ask_unary(gateway, key))
        async with asyncio.timeout(5):
            while not call.done() and not await waiting(gateway):
                await asyncio.sleep(0.002)
    return await call


async def hold_of_a_call(gateway: GatewayUnderTest) -> int:
    """Micro-USD."""
    key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, DOLLAR))
    async with slot_taken(gateway):
        call = asyncio.create_task(ask_unary(gateway, key))
        async with asyncio.timeout(5):
            while not (held := (await gateway.budget(key_owner(key_id)))[1]):
                await asyncio.sleep(0.002)
    await call
    return held


async def spent_with_nothing_left(gateway: GatewayUnderTest, owner: str) -> int:
    """Within a second: no lease, no ticket, nothing held, nothing running; Redis and ledger agree."""
    sums = (owner, "total")
    settling = gateway.gateway.context.settling
    state: Any = None
    try:
        async with asyncio.timeout(1.0):
            while True:
                settled = not settling.open and await settling.flush()
                spent, held = await gateway.budget(*sums)
                state = {
                    "settled": settled,
                    "held": held,
                    "leases": await gateway.leases(),
                    "tickets": await waiting(gateway),
                    "running": sum(engine.running for engine in gateway.engines.values()),
                    "not in the ledger": spent - gateway.ledger.spent([sums])[sums],
                }
                if state == dict.fromkeys(state, 0) | {"settled": True}:
                    return spent
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"left behind: {state}") from None


@fault(
    "a client leaves at any await point of its call",
    "no lease, no place in the queue and no hold is left within 1 s; money is counted once; its key is not refused",
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("together", [False, True], ids=["before the result", "together with the result"])
@pytest.mark.parametrize("ask", [ask_unary, ask_streamed, ask_queued, ask_idempotent])
async def test_cancelled_at_every_await_point(
    redis_scheduler: object,
    valkey_url: str,
    tmp_path: Path,
    ask: Callable[[GatewayUnderTest, str], Awaitable[int | None]],
    together: bool,
    measured: Measured,
) -> None:
    """LiteLLM #36926: a reservation leaked on cancel, then false 429s."""
    async with running_gateway(valkey_url, tmp_path) as gateway:
        cancelling = Cancelling(gateway)
        await gateway.add_engine("specialist", "s1", **ONE_SLOT)
        await gateway.until_ready()
        hold = await hold_of_a_call(gateway)
        charged: dict[int, int] = {}
        at = 1
        while True:
            # Room for this call and one more; a call that never ran takes nothing of it.
            key, key_id = gateway.new_key(
                Budget("", BudgetWindow.TOTAL, 2 * hold), requests=RateLimit(per_minute=1, burst=2)
            )
            cancelling.choose(key, at, together=together)
            told = await ask(gateway, key)
            run = cancelling.runs[key]
            spent = await spent_with_nothing_left(gateway, key_owner(key_id))
            where = f"cancelled at suspension {at}"
            assert spent <= hold, where
            assert told in {None, spent}, where
            for _ in range(2 if spent == 0 else 1):
                async with asyncio.timeout(2):
                    again = ask_idempotent if ask is ask_idempotent else ask_unary
                    assert await again(gateway, key) is not None, where
            if run.suspensions < at:
                break
            charged[at] = spent
            at += STRIDE
    print(ask.__name__, together, charged, at, run.suspensions)
    assert told == spent > 0  # it ended by itself
    assert charged[1] == 0
    assert len(charged) >= 5
    measured(await_points=run.suspensions, cancelled_at=len(charged))
