"""`python -m loadtest stub-engine`: an engine that costs almost nothing, for measuring what stands before it.

It answers OpenAI chat completions without computing anything: whole answers of about 2 kB; streams of
`max_tokens` chunks (32 if the request does not say), a usage chunk and `[DONE]`. The model is the timing:

* `at-once`: no gap between chunks. Each is a write of its own, as from an engine, not one block of all.
* `paced`: chunks at a steady rate that does not drift, the first one at once.

Strict about keep-alive: one request at a time on a connection, and `connection: close` is obeyed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import orjson
import uvloop

AT_ONCE = "at-once"
PACED = "paced"
MODELS = (AT_ONCE, PACED)

DEFAULT_TOKENS = 32
TOKENS_PER_S = 30.0
PROMPT_TOKENS = 500
"""What every answer claims; the prompt is not counted."""

WHOLE_CONTENT = "The order number in this message is 4711. " * 40
CREATED = 1_700_000_000


def _json_response(status: str, value: object) -> bytes:
    body = orjson.dumps(value)
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )


def _error(status: str, message: str) -> bytes:
    return _json_response(status, {"error": {"message": message, "type": "invalid_request_error"}})


def _usage(tokens: int) -> dict[str, int]:
    total = PROMPT_TOKENS + tokens
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": total}


def _answer(model: str, choice: dict[str, Any]) -> bytes:
    return _json_response(
        "200 OK",
        {
            "id": "chatcmpl-stub",
            "object": "chat.completion",
            "created": CREATED,
            "model": model,
            "choices": [choice],
            "usage": _usage(DEFAULT_TOKENS),
        },
    )


def _event(model: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
    value = {
        "id": "chatcmpl-stub",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": choices,
        **more,
    }
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _http_chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def _token(model: str, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _http_chunk(_event(model, [choice]))


WHOLE = {
    model: _answer(
        model,
        {
            "index": 0,
            "message": {"role": "assistant", "content": WHOLE_CONTENT},
            "logprobs": None,
            "finish_reason": "stop",
        },
    )
    for model in MODELS
}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = {model: STREAM_HEAD + _token(model, {"role": "assistant", "content": "The"}) for model in MODELS}
NEXT = {model: _token(model, {"content": " order"}) for model in MODELS}
LAST = {model: _token(model, {"content": "."}, "stop") for model in MODELS}
STREAM_END = _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _usage_chunk(model: str, tokens: int) -> bytes:
    return _http_chunk(_event(model, [], usage=_usage(tokens)))


MODELS_PAGE = _json_response(
    "200 OK",
    {
        "object": "list",
        "data": [
            {"id": model, "object": "model", "created": CREATED, "owned_by": "stub"} for model in MODELS
        ],
    },
)
HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
NOT_FOUND = _error("404 Not Found", "there are /v1/chat/completions, /v1/models and /health")


class _Connection(asyncio.Protocol):
    """One request at a time: reads it, answers it, then the next."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._path = b""
        self._body = b""
        self._keep_alive = True
        self._next_chunk: asyncio.Handle | None = None
        """Set while a stream runs."""

        self._model = AT_ONCE
        self._tokens = 0
        self._sent_tokens = 0
        self._began_s = 0.0
        self._tail = STREAM_END

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (the interface's)
        if self._next_chunk is not None:
            self._next_chunk.cancel()

    def data_received(self, received: bytes) -> None:
        try:
            self._parser.feed_data(received)
        except httptools.HttpParserError:
            self._transport.abort()

    # httptools

    def on_message_begin(self) -> None:
        if self._next_chunk is not None:
            raise RuntimeError("a request before the end of the last answer")  # the parser's caller hangs up
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        match self._path:
            case b"/v1/chat/completions":
                self._complete()
            case b"/v1/models":
                self._end(MODELS_PAGE)
            case b"/health":
                self._end(HEALTHY)
            case _:
                self._end(NOT_FOUND)

    # Answers

    def _complete(self) -> None:
        try:
            body = orjson.loads(self._body)
            model, streams = body["model"], body.get("stream")
            tokens = int(body.get("max_tokens") or DEFAULT_TOKENS)
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._end(_error("400 Bad Request", f"not a chat completion: {error!r}"))
            return
        if model not in MODELS:
            self._end(_error("404 Not Found", f"no model {model!r} here, only {', '.join(MODELS)}"))
        elif streams:
            self._model, self._tokens = model, max(tokens, 2)
            self._tail = _usage_chunk(model, self._tokens) + STREAM_END if with_usage else STREAM_END
            self._begin_stream()
        else:
            self._end(WHOLE[model])

    def _begin_stream(self) -> None:
        self._transport.write(FIRST[self._model])
        self._sent_tokens = 1
        self._began_s = self._loop.time()
        self._await_next_chunk()

    def _await_next_chunk(self) -> None:
        if self._model == AT_ONCE:
            self._next_chunk = self._loop.call_soon(self._send_chunk)
        else:
            due_s = self._began_s + self._sent_tokens / TOKENS_PER_S
            self._next_chunk = self._loop.call_at(due_s, self._send_chunk)

    def _send_chunk(self) -> None:
        self._sent_tokens += 1
        if self._sent_tokens < self._tokens:
            self._transport.write(NEXT[self._model])
            self._await_next_chunk()
        else:
            self._next_chunk = None
            self._end(LAST[self._model] + self._tail)

    def _end(self, last: bytes) -> None:
        self._transport.write(last)
        if not self._keep_alive:
            self._transport.close()


async def serve(port: int, host: str = "127.0.0.1") -> asyncio.Server:
    """Listening; port 0 takes a free one."""
    return await asyncio.get_running_loop().create_server(_Connection, host, port, backlog=1024)


def run(port: int) -> None:
    """Until the process is told to end."""

    async def until_cancelled() -> None:
        server = await serve(port)
        await server.serve_forever()

    uvloop.run(until_cancelled())
