"""Events come out whole and unchanged, however the bytes are cut."""

from __future__ import annotations

import orjson
import pytest

from cluster.types import Usage
from deployments.gateway import sse

EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    'data: {"choices":[{"index":0,"delta":{"content":"grüß"}}]}\n\n'.encode(),
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_any_cut_gives_the_same_events(size: int) -> None:
    stream = b"".join(EVENTS)
    splitter = sse.EventSplitter()

    cut = [
        event
        for start in range(0, len(stream), size)
        for event in splitter.feed(stream[start : start + size])
    ]

    assert cut == EVENTS


def test_events_are_told_apart() -> None:
    assert [sse.has_output(event) for event in EVENTS] == [False, True, False, False]
    assert [sse.is_usage_event(event) for event in EVENTS] == [False, False, True, False]
    assert [sse.is_done(event) for event in EVENTS] == [False, False, False, True]
    assert sse.usage_from(orjson.loads(EVENTS[2][6:])) == Usage(prompt_tokens=7, output_tokens=2)


def test_an_endless_event_is_refused() -> None:
    splitter = sse.EventSplitter()

    with pytest.raises(ValueError, match="larger"):
        for _ in range(6):
            splitter.feed(b"x" * 2**20)
