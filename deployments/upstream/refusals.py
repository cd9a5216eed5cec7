"""What an upstream's answer other than 200 means for us. Pure.

Its words may hold addresses, account names and parts of the key: what a client gets is ours, or redacted;
what an operator gets names the status and what to check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson

MAX_MESSAGE_CHARACTERS = 300

CONTEXT_EXCEEDED = (
    "This model's maximum context length is exceeded. Send a shorter prompt or ask for less output."
)
"""The gateway looks for "context length": another tier may take the call."""

_CONTEXT_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
)
_CONTEXT_WORDS = re.compile(
    r"context (length|window|size)|maximum context|prompt is too long|too many (input )?tokens|max_model_len",
    re.IGNORECASE,
)
_NO_CREDIT = frozenset({"insufficient_quota", "billing_not_active", "billing_hard_limit_reached"})
_SECRETS = re.compile(
    r"""\b[a-z][a-z0-9+.-]*://\S+                # addresses
    | (?i:\bbearer\s+\S+)
    | \b(?:sk|pk|rk|key|org|proj|acct)[-_]\S{4,}  # keys and accounts, also shortened ones
    | \b[\w.-]+@[\w-]+\.[\w.-]+                   # people
    | \b[A-Za-z0-9_-]{24,}\b                      # opaque tokens
    | \b(?:[a-z0-9-]*[a-z][a-z0-9-]*\.){2,}[a-z]{2,}(?::\d+)?(?:/\S*)?  # host names
    """,
    re.VERBOSE,
)


class Meaning(StrEnum):
    INVALID = "invalid"
    """The call is wrong: its client is told."""
    BUSY = "busy"
    """Too much at once: later, or elsewhere."""
    BROKEN = "broken"
    """It fails by itself: again, or elsewhere."""
    WRONG = "wrong"
    """It fails, and would again: elsewhere."""
    KEY_REFUSED = "key_refused"
    """No call can succeed until the operator acts."""
    FORBIDDEN = "forbidden"
    """This call, or the key: the answer does not say which."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`message`: for the client if the call is INVALID, else for the operator; no word of the upstream in it
    that is not redacted."""

    meaning: Meaning
    message: str
    code: str | None = None


def refusal_of(status: int, raw: bytes, *, api_key_env: str | None, hidden: Iterable[str] = ()) -> Refusal:
    """Of a status that is not 200. `hidden`: words that no message may repeat (key, host, model)."""
    code, words = _error_of(raw)
    key = f"check {api_key_env}" if api_key_env else "it wants a key: set api_key_env"
    if status == HTTPStatus.UNAUTHORIZED:
        return Refusal(Meaning.KEY_REFUSED, f"the upstream refused the key (401): {key}")
    if status == HTTPStatus.PAYMENT_REQUIRED or code in _NO_CREDIT:
        return Refusal(Meaning.KEY_REFUSED, f"the upstream's account has no credit ({status}): {key}")
    if status == HTTPStatus.FORBIDDEN:
        return Refusal(Meaning.FORBIDDEN, f"the upstream forbids it (403): {key}")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Refusal(Meaning.BUSY, "the upstream's rate limit is reached (429)")
    if 300 <= status < 400:
        return Refusal(
            Meaning.WRONG,
            f"the upstream redirects ({status}): set upstream.base_url to where it answers itself",
        )
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        return Refusal(
            Meaning.WRONG,
            f"the upstream knows no such model or route ({status}): check upstream.model and upstream.routes",
        )
    if status == HTTPStatus.REQUEST_TIMEOUT or status >= 500:
        return Refusal(Meaning.BROKEN, f"the upstream answered with status {status}")
    if 400 <= status < 500:
        if code in _CONTEXT_CODES or _CONTEXT_WORDS.search(words):
            return Refusal(Meaning.INVALID, CONTEXT_EXCEEDED, "context_length_exceeded")
        return Refusal(Meaning.INVALID, redacted(words, hidden) or f"status {status}", "refused_by_upstream")
    return Refusal(Meaning.WRONG, f"the upstream answered with status {status}")


def redacted(words: str, hidden: Iterable[str] = ()) -> str:
    """One short line without the hidden words and what looks like an address, an account or a key."""
    line = " ".join("".join(each if each.isprintable() else " " for each in words).split())
    for each in hidden:
        line = line.replace(each, "…") if each else line
    return _SECRETS.sub("…", line)[:MAX_MESSAGE_CHARACTERS]


def _error_of(raw: bytes) -> tuple[str, str]:
    """Code and message, in the shapes that are in use; empty where they are not told."""
    try:
        answer: Any = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return "", ""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, dict):
        return "", ""
    error = answer.get("error", answer)
    if isinstance(error, str):
        return "", error
    if not isinstance(error, dict):
        return "", ""
    codes = (error.get("code"), error.get("type"))
    code = next((each for each in codes if isinstance(each, str) and each), "")
    words = error.get("message") or error.get("detail") or ""
    return code, words if isinstance(words, str) else ""
