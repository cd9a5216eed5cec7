"""Frozen records that cross seams: router, scheduler, gateway, engines, simulator."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cluster.record import record

TOKENS_PER_PRICE_UNIT = 1_000_000


@record
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


class RequestKind(StrEnum):
    """What a call asks of a pool. COUNT (how many tokens a conversation has) needs the chat template of a
    pool that generates, TOKENIZE any tokenizer; no model runs for them, and nothing is paid."""

    GENERATE = "generate"
    EMBED = "embed"
    COUNT = "count"
    TOKENIZE = "tokenize"

    @property
    def is_free(self) -> bool:
        return self in _FREE


_FREE = (RequestKind.COUNT, RequestKind.TOKENIZE)


@record
@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What the router may look at. Made from the body by `cluster.router.features`.

    One call may bring several prompts and ask for several answers to each (`n`): `sequences` counts
    the answers, `prompt_tokens_estimate` sums the prompts, `longest_prompt_tokens` must fit a context.
    `conversation` names what all calls of a conversation share ("" where nothing can be shared), and
    `shared_tokens_estimate` is how much of this prompt the call before has left in a prefix cache.
    `schema_digest` names what the engine compiles to a grammar for this call; "" if nothing. `question`
    is the text of the first user message: later turns of a conversation do not change it.
    """

    model: str
    kind: RequestKind = RequestKind.GENERATE
    task: str | None = None
    header_tier: str | None = None
    system_prompt: str = ""
    question: str = ""
    conversation: str = ""
    prompt_tokens_estimate: int = 0
    longest_prompt_tokens: int = 0
    shared_tokens_estimate: int = 0
    sequences: int = 1
    max_tokens: int | None = None
    has_tools: bool = False
    has_schema: bool = False
    schema_digest: str = ""
    turns: int = 1
    stream: bool = False

    @property
    def text(self) -> str:
        """What policies that read text go by. The same in all calls of a conversation, so they do not send it
        from one tier to another and back."""
        return f"{self.system_prompt}\n{self.question}" if self.system_prompt else self.question

    @property
    def prompt_tokens_at_most(self) -> int:
        """For holds. A token of a byte-level vocabulary is at least one byte, and the estimate counts one
        token for four; the rest is what chat templates add by themselves (default system prompts, tool
        rules)."""
        return 4 * self.prompt_tokens_estimate + (1024 if self.has_tools else 256)

    def tokens_at_most(self, max_tokens: int) -> int:
        """Prompt and output tokens of the whole call when every answer takes `max_tokens`."""
        if self.kind.is_free:
            return 0
        return self.prompt_tokens_estimate + max_tokens * self.sequences


@record
@dataclass(frozen=True, slots=True)
class Candidate:
    """One option of a decision. `p_success` is None where the policy has no estimate of it.
    `worst_case_micro_usd` bounds what the call can cost here: it is what a budget holds.
    `expected_micro_usd` is the cost per successful answer: with what follows when this one fails."""

    tier: str
    pool: str
    base_model: str
    adapter: str | None
    price: Price
    max_tokens: int
    estimated_cost_micro_usd: int
    worst_case_micro_usd: int = 0
    context_tokens: int = 0
    p_success: float | None = None
    expected_micro_usd: int | None = None

    def runs_like_one_of(self, others: tuple[Candidate, ...]) -> bool:
        """On the same pool with the same adapter."""
        return any((each.pool, each.adapter) == (self.pool, self.adapter) for each in others)

    @property
    def price_of_success_micro_usd(self) -> int:
        """What the scheduler compares: the call's cost alone where nothing is known of its success."""
        expected = self.expected_micro_usd
        return self.estimated_cost_micro_usd if expected is None else expected

    @property
    def model(self) -> str:
        """The name that a client would use for it: adapter before base model."""
        return self.adapter or self.base_model


@record
@dataclass(frozen=True, slots=True)
class Considered:
    """One action that a policy weighed: a target, or `DRAFT>TARGET` where a draft is verified first.
    `probability` is that of choosing it; over all considered actions it sums to 1."""

    action: str
    probability: float
    p_success: float | None = None
    cost_micro_usd: int | None = None
    expected_micro_usd: int | None = None


@record
@dataclass(frozen=True, slots=True)
class Cascade:
    """The candidates of the decision that holds this give a draft, `drafts` times in the same call, with the
    logprobs of its tokens if `logprobs`. One that the verifiers of the policy `policy` refuse goes to
    `then`."""

    policy: str
    then: Decision
    drafts: int = 1
    logprobs: bool = False


@record
@dataclass(frozen=True, slots=True)
class Decision:
    """The router's answer: candidates in the order in which they may run, and why. `action` names the choice
    among the `considered` ones, `probability` is that of the choice."""

    candidates: tuple[Candidate, ...]
    reason: str
    policy: str
    large_price: Price
    cascade: Cascade | None = None
    action: str = ""
    probability: float = 1.0
    considered: tuple[Considered, ...] = ()

    @property
    def first(self) -> Candidate:
        return self.candidates[0]

    @property
    def hold_micro_usd(self) -> int:
        """The candidates are alternatives: one answer is paid, whichever of them gives it. All drafts of a
        cascade are paid, and what follows when they are refused."""
        one = max([candidate.worst_case_micro_usd for candidate in self.candidates])
        cascade = self.cascade
        return one if cascade is None else one * cascade.drafts + cascade.then.hold_micro_usd


class PriorityClass(StrEnum):
    """Strict classes of the queue, most urgent first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


@record
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


@record
@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One entry of the replica directory, written by the replica itself with every heartbeat. `adapters`: id
    and state (loaded, host, loading, disk, failed); `adapter_problems`: id and sentence; `adapter_uses`: id,
    calls that ended and their time in ms, since the replica started."""

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
    adapter_problems: tuple[tuple[str, str], ...] = ()
    adapter_uses: tuple[tuple[str, int, int], ...] = ()
    max_outstanding_tokens: int = 0
    load_requests: int = 0
    load_tokens: int = 0
    rss_bytes: int = 0
    pid: int = 0

    @property
    def held_adapters(self) -> list[str]:
        """Those for which a call should come here: it waits for no load, or for one that is under way."""
        return [name for name, state in self.adapters if state in _HERE]

    @property
    def adapters_loading(self) -> int:
        return sum([state == "loading" for _, state in self.adapters])

    def to_json(self) -> dict[str, Any]:
        problems = dict(self.adapter_problems)
        return {
            "id": self.replica_id,
            "state": self.phase.value,
            "node": self.node,
            "address": self.address,
            "detail": self.detail,
            "kernels": self.kernels,
            "simulated": self.simulated,
            "adapters": [
                {"id": name, "state": state, "detail": problems.get(name, "")}
                for name, state in self.adapters
            ],
            "outstanding_requests": self.load_requests,
            "outstanding_tokens": self.load_tokens,
            "max_concurrency": self.max_concurrency,
            "max_outstanding_tokens": self.max_outstanding_tokens,
            "rss_bytes": self.rss_bytes,
            "pid": self.pid,
        }


_HERE = ("loaded", "host", "loading")


@record
@dataclass(frozen=True, slots=True)
class RateCharge:
    """What a call takes from one rate bucket, in GCRA's unit: us of the bucket's steady rate."""

    bucket: str
    increment_us: int
    burst_us: int


@record
@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One budget in one window. `ttl_ms`: how long Redis keeps the window after its first call; 0: for
    ever."""

    owner: str
    window: str
    limit_micro_usd: int
    ttl_ms: int = 0

    @property
    def name(self) -> str:
        return f"{self.owner} {self.window}"

    @property
    def owner_and_window(self) -> tuple[str, str]:
        """What names its sum, in Redis and in the ledger."""
        return self.owner, self.window


@record
@dataclass(frozen=True, slots=True)
class Placement:
    """What makes one replica dearer than another for a candidate, in nano-USD: the call itself, each token
    that is outstanding there, loading the adapter where it is not resident; and `credit_nano_usd` off on the
    replica that probably has the prompt's prefix cached. `service_us` and `slots` (per replica) are for the
    predicted wait of a pool that has not ended a call yet. `wake_ms`: how long a pool that sleeps takes to
    its first replica, so that the call may wait for it; 0: a pool without a replica is passed over."""

    base_nano_usd: int = 0
    per_token_nano_usd: int = 1
    cold_nano_usd: int = 0
    affine_replica: str = ""
    credit_nano_usd: int = 0
    service_us: int = 1_000_000
    slots: int = 1
    wake_ms: int = 0


_NEUTRAL = Placement()

TICKET_TTL_MS = 5_000
"""How long a place in the queue outlives the last sign of life of its gateway."""


@record
@dataclass(frozen=True, slots=True)
class QueueTerms:
    """How a call may wait. `longest_queue` counts its class and the more urgent ones. Times in ms. A waiter
    rises by one class for every `ageing_ms`."""

    longest_queue: int
    longest_wait_ms: int
    ticket_ttl_ms: int = TICKET_TTL_MS
    ageing_ms: int = 10_000


@record
@dataclass(frozen=True, slots=True)
class AdmitRequest:
    """What `Scheduler.admit` needs. `step` counts the attempts of one request from 0: a retry or an
    escalation is the same request with the next step, under the money and the rates of step 0. `tokens` is
    the estimate of prompt plus output. `placements`: one per candidate, or none. `queue` None: refuse rather
    than wait. `note` comes back from `reap`. `checked`: refuse while budgets are being rebuilt; with
    `epoch_id` also in another epoch than the one in which the caller has seen to its budgets."""

    request_id: str
    step: int
    candidates: tuple[Candidate, ...]
    tokens: int
    lease_ttl_ms: int
    gateway: str = ""
    tenant: str = ""
    weight: int = 1
    priority: PriorityClass = PriorityClass.NORMAL
    deadline_ms: int = 600_000
    exclude_replicas: tuple[str, ...] = ()
    spill: bool = False
    placements: tuple[Placement, ...] = ()
    rates: tuple[RateCharge, ...] = ()
    budgets: tuple[BudgetLine, ...] = ()
    hold_micro_usd: int = 0
    checked: bool = False
    epoch_id: str = ""
    queue: QueueTerms | None = None
    note: str = ""

    @property
    def placement_of_each(self) -> tuple[Placement, ...]:
        """In the order of the candidates; neutral ones where none are given."""
        return self.placements or (_NEUTRAL,) * len(self.candidates)

    @property
    def budget_names(self) -> tuple[tuple[str, str], ...]:
        """Owner and window of each budget."""
        return tuple([(line.owner, line.window) for line in self.budgets])


LOCAL_FENCE = 0
"""Of a grant that a gateway gave alone, while the store did not answer. Real fences are larger."""


@record
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


@record
@dataclass(frozen=True, slots=True)
class Waiting:
    """A place in the queue of the candidate's pool. `position` 0 is the next to be served;
    `predicted_wait_ms` is 0 where the place was asked for again."""

    request_id: str
    step: int
    candidate: Candidate
    position: int
    predicted_wait_ms: int


class RefusalReason(StrEnum):
    """Why there is no slot. `capacity`: all replicas are full and this call may not wait. `no_replica`: none
    is alive. `queue_full`, `wait`: too many wait, or the wait would be too long. `rate`: a rate bucket is
    empty; `too_large`: the call is larger than the bucket can ever hold. `budget`: the hold does not fit.
    `rebuilding`: budgets are being rebuilt after data loss. `unchecked`: the store is away, and this call's
    budget cannot be checked. `ended`: this request is over, or a later step
    of it runs."""

    CAPACITY = "capacity"
    NO_REPLICA = "no_replica"
    QUEUE_FULL = "queue_full"
    WAIT = "wait"
    RATE = "rate"
    TOO_LARGE = "too_large"
    BUDGET = "budget"
    REBUILDING = "rebuilding"
    UNCHECKED = "unchecked"
    ENDED = "ended"


@record
@dataclass(frozen=True, slots=True)
class Refusal:
    """No slot, nothing was taken. `retry_after_ms` 0: trying again does not help. `detail` names the rate
    bucket or the budget."""

    reason: RefusalReason
    retry_after_ms: int
    detail: str = ""


@record
@dataclass(frozen=True, slots=True)
class SettleRequest:
    """The end of a call. `pools` are those in which it may have a lease or a place, the likeliest first.
    `rates` says what goes back to each bucket (us; negative: more was used). `cancelled`: nothing ran, so it
    counts as no call."""

    request_id: str
    pools: tuple[str, ...]
    tier: str = ""
    cost_micro_usd: int = 0
    saved_micro_usd: int = 0
    rates: tuple[tuple[str, int], ...] = ()
    budgets: tuple[tuple[str, str], ...] = ()
    cancelled: bool = False


@record
@dataclass(frozen=True, slots=True)
class Settlement:
    """What was charged, in micro-USD: never more than the hold of a call with a budget. `saved` may be
    negative. `first` is False when the call had ended before: the stored result is returned."""

    cost_micro_usd: int
    saved_micro_usd: int
    first: bool


@record
@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease that its gateway renews. `dispatched`: the call was sent to an engine."""

    grant: Grant
    dispatched: bool = True


@record
@dataclass(frozen=True, slots=True)
class Renewal:
    """`kept` has one entry per lease. `epoch` is "" after data loss. `gateways` counts the living ones.
    `server` names the process that answered: another one may lack the last seconds of the one before."""

    kept: tuple[bool, ...]
    epoch: str
    gateways: int
    server: str = field(default="", compare=False)


@record
@dataclass(frozen=True, slots=True)
class Lost:
    """A request that `reap` ended, because its gateway no longer did; `note` is that of its admission,
    `budgets` are those that were charged."""

    request_id: str
    charge_micro_usd: int
    note: str
    budgets: tuple[tuple[str, str], ...] = ()


@record
@dataclass(frozen=True, slots=True)
class Spend:
    """Sums of one UTC day."""

    spent_micro_usd: int = 0
    saved_micro_usd: int = 0
    calls: int = 0
    calls_by_tier: tuple[tuple[str, int], ...] = ()
    refused: tuple[tuple[str, int], ...] = ()
    lost_calls: int = 0
    overrun_micro_usd: int = 0


@record
@dataclass(frozen=True, slots=True)
class BudgetState:
    """Micro-USD, as the scheduler sees them."""

    spent_micro_usd: int = 0
    held_micro_usd: int = 0


@record
@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Live counts of one pool, from the scheduler's own books. `waiting`: per class, most urgent first."""

    replicas: tuple[ReplicaState, ...] = ()
    leases: int = 0
    waiting: tuple[int, int, int] = (0, 0, 0)


@record
@dataclass(frozen=True, slots=True)
class NodeState:
    """One Ray node, as placement sees it."""

    node_id: str
    address: str
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
