"""What the decision log keeps of a call: no text of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.types import Decision, Grant, RequestFeatures, Usage


@dataclass(frozen=True, slots=True)
class SpentDraft:
    """A draft that was refused, or never came; `why` is the reason."""

    grant: Grant
    usage: Usage
    why: str

    @property
    def cost_micro_usd(self) -> int:
        return self.grant.candidate.price.cost_micro_usd(self.usage.prompt_tokens, self.usage.output_tokens)

    def step(self) -> dict[str, Any]:
        return step_record(self.grant, self.cost_micro_usd, "refused", self.why)


def step_record(
    grant: Grant, cost_micro_usd: int, verdict: str | None = None, why: str = ""
) -> dict[str, Any]:
    """One run on an engine."""
    candidate = grant.candidate
    return {
        "tier": candidate.tier,
        "pool": candidate.pool,
        "model": candidate.model,
        "replica": grant.replica_id,
        "verdict": verdict,
        "why": why,
        "cost_micro_usd": cost_micro_usd,
    }


def decision_record(
    entry: Mapping[str, Any],
    decision: Decision,
    features: RequestFeatures,
    steps: Sequence[dict[str, Any]],
    large_micro_usd: int,
) -> dict[str, Any]:
    """`entry` is that of the ledger, `large_micro_usd` what the answer costs on the largest tier."""
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
        "steps": steps,
        "large_micro_usd": large_micro_usd,
    }
