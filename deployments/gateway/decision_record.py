"""What the decision log keeps of a call: no text of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.types import Decision, Grant, RequestFeatures, Usage


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft that was refused, or never came; `why` is the reason."""

    grant: Grant
    usage: Usage
    why: str

    @property
    def cost_micro_usd(self) -> int:
        return self.grant.candidate.price.cost_micro_usd(self.usage.prompt_tokens, self.usage.output_tokens)

    def step(self) -> dict[str, Any]:
        candidate = self.grant.candidate
        return {
            "tier": candidate.tier,
            "pool": candidate.pool,
            "model": candidate.model,
            "replica": self.grant.replica_id,
            "verdict": "refused",
            "why": self.why,
            "cost_micro_usd": self.cost_micro_usd,
        }


def decision_record(
    entry: Mapping[str, Any], decision: Decision, features: RequestFeatures
) -> dict[str, Any]:
    """`entry` is that of the ledger; `steps` and `large_micro_usd` are the caller's to add."""
    return {
        "request_id": entry["request_id"],
        "tenant": entry["tenant"],
        "key_id": entry["key_id"],
        "at_ms": entry["admitted_at_ms"],
        "policy": decision.policy,
        "reason": decision.reason,
        "probability": decision.probability,
        "target": decision.action,
        "features": {
            "prompt_tokens": features.prompt_tokens_estimate,
            "max_tokens": features.max_tokens,
            "sequences": features.sequences,
            "has_tools": features.has_tools,
            "has_schema": features.has_schema,
            "turns": features.turns,
            "stream": features.stream,
            "task": features.task,
            "conversation": features.conversation,
        },
        "considered": [
            {
                "target": each.action,
                "p_success": each.p_success,
                "cost_micro_usd": each.cost_micro_usd,
                "expected_micro_usd": each.expected_micro_usd,
                "probability": each.probability,
            }
            for each in decision.considered
        ],
    }
