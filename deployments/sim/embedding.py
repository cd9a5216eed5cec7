"""`POST /v1/embeddings`: unit vectors from a hash. The same text has the same vector, and that is all that
they say: texts that mean the same are no nearer to each other than others."""

from __future__ import annotations

import base64
import math
import random
import struct
import time
from typing import Any, Literal

from pydantic import BaseModel

from deployments.sim import errors
from deployments.sim.prompt import Prompt
from deployments.sim.shape import NO_TOKEN_DETAILS

DIMENSIONS = 384


class EmbeddingBody(BaseModel):
    model: str | None = None
    input: str | list[str]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def prompts(self) -> list[Prompt]:
        return [
            Prompt.of_text(text) for text in ([self.input] if isinstance(self.input, str) else self.input)
        ]


def check(body: EmbeddingBody, model: str, context_tokens: int) -> None:
    """Raises EngineError, with vLLM's words."""
    if body.dimensions is not None:
        raise errors.bad_value(
            f"Model '{model}' does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={body.dimensions})."
        )
    longest = max(prompt.tokens for prompt in body.prompts)
    if longest > context_tokens:
        raise errors.prompt_too_long(longest, context_tokens)


def answer(body: EmbeddingBody, model: str, answer_id: str) -> dict[str, Any]:
    tokens = sum(prompt.tokens for prompt in body.prompts)
    return {
        "id": answer_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [
            {"index": index, "object": "embedding", "embedding": _encoded(prompt, body.encoding_format)}
            for index, prompt in enumerate(body.prompts)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0} | NO_TOKEN_DETAILS,
    }


def _encoded(prompt: Prompt, encoding_format: str) -> list[float] | str:
    vector = _vector(prompt.content)
    if encoding_format == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()


def _vector(content: bytes) -> list[float]:
    drawn = random.Random(content)  # noqa: S311 (no secret)
    values = [drawn.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]
