"""Request bodies: what the simulator reads of them. Other fields are let through, as vLLM does."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.sim.errors import malformed_body
from deployments.sim.prompt import Prompt

TokenId = Annotated[int, Field(ge=0)]
AnyBody = TypeVar("AnyBody", bound=BaseModel)


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class JsonSchema(BaseModel):
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(BaseModel):
    name: str
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedToolChoice(BaseModel):
    function: NamedFunction


class GenerationBody(BaseModel):
    """The fields that both routes share."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatBody(GenerationBody):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None

    @property
    def called(self) -> set[str]:
        """Tools that the conversation has called so far."""
        return {
            call["function"]["name"]
            for message in self.messages
            for call in message.get("tool_calls") or []
            if isinstance(call, dict) and isinstance(call.get("function"), dict)
        }

    @property
    def text(self) -> str:
        """The texts of all messages, one per line. No chat template, so nothing comes on top of them."""
        return "\n".join(text for message in self.messages for text in texts(message.get("content")))


class CompletionBody(GenerationBody):
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    # vLLM's default, on this route only.
    max_tokens: int | None = 16

    @property
    def prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [Prompt.of_text(self.prompt)]
        token_ids = [each for each in self.prompt if isinstance(each, int)]
        if token_ids:
            return [Prompt.of_token_ids(token_ids)]
        return [
            Prompt.of_text(each) if isinstance(each, str) else Prompt.of_token_ids(each)
            for each in self.prompt
            if not isinstance(each, int)
        ]


def parse(kind: type[AnyBody], raw: bytes) -> AnyBody:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise as_vllm(error) from None


def as_vllm(error: ValidationError) -> Exception:
    """First finding only, without the offending value: it may be huge, and it belongs to a tenant."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(["body", *(str(step) for step in first["loc"])])
    count = error.error_count()
    label = "1 validation error" if count == 1 else f"{count} validation errors, the first"
    return malformed_body(f"{label}: {param}: {first['msg']}", param)


def texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
    return []
