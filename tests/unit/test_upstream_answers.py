"""Answers of any server, in the form in which the gateway reads those of our engines."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway.endpoints.openai_stream import OpenAiStream, usage_of_answer
from deployments.upstream.answers import ChoiceStream, answer_stream, whole_answer
from deployments.upstream.event_reader import MAX_EVENT_BYTES, EventReader
from deployments.upstream.failure import UnreadableError


def chunk(content: str = "", finish: str | None = None, **more: object) -> bytes:
    """As a server writes it that does not care for size: spaces everywhere."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c', 'model': 'theirs', 'choices': [choice]} | more)}\r\n\r\n".encode()


USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
DONE = b"data: [DONE]\r\n\r\n"


def through_gateway(events: bytes) -> OpenAiStream:
    reader = OpenAiStream({"stream": True}, lambda _usage: b"")
    reader.feed(events)
    return reader


def run(stream, *pieces: bytes) -> bytes:
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.end()])


def test_a_stream_with_spaces_and_crlf_is_counted_by_the_gateway():
    usage = f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': USAGE})}\n\n".encode()
    stream = ChoiceStream("ours", 5)
    events = run(stream, chunk("a"), chunk("b"), chunk("", "stop"), usage, DONE)

    reader = through_gateway(events)
    assert reader.finished
    assert (reader.usage.prompt_tokens, reader.usage.output_tokens) == (11, 3)
    assert stream.total_tokens == 14
    assert b"theirs" not in events
    assert events.count(b'"model":"ours"') == 4
    assert events.endswith(b"data: [DONE]\n\n")


@given(st.lists(st.integers(0, 400), max_size=12))
def test_the_pieces_in_which_a_stream_comes_do_not_matter(cuts):
    whole = b": hello\n\n" + chunk("größe") + b"event: x\nid: 1\n" + chunk("b", "stop", usage=USAGE) + DONE
    edges = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    assert run(ChoiceStream("ours", 5), *pieces) == run(ChoiceStream("ours", 5), whole)


def test_no_event_waits_for_the_next_one():
    stream = ChoiceStream("ours", 5)
    assert b'"content":"a"' in stream.feed(chunk("a"))


def test_a_stream_without_usage_is_estimated_and_says_so():
    events = run(ChoiceStream("ours", 5), chunk("x" * 40), chunk("", "stop"), DONE)
    reader = through_gateway(events)
    assert (reader.usage.prompt_tokens, reader.usage.output_tokens) == (5, 10)
    assert b'"estimated":true' in events


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": "1"}, 7, []]
)
def test_a_usage_that_cannot_be_counted_is_estimated(usage):
    events = run(ChoiceStream("ours", 5), chunk("x" * 40, "stop", usage=usage), DONE)
    assert through_gateway(events).usage.output_tokens == 10
    raw = orjson.dumps({"choices": [{"message": {"role": "assistant", "content": "x" * 40}}], "usage": usage})
    assert usage_of_answer(whole_answer("chat", raw, "ours", 5)[0]).output_tokens == 10


def test_usage_in_every_chunk_becomes_one_at_the_end():
    growing = [chunk(each, usage=USAGE | {"completion_tokens": n}) for n, each in enumerate("abc", start=1)]
    events = run(ChoiceStream("ours", 5), *growing, chunk("", "stop"), DONE)
    assert events.count(b'"usage":{') == 1
    assert through_gateway(events).usage.output_tokens == 3


def test_a_server_that_forgets_done_has_finished_all_the_same():
    events = run(ChoiceStream("ours", 5), chunk("a", "stop").removesuffix(b"\r\n\r\n"))
    assert through_gateway(events).finished


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk("a")],
        [],
        [b"data: {not json}\n\n"],
        [b"data: [1]\n\n"],
        [b'data: {"error": {"message": "overloaded"}}\n\n'],
        [b'data: {"id": "x"}\n\n'],
        [b"data: " + b"x" * (MAX_EVENT_BYTES + 1)],
        [b"data: x\n" * (MAX_EVENT_BYTES // 7)],
    ],
    ids=["cut off", "nothing", "no JSON", "no object", "error", "no choices", "huge line", "huge event"],
)
def test_a_stream_that_cannot_be_read_raises(pieces):
    with pytest.raises(UnreadableError):
        run(ChoiceStream("ours", 5), *pieces)


def test_what_comes_after_the_end_is_left_out():
    events = run(ChoiceStream("ours", 5), chunk("a", "stop"), DONE, chunk("b"), DONE)
    assert events.count(b"[DONE]") == 1
    assert b'"b"' not in events


def test_named_events_keep_their_names_and_lose_the_model():
    stream = answer_stream("responses", "ours", 5)
    start = b'data: {"type": "response.created", "response": {"model": "theirs"}}\n\n'
    last = (
        b'event: response.completed\ndata: {"type": "response.completed", "response": '
        b'{"model": "theirs", "usage": {"input_tokens": 3, "output_tokens": 4}}}\n\n'
    )
    events = run(stream, start, last)
    assert events.startswith(b'event: response.created\ndata: {"type":"response.created"')
    assert b"theirs" not in events
    assert stream.total_tokens == 7


@pytest.mark.parametrize(
    "data",
    [b'{"type": "error", "message": "x"}', b'{"type": "a\\nb"}', b"{}", b'{"type": "response.failed"}'],
)
def test_named_events_that_fail_raise(data):
    with pytest.raises(UnreadableError):
        run(answer_stream("messages", "ours", 5), b"data: " + data + b"\n\n")
    with pytest.raises(UnreadableError, match="cut off"):
        run(answer_stream("messages", "ours", 5), b'data: {"type": "message_start"}\n\n')


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"error": {"message": "x"}, "choices": [1]}']
)
def test_a_whole_answer_that_cannot_be_read_raises(raw):
    with pytest.raises(UnreadableError):
        whole_answer("chat", raw, "ours", 5)


def test_a_whole_answer_has_our_name_and_its_usage():
    raw = orjson.dumps({"model": "theirs", "choices": [{"text": "a"}], "usage": USAGE})
    answer, tokens = whole_answer("completions", raw, "ours", 5)
    assert orjson.loads(answer) == {"model": "ours", "choices": [{"text": "a"}], "usage": USAGE}
    assert tokens == 14
    vectors, tokens = whole_answer("embeddings", b'{"data": [{"embedding": [1]}]}', "ours", 5)
    assert usage_of_answer(vectors).prompt_tokens == 5
    assert tokens == 5


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["delta", "usage", "model", "x"]), inner),
)


@given(
    st.sampled_from(["chat", "responses"]),
    st.dictionaries(st.sampled_from(["choices", "usage", "type", "response", "error", "id"]), JSON),
)
def test_nothing_that_a_provider_sends_is_more_than_unreadable(route, sent):
    raw = json.dumps(sent).encode()
    for read in (
        lambda: whole_answer(route, raw, "ours", 5),
        lambda: run(answer_stream(route, "ours", 5), b"data: " + raw + b"\n\n", DONE),
    ):
        with suppress(UnreadableError):
            read()


@pytest.mark.parametrize("depth", [300, 1000, 100_000])
def test_deep_nesting_is_unreadable(depth):
    raw = b'{"choices": [{"message": ' + b"[" * depth + b"]" * depth + b"}]}"
    with pytest.raises(UnreadableError):
        whole_answer("chat", raw, "ours", 5)
    with pytest.raises(UnreadableError):
        run(ChoiceStream("ours", 5), b"data: " + raw + b"\n\n", DONE)


def test_what_a_provider_adds_is_not_shown():
    extra = {"provider": "theirs", "x_groq": {}, "usage": USAGE | {"cost": 0.1}}
    raw = orjson.dumps({"choices": [{"text": "a"}]} | extra)
    assert orjson.loads(whole_answer("chat", raw, "ours", 5)[0]).keys() == {"model", "choices", "usage"}
    events = run(ChoiceStream("ours", 5), chunk("a", "stop", **extra), DONE)
    assert not [word for word in (b"provider", b"groq", b"cost") if word in events]


def test_events_as_any_server_may_write_them():
    reader = EventReader()
    found = list(reader.feed(b": c\ndata:a\ndata: b\r\n\r\nretry: 5\n\ndata\n\ndata: c"))
    assert found == [b"a\nb"]
    assert list(reader.end()) == [b"c"]
