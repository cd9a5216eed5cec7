"""Responses of `POST /v1/completions`."""

from __future__ import annotations

import time
from typing import Any

from deployments.sim.answer import Answer
from deployments.sim.generation import Generation
from deployments.sim.shape import DONE, FINGERPRINT, NO_TOKEN_DETAILS, event, usage_of


class CompletionShape:
    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._head = {
            "id": generation.request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.model,
        }

    def opening(self) -> bytes:
        return b""  # no roles here

    def token(self, index: int, position: int) -> bytes:
        answer = self._generation.answers[index]
        last = position == len(answer.tokens) - 1
        choice = _choice(index, answer.tokens[position], answer if last else None)
        stamp = {"system_fingerprint": FINGERPRINT} if last and not self._generation.include_usage else {}
        return event({**self._head, "choices": [choice], **stamp})

    def closing(self) -> bytes:
        if not self._generation.include_usage:
            return DONE
        usage = usage_of(self._generation)
        return event({**self._head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}) + DONE

    def whole(self) -> dict[str, Any]:
        choices = [
            _choice(index, answer.text, answer) | {"prompt_logprobs": None, "routed_experts": None}
            for index, answer in enumerate(self._generation.answers)
        ]
        return {
            **self._head,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage_of(self._generation) | NO_TOKEN_DETAILS,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }


def _choice(index: int, text: str, ended: Answer | None) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": ended.finish_reason if ended else None,
        "stop_reason": ended.stop_reason if ended else None,
        "prompt_token_ids": None,
        "token_ids": None,
    }
