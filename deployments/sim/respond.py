"""Runs a planned generation and writes it out, whole or token by token.

Every choice is a sequence of its own with its own slot, as in an engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import orjson
from aiohttp import web

from deployments.sim.engine import SimEngine
from deployments.sim.generation import Generation
from deployments.sim.shape import Shape


async def respond(
    request: web.Request,
    generation: Generation,
    shape: Shape,
    engine: SimEngine,
    fail_after_tokens: int | None,
) -> web.StreamResponse:
    try:
        if generation.stream:
            return await _stream(request, generation, shape, engine, fail_after_tokens)
        await _together(
            [_produce(engine, generation, index, fail_after_tokens) for index in _indices(generation)]
        )
    except SimulatedFaultError:
        # Closing flushes what is written: the caller sees a good beginning and then the end of the line.
        if request.transport is not None:
            request.transport.close()
        raise ConnectionResetError("simulated failure") from None
    return web.Response(body=orjson.dumps(shape.whole()), content_type="application/json")


class SimulatedFaultError(Exception):
    """The moment of `fail_after_tokens`."""


async def _produce(
    engine: SimEngine, generation: Generation, index: int, fail_after_tokens: int | None
) -> None:
    answer = generation.answers[index]
    async with engine.sequence(answer.prompt_tokens) as pace:
        if fail_after_tokens is not None and fail_after_tokens < len(answer.tokens):
            await pace.tokens(fail_after_tokens)
            raise SimulatedFaultError
        await pace.tokens(len(answer.tokens))


async def _stream(
    request: web.Request,
    generation: Generation,
    shape: Shape,
    engine: SimEngine,
    fail_after_tokens: int | None,
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    opened = False

    async def stream_choice(index: int) -> None:
        nonlocal opened
        answer = generation.answers[index]
        async with engine.sequence(answer.prompt_tokens) as pace:
            for position in range(len(answer.tokens)):
                if position == fail_after_tokens:
                    raise SimulatedFaultError
                await pace.next_token()
                if not opened:
                    opened = True
                    if opening := shape.opening():
                        await response.write(opening)
                await response.write(shape.token(index, position))

    await _together([stream_choice(index) for index in _indices(generation)])
    await response.write(shape.closing())
    await response.write_eof()
    return response


def _indices(generation: Generation) -> range:
    return range(len(generation.answers))


async def _together(sequences: list[Coroutine[None, None, None]]) -> None:
    """All of them, side by side. When one fails or the caller leaves, the others end too, and they have
    given their slots back before this returns."""
    if len(sequences) == 1:
        await sequences[0]
        return
    tasks = [asyncio.ensure_future(sequence) for sequence in sequences]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
