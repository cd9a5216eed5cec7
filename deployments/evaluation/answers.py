"""Answers on disk, one JSON line each: a collection that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.router.verifiers.draft import ToolCall
from deployments.evaluation.cases import Case


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said to one case. `asked` is what `model` was in the request, `model` and `tier` who
    answered. `logprobs` has one value per output token, as far as the engine told them."""

    case: str
    request_sha256: str
    asked: str
    model: str
    tier: str
    reason: str
    prompt_tokens: int
    output_tokens: int
    latency_ms: float
    cost_usd: float
    finish_reason: str
    content: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[float, ...]


def parse_answer(
    case: Case, asked: str, headers: Mapping[str, str], body: Mapping[str, Any], latency_ms: float
) -> Answer:
    """From the gateway's reply to a chat completion."""
    choice = body["choices"][0]
    message = choice["message"]
    return Answer(
        case=case.id,
        request_sha256=case.request_sha256,
        asked=asked,
        model=headers["x-sprat-model"],
        tier=headers["x-sprat-tier"],
        reason=headers["x-sprat-reason"],
        prompt_tokens=body["usage"]["prompt_tokens"],
        output_tokens=body["usage"]["completion_tokens"],
        latency_ms=round(latency_ms, 1),
        cost_usd=float(headers["x-sprat-cost-usd"]),
        finish_reason=choice["finish_reason"],
        content=message.get("content") or "",
        tool_calls=tuple(
            ToolCall(call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ),
        logprobs=tuple(
            round(token["logprob"], 4) for token in (choice.get("logprobs") or {}).get("content") or ()
        ),
    )


class AnswerFile:
    """Appends, and reads what is there. One process writes at a time."""

    def __init__(self, path: Path) -> None:
        """Removes the beginning of a line that was being written when a process was killed."""
        self._path = path
        if path.exists():
            with path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def add(self, answer: Answer) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")

    def read(self, cases: tuple[Case, ...]) -> dict[tuple[str, str], Answer]:
        """(case id, asked) → answer to the case as it is asked today; others are left alone. Raises
        ConfigError for a line that is no answer."""
        wanted = {case.id: case.request_sha256 for case in cases}
        found: dict[tuple[str, str], Answer] = {}
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                answer = _answer(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ConfigError(
                    f"{self._path}, line {number} is no answer ({error}). Remove the line, or name another "
                    "folder with --answers."
                ) from error
            if wanted.get(answer.case) == answer.request_sha256:
                found[answer.case, answer.asked] = answer
        return found


def _answer(kept: dict[str, Any]) -> Answer:
    calls = tuple(ToolCall(**call) for call in kept.pop("tool_calls"))
    return Answer(tool_calls=calls, logprobs=tuple(kept.pop("logprobs")), **kept)
