"""Calls of an adapter wait at the engine's door until it is there.

The gateway names the adapter in a header, so that nobody has to read the body twice. Both engines' HTTP
surfaces are wrapped: vLLM's ASGI application, and the simulator's aiohttp application.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deployments.engine_client import ADAPTER_HEADER
from deployments.engine_guard import Application, Receive, Scope, Send
from deployments.residency.engine import AdapterNotLoaded
from deployments.residency.residency import AdapterResidency

_HEADER = ADAPTER_HEADER.encode()


class ResidencyGuard:
    """In front of an ASGI application."""

    def __init__(self, application: Application, residency: AdapterResidency) -> None:
        self._application = application
        self._residency = residency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = next((value for name, value in scope.get("headers", ()) if name == _HEADER), b"")
        if not given:
            await self._application(scope, receive, send)
            return
        try:
            async with self._residency.use(given.decode("latin-1")):
                await self._application(scope, receive, send)
        except AdapterNotLoaded as refusal:
            body = orjson.dumps(refusal.to_openai())
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def residency_middleware(residency: AdapterResidency) -> Middleware:
    """The same for aiohttp."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(ADAPTER_HEADER)
        if given is None:
            return await handler(request)
        try:
            async with residency.use(given):
                return await handler(request)
        except AdapterNotLoaded as refusal:
            return _json(refusal)

    return guard


def _json(refusal: AdapterNotLoaded) -> web.Response:
    body: Any = orjson.dumps(refusal.to_openai())
    return web.Response(body=body, status=refusal.status, content_type="application/json")
