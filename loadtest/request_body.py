"""The request that every system gets: about 2 kB, in one mode the same bytes but for the model name.

The system prompt names the mode, so that a gateway that routes by content can tell the modes apart.
"""

from __future__ import annotations

import json

from loadtest.systems import Mode, System

PATH = "/v1/chat/completions"
SYSTEM_PROMPT = "This is measured: {mode}. " + "You are a support assistant. " * 24
QUESTION = "Please extract the order number from this message. " * 24


def request_bytes(system: System, mode: Mode, max_tokens: int) -> bytes:
    body = {
        "model": system.model_for(mode),
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT.format(mode=mode.value)},
            {"role": "user", "content": QUESTION},
        ],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    if mode is not Mode.UNARY:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return system.endpoint(mode).request(PATH, json.dumps(body).encode())
