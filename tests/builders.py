"""Records with sensible values, so that a test names only what it is about."""

from __future__ import annotations

from typing import Any

from cluster.ledger import LedgerEntry
from cluster.types import (
    AdmitRequest,
    Candidate,
    Price,
    QueueTerms,
    ReplicaPhase,
    ReplicaState,
    SettleRequest,
)

SMALL_PRICE = Price(prompt_micro_usd_per_mtok=100_000, output_micro_usd_per_mtok=400_000)
LARGE_PRICE = Price(prompt_micro_usd_per_mtok=3_000_000, output_micro_usd_per_mtok=15_000_000)

LONG_LEASE_MS = 60_000


def candidate(tier: str = "small", **changes: Any) -> Candidate:
    """A candidate whose pool is named after its tier."""
    fields: dict[str, Any] = {
        "tier": tier,
        "pool": tier,
        "base_model": f"{tier}-base",
        "adapter": None,
        "price": LARGE_PRICE if tier == "large" else SMALL_PRICE,
        "max_tokens": 64,
        "estimated_cost_micro_usd": 100,
    }
    return Candidate(**(fields | changes))


def admit_request(request_id: str = "request", *tiers: str, **changes: Any) -> AdmitRequest:
    """Step 0 with one candidate per tier; `small` if none is named."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "step": 0,
        "candidates": tuple(candidate(tier) for tier in tiers or ("small",)),
        "tokens": 100,
        "lease_ttl_ms": LONG_LEASE_MS,
    }
    return AdmitRequest(**(fields | changes))


PATIENT = QueueTerms(
    longest_queue=1_000, longest_wait_ms=3_600_000, ticket_ttl_ms=3_600_000, ageing_ms=3_600_000
)
"""Waits as long as it takes, and does not age in a test."""


def settle_request(request_id: str = "request", cost: int = 0, **changes: Any) -> SettleRequest:
    """In both pools of these builders."""
    fields: dict[str, Any] = {
        "request_id": request_id,
        "pools": ("small", "large"),
        "tier": "small",
        "cost_micro_usd": cost,
    }
    return SettleRequest(**(fields | changes))


def ready_replica(replica_id: str = "a", pool: str = "small", **changes: Any) -> ReplicaState:
    fields: dict[str, Any] = {
        "replica_id": replica_id,
        "pool": pool,
        "phase": ReplicaPhase.READY,
        "address": f"http://{replica_id}",
        "epoch": 1,
        "max_concurrency": 2,
    }
    return ReplicaState(**(fields | changes))


NOON_MS = 1_795_348_800_000
"""2026-11-22 12:00:00 UTC."""


def ledger_entry(request_id: str = "request", **changes: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "kind": "settled",
        "tenant": "acme",
        "key_id": "k1",
        "tier": "small",
        "pool": "specialist",
        "model": "tiny",
        "prompt_tokens": 10,
        "output_tokens": 5,
        "estimated": False,
        "cost_micro_usd": 7,
        "saved_micro_usd": 3,
        "engine_ms": 40,
        "admitted_at_ms": NOON_MS,
        "settled_at_ms": NOON_MS + 50,
    }
    return LedgerEntry(**(fields | changes))
