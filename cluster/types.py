"""Frozen records that cross seams: router, scheduler, gateway, engines, simulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

TOKENS_PER_PRICE_UNIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """Integer micro-USD per million tokens, so that no price rounds to zero (SCHEDULER.md 1)."""

    prompt_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int

    def cost_micro_usd(self, prompt_tokens: int, output_tokens: int) -> int:
        """Cost of one call in micro-USD, rounded up once."""
        product = (
            prompt_tokens * self.prompt_micro_usd_per_mtok + output_tokens * self.output_micro_usd_per_mtok
        )
        return -(-product // TOKENS_PER_PRICE_UNIT)


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What the router may look at. Made from the body by `cluster.router.features`.

    One call may bring several prompts and ask for several answers to each (`n`): `sequences` counts
    the answers, `prompt_tokens_estimate` sums the prompts, `longest_prompt_tokens` must fit a context.
    """

    model: str
    task: str | None = None
    header_tier: str | None = None
    system_prompt: str = ""
    prompt_tokens_estimate: int = 0
    longest_prompt_tokens: int = 0
    sequences: int = 1
    max_tokens: int | None = None
    has_tools: bool = False
    has_schema: bool = False
    turns: int = 1
    stream: bool = False

    def tokens_at_most(self, max_tokens: int) -> int:
        """Prompt and output tokens of the whole call when every answer takes `max_tokens`."""
        return self.prompt_tokens_estimate + max_tokens * self.sequences


@dataclass(frozen=True, slots=True)
class Candidate:
    """One option of a decision. `p_success` is None where the policy has no estimate of it."""

    tier: str
    pool: str
    base_model: str
    adapter: str | None
    price: Price
    max_tokens: int
    estimated_cost_micro_usd: int
    context_tokens: int = 0
    p_success: float | None = None

    @property
    def model(self) -> str:
        """The name that a client would use for it: adapter before base model."""
        return self.adapter or self.base_model


@dataclass(frozen=True, slots=True)
class Decision:
    """The router's answer: candidates in the order in which they may run, and why."""

    candidates: tuple[Candidate, ...]
    reason: str
    policy: str
    large_price: Price

    @property
    def first(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `estimated` when the engine could not report them (lost or cancelled)."""

    prompt_tokens: int
    output_tokens: int
    estimated: bool = False


class ReplicaPhase(StrEnum):
    """Life of a replica as it stands in the replica directory."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One entry of the replica directory, written by the replica itself with every heartbeat."""

    replica_id: str
    pool: str
    phase: ReplicaPhase
    address: str = ""
    node: str = ""
    epoch: int = 0
    max_concurrency: int = 0
    detail: str = ""
    kernels: str = "none"
    simulated: bool = False
    adapters: tuple[tuple[str, str], ...] = ()
    load_requests: int = 0
    load_tokens: int = 0
    rss_bytes: int = 0
    pid: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.replica_id,
            "state": self.phase.value,
            "node": self.node,
            "address": self.address,
            "detail": self.detail,
            "kernels": self.kernels,
            "simulated": self.simulated,
            "adapters": [{"id": name, "state": state} for name, state in self.adapters],
            "outstanding_requests": self.load_requests,
            "outstanding_tokens": self.load_tokens,
            "max_concurrency": self.max_concurrency,
            "rss_bytes": self.rss_bytes,
            "pid": self.pid,
        }


@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """What `Scheduler.admit` needs. `step` counts the attempts of one request from 0: a retry or an
    escalation is the same request with the next step. `tokens` is the estimate of prompt plus output."""

    request_id: str
    step: int
    candidates: tuple[Candidate, ...]
    tokens: int
    large_price: Price
    lease_ttl_ms: int
    exclude_replicas: tuple[str, ...] = ()
    spill: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """A slot on a replica. `fence` makes a late holder harmless (SCHEDULER.md 6)."""

    request_id: str
    step: int
    candidate: Candidate
    replica_id: str
    address: str
    fence: int
    lease_expiry_ms: int


class RefusalReason(StrEnum):
    CAPACITY = "capacity"
    NO_REPLICA = "no_replica"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Refusal:
    """No slot. `capacity`: replicas live, all full. `no_replica`: none is alive. `ended`: this request
    was settled already, or a later step of it runs."""

    reason: RefusalReason
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a call cost, in micro-USD at the prices frozen at admission. `saved` may be negative.
    `first` is False when the call had been settled before: the stored result is returned."""

    cost_micro_usd: int
    saved_micro_usd: int
    first: bool


@dataclass(frozen=True, slots=True)
class Spend:
    """Sums of one UTC day."""

    spent_micro_usd: int = 0
    saved_micro_usd: int = 0
    calls: int = 0
    calls_by_tier: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Live counts of one pool, from the scheduler's own books."""

    replicas: tuple[ReplicaState, ...] = ()
    leases: int = 0


@dataclass(frozen=True, slots=True)
class NodeState:
    """One Ray node, as placement sees it."""

    node_id: str
    address: str
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
