"""What the router may know of a request, taken from its validated body: one function per dialect, all
through the same small view of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from cluster.types import RequestFeatures, RequestKind

BYTES_PER_TOKEN_ESTIMATE = 4
"""English text and JSON run at 3.5 to 4.5 bytes per token. The estimate decides where a call goes
first; the engine's own count is what is paid, and an engine that finds the prompt too long hands the
call upwards."""

TOKENS_PER_MESSAGE_ESTIMATE = 6
"""Role marks and separators of a chat template."""

Body = Mapping[str, Any]
Message = tuple[str, str]
"""Role and text. Roles are OpenAI's: system (and developer), user, assistant, tool."""


def chat_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/chat/completions` body."""
    return _of_conversation(
        body,
        header_tier,
        [(message["role"], _chat_text(message)) for message in body["messages"]],
        answer_format=body.get("response_format"),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        sequences=body.get("n") or 1,
    )


def completion_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/completions` body."""
    prompts = _list(body["prompt"])
    answer_format = body.get("response_format")
    has_schema = _is_json(answer_format)
    return _of_prompts(
        body,
        header_tier,
        prompts,
        max_tokens=body.get("max_tokens"),
        sequences=len(prompts) * (body.get("n") or 1),
        has_schema=has_schema,
        schema_digest=_digest(answer_format) if has_schema else "",
        stream=bool(body.get("stream")),
    )


def response_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/responses` body."""
    items = body["input"]
    messages = [("user", items)] if isinstance(items, str) else [_response_message(item) for item in items]
    if body.get("instructions"):
        messages.insert(0, ("system", body["instructions"]))
    return _of_conversation(
        body,
        header_tier,
        messages,
        answer_format=(body.get("text") or {}).get("format"),
        max_tokens=body.get("max_output_tokens"),
    )


def message_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/messages` body (Anthropic's)."""
    return _of_conversation(
        body,
        header_tier,
        _anthropic_messages(body),
        answer_format=(body.get("output_config") or {}).get("format"),
        max_tokens=body.get("max_tokens"),
    )


def embedding_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/embeddings` body."""
    return _of_prompts(body, header_tier, _list(body["input"]), kind=RequestKind.EMBED, max_tokens=0)


def count_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/v1/messages/count_tokens` body."""
    return _free(body, header_tier, RequestKind.COUNT, [text for _, text in _anthropic_messages(body)])


def tokenize_features(body: Body, header_tier: str | None = None) -> RequestFeatures:
    """Of a `/tokenize` or `/detokenize` body."""
    texts = [body["prompt"]] if body.get("prompt") else [text for _, text in _anthropic_messages(body)]
    return _free(body, header_tier, RequestKind.TOKENIZE, texts)


def _free(body: Body, header_tier: str | None, kind: RequestKind, texts: Iterable[str]) -> RequestFeatures:
    """The answer costs nothing and fits every context; the estimate is for the rules that go by it."""
    return RequestFeatures(
        model=body["model"],
        kind=kind,
        header_tier=header_tier,
        prompt_tokens_estimate=sum(map(_tokens, texts)),
        max_tokens=0,
    )


def _of_prompts(body: Body, header_tier: str | None, prompts: Sequence[str], **more: Any) -> RequestFeatures:
    """Prompts without roles, each by itself."""
    tokens = [_tokens(prompt) for prompt in prompts]
    return RequestFeatures(
        model=body["model"],
        task=_task(body),
        header_tier=header_tier,
        question=prompts[0],
        prompt_tokens_estimate=sum(tokens),
        longest_prompt_tokens=max(tokens),
        **more,
    )


def _of_conversation(
    body: Body,
    header_tier: str | None,
    messages: Sequence[Message],
    *,
    answer_format: Body | None,
    max_tokens: int | None,
    sequences: int = 1,
) -> RequestFeatures:
    tools = body.get("tools") or ()
    tool_tokens = sum([_tokens(str(tool)) for tool in tools])
    roles = [role for role, _ in messages]
    tokens = [TOKENS_PER_MESSAGE_ESTIMATE + _tokens(text) for _, text in messages]
    prompt_tokens = tool_tokens + sum(tokens)
    system_prompt = "\n".join([text for role, text in messages if role in SYSTEM_ROLES and text])
    question = messages[roles.index("user")][1] if "user" in roles else ""
    has_schema = _is_json(answer_format)
    return RequestFeatures(
        model=body["model"],
        task=_task(body),
        header_tier=header_tier,
        system_prompt=system_prompt,
        question=question,
        conversation=_conversation(system_prompt, question),
        prompt_tokens_estimate=prompt_tokens,
        longest_prompt_tokens=prompt_tokens,
        shared_tokens_estimate=tool_tokens + sum(tokens[: _shared_messages(roles)]),
        sequences=sequences,
        max_tokens=max_tokens,
        has_tools=bool(tools),
        has_schema=has_schema,
        schema_digest=_digest((answer_format if has_schema else None, tools)) if has_schema or tools else "",
        turns=roles.count("user") or 1,
        stream=bool(body.get("stream")),
    )


SYSTEM_ROLES = ("system", "developer")


def _conversation(system_prompt: str, question: str) -> str:
    """The beginning that no later call of the conversation changes: system prompt and first question."""
    return _digest_of_text(f"{system_prompt}\0{question}") if system_prompt or question else ""


def _shared_messages(roles: Sequence[str]) -> int:
    """How many of the messages a replica has seen that served the conversation before: all up to the last
    answer, which was generated on top of them. In the first call, the system prompt (other conversations
    have it too)."""
    if "assistant" in roles:
        return len(roles) - roles[::-1].index("assistant")
    for index, role in enumerate(roles):
        if role not in SYSTEM_ROLES:
            return index
    return len(roles)


def _tokens(text: str) -> int:
    size_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size_bytes // BYTES_PER_TOKEN_ESTIMATE)


def _task(body: Body) -> str | None:
    task = (body.get("metadata") or {}).get("task")
    return task if isinstance(task, str) else None


def _is_json(answer_format: Body | None) -> bool:
    return (answer_format or {}).get("type") in ("json_schema", "json_object")


def _digest(value: Any) -> str:
    return _digest_of_text(repr(value))


def _digest_of_text(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _chat_text(message: Body) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else _joined(content)
    calls = message.get("tool_calls")
    return text + "".join(str(call.get("function", "")) for call in calls) if calls else text


def _response_message(item: Body) -> Message:
    """An input item of the responses route: a message, a thought, a call of a tool or its result."""
    kind = item.get("type") or "message"
    if kind == "message":
        return item["role"], _joined(item["content"])
    if kind == "function_call_output":
        return "tool", _joined(item["output"])
    return "assistant", str(item.get("name") or "") + str(item.get("arguments") or "")


def _anthropic_messages(body: Body) -> list[Message]:
    """Also of bodies that have OpenAI's messages or none: what both have in common is enough to count."""
    messages = [
        (_block_role(message), _joined(message.get("content"))) for message in body.get("messages") or ()
    ]
    if body.get("system"):
        messages.insert(0, ("system", _joined(body["system"])))
    return messages


def _block_role(message: Body) -> str:
    """A message of a user that holds nothing but results of tools is no turn of theirs."""
    content = message.get("content")
    if isinstance(content, list) and all(block.get("type") == "tool_result" for block in content):
        return "tool"
    return str(message["role"])


def _joined(content: Any) -> str:
    return "\n".join(_content_texts(content))


def _content_texts(content: Any) -> Iterator[str]:
    """Of a string, or of parts that hold text, calls of tools or their results."""
    if isinstance(content, str):
        yield content
        return
    for part in content or ():
        if part.get("type") == "tool_use":
            yield f"{part['name']}{part['input']}"
        elif part.get("type") == "tool_result":
            yield from _content_texts(part.get("content"))
        elif isinstance(part.get("text"), str):
            yield part["text"]
