"""Bytes of one response body, with their arrival times → contents, usage and errors."""

from __future__ import annotations

import re
from typing import Any

import orjson

from loadtest.call import CallError, ErrorKind
from loadtest.sse import SseParser

MAX_ERROR_CHARS = 200

CONTENT = re.compile(rb'"delta": ?\{[^{}]*"content": ?"[^"]')


class AnswerReader:
    """Fed while the response arrives, asked once it is complete."""

    def __init__(self, status: int, *, is_stream: bool) -> None:
        self.status = status
        self.first_content_s: float | None = None
        self.last_content_s = 0.0
        self.gaps_s: list[float] = []
        self.error: CallError | None = None
        self._content_chunks = 0
        self._usage_tokens: int | None = None
        self._ended = False
        self._sse = SseParser() if is_stream and status == 200 else None
        self._body: list[bytes] = []

    @property
    def is_stream(self) -> bool:
        return self._sse is not None

    @property
    def output_tokens(self) -> int:
        return self._content_chunks if self._usage_tokens is None else self._usage_tokens

    def feed(self, received: bytes, arrived_s: float) -> None:
        if self._sse is None:
            self._body.append(received)
            return
        if self._sse.is_between_events and _is_one_content_event(received):
            self._count_content(arrived_s)
            return
        for payload in self._sse.feed(received):
            if payload == b"[DONE]":
                self._ended = True
            else:
                self._read_event(payload, arrived_s)

    def finish(self) -> None:
        """The response is complete: says what is wrong with it, if anything is."""
        if self.error is not None:
            return
        if self.status != 200:
            self.error = CallError(ErrorKind.STATUS, f"{self.status}: {_error_message(b''.join(self._body))}")
        elif self._sse is None:
            self._read_whole(b"".join(self._body))
        elif not self._ended:
            self.error = CallError(ErrorKind.BROKEN, "the stream ended without [DONE]")
        if self.error is None and not self._content_chunks:
            self.error = CallError(ErrorKind.EMPTY, "an answer without content")

    def _read_event(self, payload: bytes, arrived_s: float) -> None:
        event = self._parse(payload)
        if event is None:
            return
        if event.get("error"):
            self.error = CallError(ErrorKind.STREAM, _error_message(payload))
        self._read_usage(event)
        for choice in event.get("choices") or ():
            if (choice.get("delta") or {}).get("content") or choice.get("text"):
                self._count_content(arrived_s)
                return

    def _count_content(self, arrived_s: float) -> None:
        self._content_chunks += 1
        if self.first_content_s is None:
            self.first_content_s = arrived_s
        else:
            self.gaps_s.append(arrived_s - self.last_content_s)
        self.last_content_s = arrived_s

    def _read_whole(self, body: bytes) -> None:
        answer = self._parse(body)
        if answer is None:
            return
        self._read_usage(answer)
        for choice in answer.get("choices") or ():
            if (choice.get("message") or {}).get("content") or choice.get("text"):
                self._content_chunks += 1

    def _read_usage(self, answer: dict[str, Any]) -> None:
        usage = answer.get("usage")
        if usage:
            self._usage_tokens = usage.get("completion_tokens")

    def _parse(self, payload: bytes) -> dict[str, Any] | None:
        try:
            value = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            self.error = CallError(ErrorKind.PROTOCOL, f"not JSON: {error}")
            return None
        if not isinstance(value, dict):
            self.error = CallError(ErrorKind.PROTOCOL, "JSON, but no object")
            return None
        return value


def _is_one_content_event(received: bytes) -> bool:
    """The common case by far, told without reading JSON: the client shares its cores with what it measures.
    A chunk that looks different is read in full, whatever it holds."""
    return (
        received.startswith(b"data: {")
        and received.find(b"\n") == len(received) - 2
        and received.endswith(b"\n")
        and CONTENT.search(received) is not None
    )


def _error_message(body: bytes) -> str:
    """OpenAI's `error.message` where there is one, else the beginning of the text."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = body.decode("utf-8", "replace")
    return " ".join(str(message).split())[:MAX_ERROR_CHARS]
