"""What must hold whatever a scheduler does, kept from calls and answers alone: a second opinion that does not
know how a replica or a waiter is chosen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.types import (
    LOCAL_FENCE,
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Grant,
    HeldLease,
    Lost,
    PoolLoad,
    Refusal,
    RefusalReason,
    ReplicaPhase,
    ReplicaState,
    Settlement,
    SettleRequest,
    Spend,
    Waiting,
)

DEAD_AFTER_MS = 3_000


@dataclass
class Call:
    """`request` is the current step. `grant` while it runs, `ends_ms` while it waits, `charge` once it is
    over. `sent`: some step of it was said to be dispatched."""

    first: AdmitRequest
    request: AdmitRequest
    grant: Grant | None = None
    ends_ms: int | None = None
    deadline_ms: int = 0
    expiry_ms: int = 0
    sent: bool = False
    end: str = ""
    charge: int = 0
    saved: int = 0
    pool: str = ""

    @property
    def waits(self) -> bool:
        return self.ends_ms is not None and not self.end

    @property
    def runs(self) -> bool:
        return self.grant is not None and not self.end


@dataclass
class Replica:
    """`load`: tokens of its leases of this epoch. `heard_ms` None: taken out."""

    state: ReplicaState
    heard_ms: int | None
    load: dict[str, int] = field(default_factory=dict)

    def can_be_chosen(self, now_ms: int) -> bool:
        return (
            self.state.phase is ReplicaPhase.READY
            and self.heard_ms is not None
            and now_ms - self.heard_ms < DEAD_AFTER_MS
        )

    def has_room_for(self, tokens: int) -> bool:
        cap = self.state.max_outstanding_tokens
        outstanding = sum(self.load.values())
        if len(self.load) >= self.state.max_concurrency or (cap and outstanding >= cap):
            return False
        return not cap or not self.load or outstanding + tokens <= cap


class Model:
    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.replicas: dict[str, Replica] = {}
        self.limits: dict[tuple[str, str], int] = {}
        self.spent: Counter[tuple[str, str]] = Counter()
        self.excess: Counter[tuple[str, str]] = Counter()
        self.bursts: dict[str, int] = {}
        self.drawn: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.day: Counter[str] = Counter()
        self.last_fence = 0

    def forget_everything(self) -> None:
        """Data loss. Fences go on."""
        last_fence = self.last_fence
        self.__init__()  # type: ignore[misc]
        self.last_fence = last_fence

    # Admission.

    def admitted(self, request: AdmitRequest, answer: Grant | Waiting | Refusal, now_ms: int) -> None:
        """Before the grants to waiters of the same call."""
        call = self.calls.get(request.request_id)
        if isinstance(answer, Refusal):
            self.day[f"refused:{answer.reason}"] += 1
            self._refused(request, call, answer, now_ms)
            return
        assert answer.candidate in request.candidates
        assert call is None or (not call.end and call.request.step <= request.step)
        if call is not None and call.request.step == request.step:
            self._same_answer(call, answer)
            return
        if call is None:
            call = self.calls[request.request_id] = Call(request, request)
            for rate in request.rates:
                self._draw(rate.bucket, rate.increment_us, rate.burst_us, now_ms)
            for line in request.budgets:
                self.limits[line.owner, line.window] = line.limit_micro_usd
        else:
            self._leave_place(call)
            call.request = request
        call.pool = answer.candidate.pool
        call.deadline_ms = now_ms + request.deadline_ms
        if isinstance(answer, Waiting) or self._went_through_the_queue:
            assert request.queue is not None
            call.ends_ms = min(call.deadline_ms, now_ms + request.queue.ticket_ttl_ms)
        else:
            self._begin(call, answer, now_ms)

    _went_through_the_queue = False

    def admitted_through_the_queue(self, request: AdmitRequest, answer: Grant, now_ms: int) -> None:
        """It joined the queue and was granted a slot there by the same call; its notice follows."""
        self._went_through_the_queue = True
        self.admitted(request, answer, now_ms)
        self._went_through_the_queue = False

    def _refused(self, request: AdmitRequest, call: Call | None, refusal: Refusal, now_ms: int) -> None:
        assert refusal.retry_after_ms >= 0
        match refusal.reason:
            case RefusalReason.NO_REPLICA:
                assert not any(
                    each.can_be_chosen(now_ms)
                    for candidate in request.candidates
                    for each in self._in_pool(candidate.pool)
                    if each.state.replica_id not in request.exclude_replicas
                )
            case RefusalReason.BUDGET:
                assert any(
                    self.spent[name] + self.held(name) + request.hold_micro_usd > line.limit_micro_usd
                    for line in request.budgets
                    for name in [(line.owner, line.window)]
                )
            case RefusalReason.ENDED:
                assert call is not None
                assert call.end or call.request.step > request.step
            case RefusalReason.TOO_LARGE:
                assert any(rate.increment_us > rate.burst_us for rate in request.rates)
            case RefusalReason.CAPACITY:
                assert request.queue is None
            case RefusalReason.RATE | RefusalReason.REBUILDING:
                assert call is None
            case RefusalReason.QUEUE_FULL | RefusalReason.WAIT:
                assert request.queue is not None
        if refusal.reason in (RefusalReason.RATE, RefusalReason.WAIT):
            assert refusal.retry_after_ms > 0

    @staticmethod
    def _same_answer(call: Call, answer: Grant | Waiting) -> None:
        if isinstance(answer, Grant):
            assert call.grant is not None
            assert (answer.fence, answer.replica_id) == (call.grant.fence, call.grant.replica_id)
            assert answer.lease_expiry_ms == call.expiry_ms
        else:
            assert call.waits

    def granted(self, gateway: str, grant: Grant, now_ms: int) -> None:
        """To a waiter."""
        call = self.calls[grant.request_id]
        assert call.waits
        assert call.request.gateway == gateway
        assert call.request.step == grant.step
        assert now_ms < call.deadline_ms, "nobody starts after its deadline"
        assert call.ends_ms is not None
        assert now_ms < call.ends_ms, "nor when its gateway no longer asks"
        call.ends_ms = None
        self._begin(call, grant, now_ms)

    def _begin(self, call: Call, grant: Grant, now_ms: int) -> None:
        replica = self.replicas[grant.replica_id]
        assert replica.state.pool == grant.candidate.pool
        assert grant.replica_id not in call.request.exclude_replicas
        assert replica.can_be_chosen(now_ms)
        assert replica.has_room_for(call.request.tokens), "leases stay within the caps of a replica"
        self._hold(call, grant)
        assert call.expiry_ms == now_ms + call.request.lease_ttl_ms

    def _hold(self, call: Call, grant: Grant) -> None:
        assert grant.fence > self.last_fence, "fences strictly increase"
        self.last_fence = grant.fence
        call.grant = grant
        call.expiry_ms = grant.lease_expiry_ms
        self.replicas[grant.replica_id].load[grant.request_id] = call.request.tokens

    def _leave_place(self, call: Call) -> None:
        if call.grant is not None and call.grant.replica_id in self.replicas:
            self.replicas[call.grant.replica_id].load.pop(call.first.request_id, None)
        call.grant = None
        call.ends_ms = None

    # Life and end.

    def polled(self, waiting: Waiting, answer: Grant | Waiting | None, ttl_ms: int, now_ms: int) -> None:
        call = self.calls.get(waiting.request_id)
        if isinstance(answer, Grant):
            assert call is not None
            assert call.grant is not None
            assert (answer.fence, answer.lease_expiry_ms) == (call.grant.fence, call.expiry_ms)
        elif isinstance(answer, Waiting):
            assert call is not None
            assert call.ends_ms is not None
            assert now_ms < call.deadline_ms
            call.ends_ms = max(call.ends_ms, min(call.deadline_ms, now_ms + ttl_ms))
        else:
            assert call is None or call.end or (call.ends_ms is not None and call.ends_ms <= now_ms)

    def renewed(self, held: Iterable[HeldLease], kept: Iterable[bool], ttl_ms: int, now_ms: int) -> None:
        for lease, is_kept in zip(held, kept, strict=True):
            call = self.calls.get(lease.grant.request_id)
            current = call is not None and call.runs and call.grant.fence == lease.grant.fence  # type: ignore[union-attr]
            assert is_kept == current
            if call is not None and is_kept:
                call.expiry_ms = max(call.expiry_ms, now_ms + ttl_ms)
                call.sent |= lease.dispatched

    def settled(self, request: SettleRequest, settlement: Settlement | None, now_ms: int) -> None:
        call = self.calls.get(request.request_id)
        if call is None:
            assert settlement is None
            return
        assert settlement is not None
        late = call.end == "expired" and not request.cancelled
        if call.end and not late:
            assert settlement == Settlement(call.charge, call.saved, first=False), "settle is idempotent"
            return
        hold = call.first.hold_micro_usd
        cost = 0 if request.cancelled else request.cost_micro_usd
        charge = min(cost, hold) if call.first.budgets else cost
        saved = 0 if request.cancelled else request.saved_micro_usd + cost - charge
        assert settlement == Settlement(charge, saved, first=True)
        for name in _budgets(call.first):
            self.spent[name] += charge - call.charge
            if late:
                # Its hold had been given back, and others may have taken it.
                self.excess[name] += max(0, charge - call.charge)
        if not late:
            for bucket, back_us in request.rates:
                self._draw(bucket, -back_us, 0, now_ms)
            self._leave_place(call)
        if not request.cancelled:
            self.day.update(
                {
                    "spent": charge - call.charge,
                    "saved": saved,
                    "calls": 1,
                    "calls:small": 1,
                    "overrun": cost - charge,
                }
            )
        call.end = "cancelled" if request.cancelled else "settled"
        call.charge, call.saved = charge, saved

    def reaped(self, lost: tuple[Lost, ...], now_ms: int, *, charge_lost: bool) -> None:
        """Everything that is overdue, nothing else."""
        for replica_id, replica in list(self.replicas.items()):
            if replica.heard_ms is None or now_ms - replica.heard_ms >= DEAD_AFTER_MS:
                self.deregistered(replica_id)
        overdue = {
            name
            for name, call in self.calls.items()
            if (call.runs and call.expiry_ms <= now_ms) or (call.waits and call.ends_ms <= now_ms)  # type: ignore[operator]
        }
        assert sorted(each.request_id for each in lost) == sorted(overdue), (
            "no lease outlives its TTL and a reap"
        )
        for each in lost:
            call = self.calls[each.request_id]
            assert each.charge_micro_usd == (call.first.hold_micro_usd if call.sent and charge_lost else 0)
            assert each.note == call.first.note
            self._leave_place(call)
            call.end, call.charge = "expired", each.charge_micro_usd
            for name in _budgets(call.first):
                self.spent[name] += call.charge
            if not call.sent:
                for rate in call.first.rates:
                    self._draw(rate.bucket, -rate.increment_us, 0, now_ms)
            self.day.update({"spent": call.charge, "lost": 1})

    def rebuilt(self, spent: Iterable[tuple[BudgetLine, int]]) -> None:
        for line, ledger in spent:
            name = (line.owner, line.window)
            self.limits.setdefault(name, line.limit_micro_usd)
            raised = max(0, ledger - self.spent[name])
            self.spent[name] += raised
            self.excess[name] += raised

    def reregistered(self, request: AdmitRequest, lease: HeldLease, back: Grant | None, now_ms: int) -> None:
        call = self.calls.get(request.request_id)
        if call is not None:
            here = call.request.step == lease.grant.step and call.pool == lease.grant.candidate.pool
            if call.end or lease.grant.fence != LOCAL_FENCE or not here:
                assert back is None
                return
            self._leave_place(call)
            call.sent |= lease.dispatched
        else:
            call = self.calls[request.request_id] = Call(request, request, sent=lease.dispatched)
            call.pool = lease.grant.candidate.pool
            for line in request.budgets:
                self.limits[line.owner, line.window] = line.limit_micro_usd
                self.excess[line.owner, line.window] += request.hold_micro_usd
        assert back is not None
        self.replicas.setdefault(
            back.replica_id,
            Replica(ReplicaState(back.replica_id, call.pool, ReplicaPhase.STARTING, max_concurrency=1), None),
        )
        self._hold(call, back)
        call.expiry_ms = now_ms + request.lease_ttl_ms

    # Replicas.

    def heartbeat(self, state: ReplicaState, now_ms: int) -> None:
        known = self.replicas.get(state.replica_id)
        if known is None:
            self.replicas[state.replica_id] = Replica(state, now_ms)
            return
        if known.state.epoch not in (state.epoch, 0):
            known.load.clear()
        known.state, known.heard_ms = state, now_ms

    def deregistered(self, replica_id: str) -> None:
        """One that comes back in the same epoch still has its leases."""
        if replica_id in self.replicas:
            self.replicas[replica_id].heard_ms = None
            if not self.replicas[replica_id].load:
                del self.replicas[replica_id]

    def _in_pool(self, pool: str) -> list[Replica]:
        return [each for each in self.replicas.values() if each.state.pool == pool]

    # Rates.

    def _draw(self, bucket: str, by_us: int, burst_us: int, now_ms: int) -> None:
        """GCRA never grants more than burst + time, over any interval."""
        drawn = self.drawn[bucket]
        drawn.append((now_ms * 1000, by_us))
        if by_us <= 0 or not burst_us:
            return
        total = 0
        for at_us, amount in reversed(drawn):
            total += amount
            assert total <= burst_us + now_ms * 1000 - at_us, f"bucket {bucket} was overdrawn"

    # What can be seen.

    def held(self, name: tuple[str, str]) -> int:
        return sum(
            call.first.hold_micro_usd
            for call in self.calls.values()
            if not call.end and name in _budgets(call.first)
        )

    def check_budgets(self, states: dict[tuple[str, str], BudgetState]) -> None:
        for name, state in states.items():
            assert state.held_micro_usd == self.held(name), "held is the sum of the holds"
            assert state.spent_micro_usd == self.spent[name]
            if name in self.limits:
                total = state.spent_micro_usd + state.held_micro_usd
                assert total <= self.limits[name] + self.excess[name]

    def check_pool(self, pool: str, load: PoolLoad, now_ms: int) -> None:
        living = {
            each.state.replica_id: (len(each.load), sum(each.load.values()))
            for each in self._in_pool(pool)
            if each.heard_ms is not None and now_ms - each.heard_ms < DEAD_AFTER_MS
        }
        seen = {each.replica_id: (each.load_requests, each.load_tokens) for each in load.replicas}
        assert seen == living, "load is the sum over the leases"
        here = [call for call in self.calls.values() if call.pool == pool]
        assert load.leases == sum(call.runs and call.expiry_ms > now_ms for call in here)
        waiting = [call for call in here if call.waits]
        assert sum(call.ends_ms > now_ms for call in waiting) <= sum(load.waiting) <= len(waiting)  # type: ignore[operator]

    def check_no_slot_is_idle(self, pool: str, first_waiter: str, now_ms: int) -> None:
        """Beside the first waiter that a living replica could take."""
        call = self.calls[first_waiter]
        idle = [
            each.state.replica_id
            for each in self._in_pool(pool)
            if each.state.replica_id not in call.request.exclude_replicas
            and each.can_be_chosen(now_ms)
            and each.has_room_for(call.request.tokens)
        ]
        assert not idle, f"{idle} have room for {first_waiter}, which waits"

    def check_day(self, spend: Spend) -> None:
        assert spend == Spend(
            spent_micro_usd=self.day["spent"],
            saved_micro_usd=self.day["saved"],
            calls=self.day["calls"],
            calls_by_tier=(("small", self.day["calls:small"]),) if self.day["calls:small"] else (),
            refused=tuple(
                sorted(
                    (name.removeprefix("refused:"), count)
                    for name, count in self.day.items()
                    if name.startswith("refused:")
                )
            ),
            lost_calls=self.day["lost"],
            overrun_micro_usd=self.day["overrun"],
        )

    @property
    def open_calls(self) -> list[str]:
        return [name for name, call in self.calls.items() if not call.end]


def _budgets(request: AdmitRequest) -> list[tuple[str, str]]:
    return [(line.owner, line.window) for line in request.budgets]
