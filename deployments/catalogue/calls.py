"""The calls that a served model must answer: a chat, the same as a stream, and through an adapter."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from cluster.catalogue import Check
from deployments.catalogue.single_pool import Running

QUESTION = "What is the capital of France? Answer in one word."
MAX_TOKENS = 8
TIMEOUT_S = 120.0
CHANGED = 1e-3
"""Of a log probability: far above float noise, far below what a random adapter does."""

Scored = list[tuple[str, float]]
"""Tokens with their log probabilities."""


def try_chat(running: Running, model: str) -> tuple[Check, Scored]:
    """The answer's text, and its tokens to compare an adapter with."""
    try:
        answer = json.loads(_post(running, model))
        choice = answer["choices"][0]
        tokens = answer["usage"]["completion_tokens"]
        scored = [
            (each["token"], each["logprob"]) for each in (choice["logprobs"] or {}).get("content") or ()
        ]
    except _FAILURES as error:
        return Check(ok=False, detail=_sentence(error)), []
    text = choice["message"]["content"] or choice["message"].get("reasoning") or ""
    ok = tokens > 0 and choice["finish_reason"] in ("stop", "length")
    return Check(ok=ok, detail=f"{tokens} tokens: {text!r}"), scored


def try_stream(running: Running, model: str) -> Check:
    """Whether pieces come, a reason to end among them, and the end of the stream."""
    try:
        lines = _post(running, model, stream=True).decode().splitlines()
        sent = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        choices = [
            choice for each in sent if each != "[DONE]" for choice in json.loads(each).get("choices", ())
        ]
    except _FAILURES as error:
        return Check(ok=False, detail=_sentence(error))
    ended = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    ok = sent[-1:] == ["[DONE]"] and len(ended) == 1 and len(choices) > 1
    return Check(ok=ok, detail=f"{len(choices)} chunks, {', '.join(ended) or 'no end'}")


def try_adapter(running: Running, adapter: str, base: Scored) -> Check:
    """Whether the adapter answers, and not what its base does."""
    check, scored = try_chat(running, adapter)
    if not check.ok:
        return check
    if not base or not scored:
        return Check(ok=False, detail="no log probabilities to compare")
    changed = scored[0][0] != base[0][0] or abs(scored[0][1] - base[0][1]) > CHANGED
    return Check(ok=changed, detail="changes the first token's probability" if changed else "changes nothing")


def _post(running: Running, model: str, *, stream: bool = False) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    body |= {"stream": True} if stream else {"logprobs": True}
    request = urllib.request.Request(  # noqa: S310 (our own endpoint)
        f"{running.url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {running.key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        answered: bytes = response.read()
        return answered


_FAILURES = (OSError, ValueError, KeyError, IndexError)


def _sentence(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        try:
            message = json.load(error)["error"]["message"]
        except (ValueError, KeyError):
            message = error.reason
        return f"{error.code}: {message}"
    return f"{type(error).__name__}: {error}"
