"""Logged decisions with sensible values, so that a test names only what it is about."""

from __future__ import annotations

from typing import Any

from cluster.decision_log import DecisionRow, LoggedDecision, logged_decision, row_of
from tests.builders import NOON_MS


def decision_fields(request_id: str = "request", **changes: Any) -> dict[str, Any]:
    """As a gateway writes them into its journal."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "tenant": "acme",
        "key_id": "k1",
        "at_ms": NOON_MS,
        "policy": "learned",
        "reason": "learned:small",
        "target": "small",
        "probability": 0.9,
        "features": {"prompt_tokens": 12, "max_tokens": None, "has_tools": False, "task": "modèle"},
        "considered": [
            {
                "target": "small",
                "probability": 0.9,
                "p_success": 0.8,
                "cost_micro_usd": 7,
                "expected_micro_usd": 9,
            },
            {"target": "large", "probability": 0.1},
        ],
        "steps": [{"tier": "small", "model": "tiny", "pool": "p", "replica": "a", "cost_micro_usd": 5}],
        "large_micro_usd": 70,
    }
    return fields | changes


def logged(request_id: str = "request", **changes: Any) -> LoggedDecision:
    return logged_decision(decision_fields(request_id, **changes))


def decision_row(request_id: str = "request", **changes: Any) -> DecisionRow:
    return row_of(logged(request_id, **changes))
