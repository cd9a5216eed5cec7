"""ASGI on both sides: ordinary applications answer what is not hot (`answer_by`), and the gateway itself can
stand behind any ASGI server (`AsgiFront`; Ray Serve's proxy route).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from deployments.gateway.http.listener import Listener
from deployments.gateway.http.message import Reply, Request, Source
from deployments.gateway.http.rules import Refused, add_header, check_head, path_of, too_large
from deployments.gateway.tasks import end_task

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CHUNKS_KEPT = 64
"""Of an answer that the server outside has not taken; beyond it the engine is held back."""


async def answer_by(application: Application, request: Request, reply: Reply) -> None:
    """`application` answers; it sees the parsed path, never a URL made of the Host header."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(request.path),
        "raw_path": request.path.encode(),
        "query_string": request.query,
        "root_path": "",
        "headers": list(request.headers.items()),
        "client": (request.peer, 0),
        "server": None,
    }
    body: list[bytes] = [request.body]
    head: tuple[int, dict[str, str]] = (500, {})

    async def receive() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        await asyncio.Event().wait()  # when the client goes, this task is cancelled
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        nonlocal head
        if message["type"] == "http.response.start":
            names = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
            head = message["status"], {name: value for name, value in names if name != "content-length"}
        elif message["type"] == "http.response.body":
            more = message.get("more_body", False)
            if not reply.started and not more:
                reply.respond(*head, message.get("body", b""))
                return
            if not reply.started:
                reply.start(*head)
            reply.write(message.get("body", b""))
            if not more:
                reply.end()

    await application(scope, receive, send)


class _AsgiReply:
    """`Reply` as ASGI messages. It is written to in the gateway's loop and taken from in that of the server
    outside, which may be another thread's. A message of None breaks off."""

    def __init__(self, inside: asyncio.AbstractEventLoop, *, without_body: bool) -> None:
        self._inside = inside
        self._outside = asyncio.get_running_loop()
        self._without_body = without_body
        self._messages: deque[Message | None] = deque()
        self._news = asyncio.Event()
        self._source: Source | None = None
        self._held_back = False
        self.started = False
        self.ended = False

    def respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if not self.ended:
            self._start(status, dict(headers) | {"content-length": str(len(body))})
            self._body(body, last=True)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        if not self.ended:
            self._start(status, headers)

    def write(self, data: bytes) -> None:
        if data and not self.ended:
            self._body(data, last=False)

    def end(self) -> None:
        if not self.ended:
            self._body(b"", last=True)

    def abort(self) -> None:
        if not self.ended:
            self.ended = True
            self._put(None)

    def take_from(self, source: Source) -> None:
        self._source = source

    # Outside

    async def take(self) -> Message | None:
        while not self._messages:
            self._news.clear()
            await self._news.wait()
        message = self._messages.popleft()
        if self._held_back and not self._messages:
            self._held_back = False
            self._inside.call_soon_threadsafe(self._let_go)
        return message

    def _arrive(self, message: Message | None) -> None:
        self._messages.append(message)
        self._news.set()
        if len(self._messages) > CHUNKS_KEPT and not self._held_back:
            self._held_back = True
            self._inside.call_soon_threadsafe(self._hold)

    # Inside

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._put(
            {"type": "http.response.start", "status": status, "headers": [(b"server", b"sprat"), *pairs]}
        )

    def _body(self, data: bytes, *, last: bool) -> None:
        self.ended = last
        shown = b"" if self._without_body else data
        self._put({"type": "http.response.body", "body": shown, "more_body": not last})

    def _put(self, message: Message | None) -> None:
        self._outside.call_soon_threadsafe(self._arrive, message)

    def _hold(self) -> None:
        if self._source is not None:
            self._source.pause()

    def _let_go(self) -> None:
        if self._source is not None:
            self._source.resume()


class AsgiFront:
    """An ASGI application around a handler of requests. Slower than `Listener`: every piece of an answer
    passes through the server outside."""

    def __init__(self, listener: Listener) -> None:
        """With its handler, limits and words of refusal. The application may be called in another loop."""
        self._handler = listener.handler
        self._limits = listener.limits
        self._refusal_body = listener.refusal_body
        self._loop = listener.loop

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        reply = _AsgiReply(self._loop, without_body=scope["method"] == "HEAD")
        try:
            request = await self._request(scope, receive)
        except Refused as refused:
            body = self._refusal_body(replace(refused, path=scope["path"]))
            reply.respond(refused.status, {"content-type": "application/json"}, body)
            await _send_all(reply, send)
            return
        answering = asyncio.run_coroutine_threadsafe(self._answer(request, reply), self._loop)
        sending = asyncio.create_task(_send_all(reply, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending  # raises what it raised
        finally:
            if not reply.ended:
                answering.cancel()
            for task in (leaving, sending):
                await end_task(task)

    async def _answer(self, request: Request, reply: Reply) -> None:
        try:
            await self._handler(request, reply)
        finally:
            if not reply.ended:
                reply.abort()

    async def _request(self, scope: MutableMapping[str, Any], receive: Receive) -> Request:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            add_header(headers, name, value)
        sizes = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        url = scope.get("raw_path") or scope["path"].encode()
        check_head("1.1", headers, sizes, len(url), self._limits)
        path, _ = path_of(url)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "malformed_request", "The body is not complete.")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limits.body_bytes:
                raise too_large(self._limits)
        peer = (scope.get("client") or ("",))[0]
        return Request(scope["method"], path, scope.get("query_string", b""), headers, bytes(body), peer)


async def _lifespan(receive: Receive, send: Send) -> None:
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


async def _send_all(reply: _AsgiReply, send: Send) -> None:
    while (message := await reply.take()) is not None:
        await send(message)
        if message["type"] == "http.response.body" and not message["more_body"]:
            return
    raise ConnectionResetError("the answer broke off")  # the server outside closes the connection


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
