"""A provider of models on a loopback port that does what a test tells it, and a replica before it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from cluster.config.upstream import ListPrices, UpstreamConfig
from deployments.free_port import bound_socket
from deployments.upstream.app import make_app
from deployments.upstream.client import UpstreamClient

TOKEN = "t" * 32
KEY = "sk-test-4f9a8b7c6d5e"
MODEL = "vendor/large-1"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(content: str = "hello", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    } | more


def event(content: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c1', 'model': MODEL, 'choices': [choice]} | more)}\n\n".encode()


USAGE_EVENT = f"data: {json.dumps({'id': 'c1', 'choices': [], 'usage': answer()['usage']})}\n\n".encode()
DONE = b"data: [DONE]\n\n"


async def good(request: web.Request) -> web.StreamResponse:
    if not (await request.json()).get("stream"):
        return web.json_response(answer())
    return await streamed(event("hel"), event("lo", "stop"), USAGE_EVENT, DONE)(request)


def replies(status: int, body: Any = None, **headers: str) -> Answer:
    async def reply(_: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body if body is not None else {}, status=status, headers=named)

    return reply


def streamed(*pieces: bytes, then: Callable[[web.Request], Awaitable[None]] | None = None) -> Answer:
    """`then`: before the end."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.02)  # each by itself
        if then is not None:
            await then(request)
        return response

    return stream


async def hang(_: web.Request) -> Any:
    await asyncio.Event().wait()


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Provider:
    """Gives its `answers` one after the other, the last one for ever."""

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [good])
    models: Answer = field(default_factory=lambda: replies(200, {"data": [{"id": MODEL}]}))
    seen: list[Seen] = field(default_factory=list)
    cancelled: int = 0
    models_asked: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            self.models_asked += 1
            return await self.models(request)
        self.seen.append(Seen(request.path, dict(request.headers), await request.json()))
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            return await now(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def until_cancelled(self, count: int = 1, within_s: float = 2.0) -> None:
        async with asyncio.timeout(within_s):
            while self.cancelled < count:
                await asyncio.sleep(0.01)

    def section(self, **changes: Any) -> dict[str, Any]:
        """Of the YAML; impatient, as a test is."""
        return {
            "base_url": self.url,
            "model": MODEL,
            "api_key_env": "PROVIDER_KEY",
            "prices": {"prompt_usd_per_mtok": 2, "output_usd_per_mtok": 8},
            "silence_timeout_s": 5,
            "cooldown_s": 0.2,
        } | changes


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """`host:port`"""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    sock = bound_socket("127.0.0.1")
    host, port = sock.getsockname()
    await web.SockSite(runner, sock).start()
    try:
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def running_provider() -> AsyncIterator[Provider]:
    provider = Provider()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", provider.handle)
    async with serving(app) as address:
        provider.url = f"http://{address}/v1"
        yield provider


@dataclass
class Replica:
    """What a gateway meets."""

    address: str
    client: UpstreamClient
    session: aiohttp.ClientSession

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Any:
        body = {"model": "ours", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | body
        return self.session.post(
            f"http://{self.address}{path}", json=body, headers={"authorization": f"Bearer {TOKEN}"} | headers
        )

    async def ask(self, body: dict[str, Any] | None = None, **more: Any) -> tuple[int, Any]:
        """Status and body."""
        async with self.post(body or {}, **more) as response:
            return response.status, await response.json()


@asynccontextmanager
async def running_replica(provider: Provider, model: str = "ours", **changes: Any) -> AsyncIterator[Replica]:
    section = provider.section(**changes)
    upstream = UpstreamConfig(**section | {"prices": ListPrices(**section["prices"])})
    client = UpstreamClient(upstream, KEY, pool="reserve")
    try:
        async with (
            serving(make_app(upstream, client, model=model, token=TOKEN)) as address,
            aiohttp.ClientSession() as session,
        ):
            yield Replica(address, client, session)
    finally:
        await client.close()
