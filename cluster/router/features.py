"""What the router may know of a request, taken from its validated body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.types import RequestFeatures

BYTES_PER_TOKEN_ESTIMATE = 4
"""English text and JSON run at 3.5 to 4.5 bytes per token. The estimate decides where a call goes
first; the engine's own count is what is paid, and an engine that finds the prompt too long hands the
call upwards."""

TOKENS_PER_MESSAGE_ESTIMATE = 6
"""Role marks and separators of a chat template."""


def features_of(body: Mapping[str, Any], *, header_tier: str | None = None) -> RequestFeatures:
    """`body` is a chat or completions body that passed the closed schema."""
    tools = body.get("tools") or []
    messages = body.get("messages") or []
    chat_tokens = sum(map(_tokens, _chat_texts(body))) + TOKENS_PER_MESSAGE_ESTIMATE * len(messages)
    prompts = [_tokens(prompt) for prompt in _prompts(body)] or [chat_tokens]
    return RequestFeatures(
        model=body["model"],
        task=_task(body),
        header_tier=header_tier,
        system_prompt="\n".join(
            text
            for message in messages
            if message.get("role") in ("system", "developer")
            for text in _content_texts(message.get("content"))
        ),
        prompt_tokens_estimate=sum(prompts),
        longest_prompt_tokens=max(prompts),
        sequences=len(prompts) * (body.get("n") or 1),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        has_tools=bool(tools),
        has_schema=(body.get("response_format") or {}).get("type") in ("json_schema", "json_object"),
        turns=sum(message.get("role") == "user" for message in messages) or 1,
        stream=bool(body.get("stream")),
    )


def _task(body: Mapping[str, Any]) -> str | None:
    task = (body.get("metadata") or {}).get("task")
    return task if isinstance(task, str) else None


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN_ESTIMATE)


def _prompts(body: Mapping[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    return [prompt] if isinstance(prompt, str) else list(prompt or [])


def _chat_texts(body: Mapping[str, Any]) -> Iterator[str]:
    """Every text that the chat template puts before the model, tool definitions included."""
    for message in body.get("messages") or []:
        yield from _content_texts(message.get("content"))
        for call in message.get("tool_calls") or []:
            yield str(call.get("function", ""))
    yield from (str(tool) for tool in body.get("tools") or [])


def _content_texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
