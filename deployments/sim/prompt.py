"""What the simulator keeps of a prompt: its bytes, to answer the same one alike, and its length."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.sim.tokens import count_tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    content: bytes
    tokens: int

    @classmethod
    def of_text(cls, text: str) -> Prompt:
        return cls(text.encode("utf-8", "surrogatepass"), count_tokens(text))

    @classmethod
    def of_token_ids(cls, token_ids: list[int]) -> Prompt:
        return cls(repr(token_ids).encode(), len(token_ids))
