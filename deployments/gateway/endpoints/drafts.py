"""Drafts of a cascade on OpenAI's completion routes: what the engine is asked, what the verifiers see of its
answer, and what the client gets of it. Those of other routes: `plain_drafts.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cluster.errors import EngineFailed
from cluster.router.verifiers.draft import Draft, Expected, Tool, ToolCall
from cluster.types import Candidate
from deployments.gateway.endpoints.endpoint import Body
from deployments.gateway.endpoints.generation import firm_body
from deployments.gateway.endpoints.sse import data, split

SEVERAL_DRAFTS_TEMPERATURE = 0.7
"""Where the caller asks for none: the likeliest answer k times would agree with itself."""

UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)
"""What taking apart an answer of the wrong shape raises."""

DATA = b"data: "
DONE = b"[DONE]"


class OpenAiDrafts:
    """`Drafts` of chat completions and of completions."""

    def can_be_judged(self, body: Body, *, logprobs: bool, drafts: int) -> bool:  # noqa: ARG002 (protocol)
        prompts = body.get("prompt")
        return (body.get("n") or 1) == 1 and (not isinstance(prompts, list) or len(prompts) == 1)

    def engine_body(
        self, body: Body, candidate: Candidate, cache_salt: str, *, logprobs: bool, drafts: int
    ) -> bytes:
        asked = firm_body(body, candidate, cache_salt)
        if logprobs and not _shows_logprobs(body):
            asked["logprobs"] = 1 if "prompt" in body else True
        if drafts > 1:
            asked["n"] = drafts
            if not asked.get("temperature"):
                asked["temperature"] = SEVERAL_DRAFTS_TEMPERATURE
        return orjson.dumps(asked)

    def expected(self, body: Body) -> Expected:
        answer_format = body.get("response_format") or {}
        choice = body.get("tool_choice") or "auto"
        return Expected(
            schema=(answer_format.get("json_schema") or {}).get("schema"),
            tools=tuple(
                [
                    Tool(each["function"]["name"], each["function"].get("parameters"))
                    for each in body.get("tools") or ()
                ]
            ),
            tool_choice=choice if isinstance(choice, str) else choice["function"]["name"],
            json=answer_format.get("type") == "json_object",
        )

    def read(self, raw: bytes) -> Draft:
        try:
            choices = sorted(orjson.loads(raw)["choices"], key=lambda choice: choice["index"])
            return _joined([_draft(choice) for choice in choices])
        except UNREADABLE as error:
            raise EngineFailed("The engine sent a draft that cannot be read.") from error

    def read_events(self, events: bytes) -> Draft:
        choices: dict[int, dict[str, Any]] = {}
        try:
            for chunk in _chunks(events):
                for choice in chunk["choices"]:
                    _add(choices.setdefault(choice["index"], {}), choice)
            return _joined([_draft(choices[index]) for index in sorted(choices)] or [Draft(text="")])
        except UNREADABLE as error:
            raise EngineFailed("The engine sent a draft that cannot be read.") from error

    def shown(self, body: Body, raw: bytes, chosen: int) -> bytes:
        answer = orjson.loads(raw)
        answer["choices"] = [each for each in answer["choices"] if _made_to_show(each, body, chosen)]
        return orjson.dumps(answer)

    def shown_events(self, body: Body, events: bytes, chosen: int) -> bytes:
        return b"".join([_shown_event(body, event, chosen) for event in split(events)])


def _shown_event(body: Body, event: bytes, chosen: int) -> bytes:
    if not event.startswith(DATA) or event.startswith(DATA + DONE):
        return event
    chunk = orjson.loads(event[len(DATA) :])
    choices = chunk["choices"]
    chunk["choices"] = [each for each in choices if _made_to_show(each, body, chosen)]
    # A chunk of other drafts only is nothing; one without choices was so before: the usage.
    return data(chunk) if chunk["choices"] or not choices else b""


def _made_to_show(choice: dict[str, Any], body: Body, chosen: int) -> bool:
    """Whether it is of the chosen draft; without what the client did not ask for then."""
    if choice["index"] != chosen:
        return False
    choice["index"] = 0
    if not _shows_logprobs(body):
        choice["logprobs"] = None
    return True


def _shows_logprobs(body: Body) -> bool:
    return body.get("logprobs") not in (None, False)


def _joined(drafts: Sequence[Draft]) -> Draft:
    first, *others = drafts
    return (
        Draft(first.text, first.tool_calls, first.finish_reason, first.token_logprobs, tuple(others))
        if others
        else first
    )


def _draft(choice: Mapping[str, Any]) -> Draft:
    """Of a choice of a whole answer, or of one that `_add` has put together."""
    message = choice.get("message") or choice
    streamed = message.get("calls_by_index") or {}
    calls = message.get("tool_calls") or [streamed[index] for index in sorted(streamed)]
    return Draft(
        text=message.get("content") or message.get("text") or "",
        tool_calls=tuple(
            [ToolCall(each["function"]["name"], each["function"].get("arguments") or "") for each in calls]
        ),
        finish_reason=choice.get("finish_reason"),
        token_logprobs=_logprobs(choice.get("logprobs")),
    )


def _logprobs(logprobs: Mapping[str, Any] | None) -> tuple[float, ...] | None:
    if logprobs is None:
        return None
    if "content" in logprobs:
        return tuple([each["logprob"] for each in logprobs["content"] or ()])
    return tuple([each for each in logprobs.get("token_logprobs") or () if each is not None])


def _chunks(events: bytes) -> list[dict[str, Any]]:
    return [
        orjson.loads(event[len(DATA) :])
        for event in split(events)
        if event.startswith(DATA) and not event.startswith(DATA + DONE)
    ]


def _add(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    """One more piece of a choice, whose message it makes up."""
    delta = part.get("delta") or {}
    choice["text"] = choice.get("text", "") + (delta.get("content") or part.get("text") or "")
    for call in delta.get("tool_calls") or ():
        calls = choice.setdefault("calls_by_index", {})
        function = calls.setdefault(call["index"], {"function": {"name": "", "arguments": ""}})["function"]
        function["name"] += call["function"].get("name") or ""
        function["arguments"] += call["function"].get("arguments") or ""
    if part.get("finish_reason") is not None:
        choice["finish_reason"] = part["finish_reason"]
    logprobs = part.get("logprobs")
    if logprobs is not None:
        kept = choice.setdefault("logprobs", {})
        for name in ("content", "token_logprobs"):
            if logprobs.get(name) is not None:
                kept[name] = kept.get(name, []) + logprobs[name]
