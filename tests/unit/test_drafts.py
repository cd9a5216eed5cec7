"""Drafts on OpenAI's routes: what is asked, what is seen, what is shown."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from cluster.config.verifiers import RefusalVerifierConfig
from cluster.errors import EngineFailed
from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall
from cluster.router.verifiers.verification import Verification
from deployments.gateway.cascade import DraftJudge, HeldDraft
from deployments.gateway.endpoints.chat import CHAT as CHAT_ROUTE
from deployments.gateway.endpoints.drafts import OpenAiDrafts
from deployments.gateway.endpoints.openai_stream import OpenAiStream
from tests.builders import candidate

DRAFTS = OpenAiDrafts()
CHAT: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}


def asked(body: dict[str, Any], *, logprobs: bool = False, drafts: int = 1) -> dict[str, Any]:
    raw = DRAFTS.engine_body(body, candidate(), "salt", logprobs=logprobs, drafts=drafts)
    return dict(json.loads(raw))


def test_the_engine_is_asked_for_what_the_verifiers_need() -> None:
    assert "logprobs" not in asked(CHAT)
    assert asked(CHAT, logprobs=True)["logprobs"] is True
    assert asked({"model": "auto", "prompt": "hi"}, logprobs=True)["logprobs"] == 1
    assert asked(CHAT | {"logprobs": True, "top_logprobs": 5}, logprobs=True)["top_logprobs"] == 5


@pytest.mark.parametrize(("given", "used"), [(None, 0.7), (0, 0.7), (1.2, 1.2)])
def test_several_drafts_need_some_chance(given: float | None, used: float) -> None:
    body = asked(CHAT | {"temperature": given}, drafts=3)

    assert (body["n"], body["temperature"]) == (3, used)


@pytest.mark.parametrize(
    ("body", "one"),
    [
        ({}, True),
        ({"n": 1}, True),
        ({"n": 2}, False),
        ({"prompt": ["a"]}, True),
        ({"prompt": ["a", "b"]}, False),
    ],
)
def test_calls_for_several_answers_are_told(body: dict[str, Any], one: bool) -> None:
    assert DRAFTS.can_be_judged(body, logprobs=True, drafts=3) is one


def test_what_the_client_expects() -> None:
    schema = {"type": "object"}
    function = {"name": "pay", "parameters": schema}
    body = CHAT | {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "pay"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }

    assert DRAFTS.expected(body) == Expected(schema, (Tool("pay", schema),), "pay")
    assert DRAFTS.expected(CHAT | {"response_format": {"type": "json_object"}}) == Expected(json=True)


def whole(*choices: dict[str, Any]) -> bytes:
    return json.dumps({"id": "x", "choices": list(choices)}).encode()


def choice(index: int, **message: Any) -> dict[str, Any]:
    return {"index": index, "message": message, "finish_reason": "stop", "logprobs": LOGPROBS}


def test_a_whole_answer_becomes_a_draft() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": '{"a":1}'}}

    draft = DRAFTS.read(whole(choice(1, content="b"), choice(0, content=None, tool_calls=[call])))

    assert draft == Draft(
        "", (ToolCall("pay", '{"a":1}'),), "stop", (-0.5,), (Draft("b", (), "stop", (-0.5,)),)
    )


def test_the_client_gets_the_chosen_one_without_our_logprobs() -> None:
    raw = whole(choice(0, content="a"), choice(1, content="b"))

    shown = json.loads(DRAFTS.shown(CHAT, raw, 1))
    with_logprobs = json.loads(DRAFTS.shown(CHAT | {"logprobs": True}, raw, 0))

    (only,) = shown["choices"]
    assert (only["index"], only["message"]["content"], only["logprobs"]) == (0, "b", None)
    assert with_logprobs["choices"][0]["logprobs"] == LOGPROBS


def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
    value = {"id": "x", "choices": [{"index": index, "delta": delta, "logprobs": LOGPROBS} | more]}
    return b"data: " + orjson.dumps(value) + b"\n\n"


def test_a_stream_becomes_the_same_draft_in_any_pieces() -> None:
    calls = [
        {"index": 0, "id": "1", "function": {"name": "pay", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "2", "function": {"name": "tell", "arguments": "{}"}},
    ]
    events = b"".join(chunk(0, {"tool_calls": [each]}) for each in calls)
    events += chunk(1, {"role": "assistant", "content": ""}) + chunk(1, {"content": "so"})
    events += chunk(0, {}, finish_reason="tool_calls") + b": note\n\ndata: [DONE]\n\n"

    draft = DRAFTS.read_events(events)

    assert draft.tool_calls == (ToolCall("pay", '{"a":1}'), ToolCall("tell", "{}"))
    assert (draft.finish_reason, draft.token_logprobs) == ("tool_calls", (-0.5,) * 5)
    assert [each.text for each in draft.others] == ["so"]
    assert DRAFTS.read_events(b"data: [DONE]\n\n") == Draft("")


def test_of_a_stream_only_the_chosen_draft_is_shown() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
    end = b": sprat {}\n\ndata: [DONE]\n\n"
    events = chunk(0, {"content": "no"}) + chunk(1, {"content": "yes"}) + usage + end

    shown = DRAFTS.shown_events(CHAT, events, 1)

    assert b"no" not in shown.replace(b"logprobs", b"")
    assert b'"index":0,"delta":{"content":"yes"},"logprobs":null' in shown
    assert shown.endswith(usage + end)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b'{"choices":[]}', b'{"choices":[{"index":0,"message":5}]}', b"[]"]
)
def test_what_cannot_be_read_is_the_engines_fault(raw: bytes) -> None:
    with pytest.raises(EngineFailed):
        DRAFTS.read(raw)
    if raw:
        with pytest.raises(EngineFailed):
            DRAFTS.read_events(b'data: {"choices":[{"delta":{}}]}\n\n')


@pytest.mark.parametrize("after_tokens", [2, None])
async def test_a_released_stream_is_held_back_for_a_slow_client(after_tokens: int | None) -> None:
    """From its release on, not before: what is held must come in whole."""
    told: list[str] = []
    judge = DraftJudge(Verification.of([RefusalVerifierConfig(kind="refusal")]), (), after_tokens)
    held = HeldDraft(
        judge, CHAT_ROUTE, CHAT, lambda events: told.append(events.decode()), lambda: told.append("released")
    )
    reader = OpenAiStream(CHAT, lambda _: b"")

    for word in ("so ", "it ", "is"):
        held.feed(reader, chunk(0, {"content": word}))
    held.feed(reader, chunk(0, {}, finish_reason="stop") + b"data: [DONE]\n\n")
    await held.end()

    assert "".join(told).count('"content"') == 3
    assert told.count("released") == (0 if after_tokens is None else 1)
    assert len(told) == (1 if after_tokens is None else 4)
