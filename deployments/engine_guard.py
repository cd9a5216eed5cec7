"""ASGI wall in front of an engine's own application: gateway token and route allow-list (THREATS.md 3)."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOWED_ROUTES = frozenset(
    {
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models"),
        ("GET", "/health"),
        ("GET", "/metrics"),
    }
)


class EngineGuard:
    """Refuses before the engine sees anything; everything not on the list does not exist."""

    def __init__(self, application: Application, gateway_token: str) -> None:
        if len(gateway_token) < 32:
            raise ValueError("the gateway token must have at least 32 characters")
        self._application = application
        self._authorization = f"Bearer {gateway_token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http" or (scope["method"], scope["path"]) not in ALLOWED_ROUTES:
            await _refuse(send, 404)
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._authorization):
            await _refuse(send, 401)
            return
        await self._application(scope, receive, send)


async def _refuse(send: Send, status: int) -> None:
    body = b'{"error":{"message":"refused","type":"invalid_request_error","param":null,"code":null}}'
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
