"""`POST /tokenize` and `/detokenize`: a token is up to 4 bytes of UTF-8, its id those bytes as a number."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from deployments.sim.body import texts
from deployments.sim.tokens import BYTES_PER_TOKEN


class TokenizeBody(BaseModel):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] = []
    return_token_strs: bool | None = False

    @property
    def text(self) -> str:
        if self.prompt is not None:
            return self.prompt
        return "\n".join(text for message in self.messages for text in texts(message.get("content")))


class DetokenizeBody(BaseModel):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**32)]]


def tokenized(body: TokenizeBody, context_tokens: int) -> dict[str, Any]:
    content = body.text.encode("utf-8", "surrogatepass")
    pieces = [content[at : at + BYTES_PER_TOKEN] for at in range(0, len(content), BYTES_PER_TOKEN)]
    strings = [piece.decode("utf-8", "replace") for piece in pieces] if body.return_token_strs else None
    return {
        "count": len(pieces),
        "max_model_len": context_tokens,
        "tokens": [int.from_bytes(piece, "big") for piece in pieces],
        "token_strs": strings,
    }


def detokenized(body: DetokenizeBody) -> dict[str, Any]:
    pieces = [token.to_bytes(BYTES_PER_TOKEN, "big").lstrip(b"\0") for token in body.tokens]
    return {"prompt": b"".join(pieces).decode("utf-8", "replace")}
