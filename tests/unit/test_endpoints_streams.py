"""Streams on their way to a client: whole events, unchanged but for what is ours, however they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import EngineFailed
from cluster.types import Usage
from deployments.gateway.endpoints.endpoint import Endpoint, StreamReader
from deployments.gateway.endpoints.messages import MESSAGES
from deployments.gateway.endpoints.openai_stream import OpenAiStream
from deployments.gateway.endpoints.responses import RESPONSES

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TEXT = (
    'data: {"choices":[{"index":0,"delta":{"content":"gr\u00fc\u00df \\"usage\\":{ [DONE]"}}]}\n\n'.encode()
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = ROLE + TEXT + TEXT + USAGE + DONE
COMMENT = b": sprat\n\n"


def reader(**body: Any) -> OpenAiStream:
    return OpenAiStream(body, lambda _usage: COMMENT)


def fed(stream: StreamReader, sent: bytes, cuts: Sequence[int]) -> bytes:
    edges = [0, *sorted(cuts), len(sent)]
    return b"".join(stream.feed(sent[a:b]) for a, b in pairwise(edges))


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_any_cut_gives_the_same_bytes(cuts: list[int], shows_usage: bool) -> None:
    stream = reader(stream_options={"include_usage": shows_usage})

    seen = fed(stream, STREAM, cuts)

    assert seen == ROLE + TEXT + TEXT + (USAGE if shows_usage else b"") + COMMENT + DONE
    assert (stream.usage, stream.outputs, stream.finished) == (Usage(7, 2), 2, True)


def test_the_comment_knows_the_usage() -> None:
    told: list[Usage | None] = []
    stream = OpenAiStream({}, lambda usage: told.append(usage) or b"")

    stream.feed(STREAM)

    assert told == [Usage(7, 2)]


def test_an_error_of_the_engine_ends_the_stream() -> None:
    with pytest.raises(EngineFailed):
        reader().feed(TEXT + b'data: {"error": {"message": "x"}}\n\n')


def test_an_endless_event_is_refused() -> None:
    stream = reader()

    with pytest.raises(EngineFailed, match="too large"):
        for _ in range(6):
            stream.feed(b"x" * 2**20)


LOOKS_LIKE = b"event: error\\ndata: event: message_stop event: response.completed"
RESPONSE_BEGIN = (
    b'event: response.created\ndata: {"response":{"usage":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"%s"}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"b"}\n\n' % LOOKS_LIKE
)
RESPONSE_END = (
    b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":7,"output_tokens":2}}}\n\n'
)
MESSAGE_BEGIN = (
    b'event: message_start\ndata: {"message":{"usage":{"input_tokens":7,"output_tokens":0}}}\n\n'
    b'event: content_block_delta\ndata: {"delta":{"text":"%s"}}\n\n'
    b'event: content_block_delta\ndata: {"delta":{"text":"b"}}\n\n'
    b'event: message_delta\ndata: {"usage":{"input_tokens":7,"output_tokens":2}}\n\n' % LOOKS_LIKE
)
MESSAGE_END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
NAMED = [(RESPONSES, RESPONSE_BEGIN, RESPONSE_END), (MESSAGES, MESSAGE_BEGIN, MESSAGE_END)]


@pytest.mark.parametrize(("endpoint", "begin", "end"), NAMED)
@given(data=st.data())
def test_any_cut_of_named_events_gives_the_same_bytes(
    endpoint: Endpoint, begin: bytes, end: bytes, data: st.DataObject
) -> None:
    assert endpoint.stream is not None
    stream = endpoint.stream({}, lambda usage: COMMENT if usage == Usage(7, 2) else b"?")
    cuts = data.draw(st.lists(st.integers(0, len(begin + end)), max_size=12))

    assert fed(stream, begin + end, cuts) == begin + COMMENT + end
    assert (stream.usage, stream.outputs, stream.finished) == (Usage(7, 2), 2, True)


@pytest.mark.parametrize(("endpoint", "begin", "end"), NAMED)
def test_byte_by_byte(endpoint: Endpoint, begin: bytes, end: bytes) -> None:
    assert endpoint.stream is not None
    stream = endpoint.stream({}, lambda _usage: COMMENT)

    assert fed(stream, begin + end, range(len(begin + end))) == begin + COMMENT + end


@pytest.mark.parametrize(("endpoint", "begin", "end"), NAMED)
def test_an_error_event_ends_the_stream(endpoint: Endpoint, begin: bytes, end: bytes) -> None:
    assert endpoint.stream is not None
    stream = endpoint.stream({}, lambda _usage: COMMENT)
    stream.feed(begin)

    with pytest.raises(EngineFailed):
        stream.feed(b'event: error\ndata: {"error":{"message":"at /srv"}}\n\n' + end)
