"""Responses of `POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from deployments.sim.answer import Answer
from deployments.sim.generation import Generation
from deployments.sim.shape import DONE, FINGERPRINT, NO_TOKEN_DETAILS, event, usage_of
from deployments.sim.tokens import WORDS


class ChatShape:
    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._head = {
            "id": generation.request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": generation.model,
        }
        opened = orjson.dumps(self._head)[:-1]
        self._before = [
            b'data: %s,"choices":[{"index":%d,"delta":{"content":' % (opened, index)
            for index in range(len(generation.answers))
        ]

    def opening(self) -> bytes:
        return b"".join(
            event(
                {
                    **self._head,
                    "choices": [
                        {
                            "index": index,
                            "delta": {"role": "assistant", "content": ""},
                            "logprobs": None,
                            "finish_reason": None,
                        }
                    ],
                    "prompt_token_ids": None,
                    "prompt_text": None,
                }
            )
            for index in range(len(self._generation.answers))
        )

    def token(self, index: int, position: int) -> bytes:
        answer = self._generation.answers[index]
        last = position == len(answer.tokens) - 1
        if answer.tool is None and not last and self._generation.top_logprobs is None:
            text = orjson.dumps(answer.tokens[position])
            return (
                self._before[index] + text + b'},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
            )
        choice: dict[str, Any] = {
            "index": index,
            "delta": self._delta(answer, index, position),
            "logprobs": self._logprobs(answer.tokens[position : position + 1]),
            "finish_reason": None,
        }
        if not last:
            return event({**self._head, "choices": [choice | {"token_ids": None}]})
        choice |= {
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
            "token_ids": None,
        }
        # With usage asked for, the usage chunk is the last one and carries the fingerprint instead.
        stamp = {} if self._generation.include_usage else {"system_fingerprint": FINGERPRINT}
        return event({**self._head, "choices": [choice], **stamp})

    def closing(self) -> bytes:
        if not self._generation.include_usage:
            return DONE
        usage = usage_of(self._generation)
        return event({**self._head, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}) + DONE

    def whole(self) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": self._message(answer, index),
                    "logprobs": self._logprobs(answer.tokens),
                    "finish_reason": answer.finish_reason,
                    "stop_reason": answer.stop_reason,
                    "token_ids": None,
                    "routed_experts": None,
                }
                for index, answer in enumerate(self._generation.answers)
            ],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage_of(self._generation) | NO_TOKEN_DETAILS,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "prompt_text": None,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }

    def _message(self, answer: Answer, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text if answer.tool is None else "",
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        if answer.tool is not None:
            call = {"name": answer.tool, "arguments": answer.text}
            message["tool_calls"] = [{"id": self._call_id(index), "type": "function", "function": call}]
        return message

    def _delta(self, answer: Answer, index: int, position: int) -> dict[str, Any]:
        text = answer.tokens[position]
        if answer.tool is None:
            return {"content": text}
        if position == 0:
            function = {"name": answer.tool, "arguments": text}
            call = {"id": self._call_id(index), "type": "function", "index": 0, "function": function}
            return {"tool_calls": [call]}
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]} if text else {}

    def _logprobs(self, tokens: Sequence[str]) -> dict[str, Any] | None:
        """Made up, like the tokens: the one that came is the likeliest."""
        count = self._generation.top_logprobs
        if count is None:
            return None
        content = []
        for token in tokens:
            ranked = [token, *(word for word in WORDS if word != token)]
            top = [_logprob(each, rank) for rank, each in enumerate(ranked[:count])]
            content.append(_logprob(token, 0) | {"top_logprobs": top})
        return {"content": content}

    def _call_id(self, index: int) -> str:
        return f"chatcmpl-tool-{self._generation.request_id.removeprefix('chatcmpl-')}-{index}"


def _logprob(token: str, rank: int) -> dict[str, Any]:
    return {"token": token, "logprob": -0.25 - rank, "bytes": list(token.encode())}
