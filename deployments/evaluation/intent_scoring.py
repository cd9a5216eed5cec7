"""Whether an answer names the intent."""

from __future__ import annotations

import json


def is_right_intent(expected: str, content: str) -> bool:
    """`content` is the whole answer: {"intent": NAME}, and nothing else."""
    try:
        answer = json.loads(content)
    except ValueError:
        return False
    return bool(answer == {"intent": expected})
