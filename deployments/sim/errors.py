"""Errors in OpenAI's shape, with the types, codes and words of vLLM 0.32.

There `code` is the HTTP status as a number, not a word such as `context_length_exceeded`: a caller that
looks for the word would never see it from a real engine, so it is not made up here either.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any


class EngineError(Exception):
    """A request that the engine answers with an error body."""

    def __init__(self, status: HTTPStatus, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.status.value,
            }
        }

    def anthropic_body(self) -> dict[str, Any]:
        return {"type": "error", "error": {"type": self.kind, "message": str(self)}}


def refused_by_http(status: HTTPStatus) -> EngineError:
    """Refused before the body was looked at: wrong token, unknown route, body too large."""
    return EngineError(status, status.phrase, kind=status.phrase)


def bad_value(message: str, param: str | None = None) -> EngineError:
    return EngineError(HTTPStatus.BAD_REQUEST, message, kind="BadRequestError", param=param)


def malformed_body(message: str, param: str | None) -> EngineError:
    kind = HTTPStatus.BAD_REQUEST.phrase
    return EngineError(HTTPStatus.BAD_REQUEST, message, kind=kind, param=param)


def unknown_model(model: str, base_model: str) -> EngineError:
    message = f"The model `{model}` does not exist. Valid aliases: {base_model}."
    return EngineError(HTTPStatus.NOT_FOUND, message, kind="NotFoundError", param="model")


def prompt_too_long(prompt_tokens: int, context_tokens: int) -> EngineError:
    return bad_value(
        f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
        f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. "
        "Please reduce the length of the input prompt.",
        param="input_tokens",
    )


def no_room_for_output(prompt_tokens: int, context_tokens: int) -> EngineError:
    return bad_value(
        f"This model's maximum context length is {context_tokens} tokens. However, your prompt contains "
        f"{prompt_tokens} input tokens, which leaves no room for output tokens (at least 1). "
        "Please reduce the length of the input prompt.",
        param="input_tokens",
    )


def too_many_output_tokens(param: str, max_tokens: int, context_tokens: int) -> EngineError:
    return bad_value(
        f"{param}={max_tokens} cannot be greater than max_model_len={context_tokens}. "
        "Please request fewer output tokens.",
        param=param,
    )


def out_of_order() -> EngineError:
    """What the `refuse` fault answers."""
    return EngineError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "Simulated engine failure.", kind="InternalServerError"
    )
