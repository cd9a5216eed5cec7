"""The cases that every model answers: tool calls of BFCL and intents of CLINC150, frozen beforehand.

The repository holds which cases they are and the SHA-256 of their text (`frozen_cases.json`), not the text:
that is read from the data folder, and a case whose text is another one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from deployments.evaluation.tool_schema import chat_tool

FROZEN = Path(__file__).parent / "frozen_cases.json"

TOOL_MAX_TOKENS = 160
INTENT_MAX_TOKENS = 32

INTENT_PROMPT = (
    "Intents: {names}\n\n"
    "Classify the user's message. Answer with exactly one of these intents and nothing else."
)
"""With all 150 names, the same for every case: 500 to 700 tokens, which fit the small model's context of
2,048 and stay in the engines' prefix caches. Of four wordings it is the one with which the small model named
most intents of 24 utterances of CLINC150's validation part: 4. Without the schema it named none of 16."""

INTENT_QUESTION = "Message: {utterance}\nIntent:"


class Suite(StrEnum):
    """Where a case comes from. Values are the names of BFCL's categories and of the other data set."""

    SIMPLE = "simple_python"
    MULTIPLE = "multiple"
    INTENT = "clinc150"


@dataclass(frozen=True, slots=True)
class Case:
    """`body` is a chat completion without `model`. `expected` is the intent's name, or BFCL's possible answer
    {function: {parameter: allowed values}}; `functions` are BFCL's descriptions, for the scorer."""

    id: str
    suite: Suite
    text_sha256: str
    body: dict[str, Any]
    expected: Any
    functions: tuple[dict[str, Any], ...] = ()

    @property
    def request_sha256(self) -> str:
        """An answer is for this request: another prompt or setting needs a new one."""
        return _sha256(self.body)


def read_cases(data: Path, frozen: Path = FROZEN) -> tuple[Case, ...]:
    """The frozen ones, tool calls and intents by turns, so that a part of them is a fair sample. Raises
    ConfigError if the data are not there or not those that were frozen."""
    available = {case.id: case for case in all_cases(data)}
    digests: dict[str, str] = json.loads(frozen.read_text(encoding="utf-8"))["sha256"]
    wrong = [
        name
        for name, digest in digests.items()
        if name not in available or available[name].text_sha256 != digest
    ]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} of {len(digests)} frozen cases are not in {data}, or have another text "
            f"({', '.join(wrong[:3])}, …). Use the data that they were frozen from: BFCL v4 and CLINC150's "
            "data_full.json."
        )
    return by_turns([available[name] for name in digests])


def by_turns(cases: Sequence[Case]) -> tuple[Case, ...]:
    """simple, intent, multiple, intent, simple, …"""
    of = {suite: [case for case in cases if case.suite is suite] for suite in Suite}
    tools = _alternating(of[Suite.SIMPLE], of[Suite.MULTIPLE])
    return tuple(_alternating(list(tools), of[Suite.INTENT]))


def all_cases(data: Path) -> Iterator[Case]:
    """Every case of the data folder that could be frozen."""
    yield from _tool_cases(data / "bfcl", Suite.SIMPLE)
    yield from _tool_cases(data / "bfcl", Suite.MULTIPLE)
    yield from _intent_cases(data / "clinc150")


def _alternating(first: Sequence[Case], second: Sequence[Case]) -> Iterator[Case]:
    return (case for case in chain.from_iterable(zip_longest(first, second)) if case is not None)


def _tool_cases(folder: Path, suite: Suite) -> Iterator[Case]:
    file = f"BFCL_v4_{suite.value}.json"
    answers = {each["id"]: each["ground_truth"] for each in _json_lines(folder / "possible_answer" / file)}
    for entry in _json_lines(folder / file):
        name, functions = entry["id"], entry["function"]
        yield Case(
            id=name,
            suite=suite,
            text_sha256=_sha256([entry["question"], functions, answers[name]]),
            body=_body(
                entry["question"][0],
                TOOL_MAX_TOKENS,
                tools=[chat_tool(function) for function in functions],
                # Each of these cases needs one call, no more, of one of its tools.
                tool_choice="required",
                parallel_tool_calls=False,
            ),
            expected=answers[name][0],
            functions=tuple(functions),
        )


def _intent_cases(folder: Path) -> Iterator[Case]:
    path = folder / "data_full.json"
    utterances: list[tuple[str, str]] = json.loads(_text(path))["test"]
    names = sorted({intent for _, intent in utterances})
    system = INTENT_PROMPT.format(names=", ".join(names))
    answer_format = _one_of(names)
    for index, (utterance, intent) in enumerate(utterances):
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": INTENT_QUESTION.format(utterance=utterance)},
        ]
        yield Case(
            id=f"{Suite.INTENT.value}_test_{index}",
            suite=Suite.INTENT,
            text_sha256=_sha256([utterance, intent]),
            body=_body(messages, INTENT_MAX_TOKENS, response_format=answer_format),
            expected=intent,
        )


def _one_of(names: Sequence[str]) -> dict[str, Any]:
    """`response_format` for {"intent": NAME}."""
    schema = {
        "type": "object",
        "properties": {"intent": {"type": "string", "enum": list(names)}},
        "required": ["intent"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "intent", "schema": schema}}


def _body(messages: Sequence[Mapping[str, Any]], max_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 1,
        "logprobs": True,
        **more,
    }


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. --data is the folder that holds `bfcl` and `clinc150`."
        ) from error


def _sha256(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
