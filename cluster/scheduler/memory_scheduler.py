"""The scheduler in memory: the twin of the Lua operations, for tests and the simulator.

Plain on purpose: where the two differ, one of them is wrong, and this is the one to read. No call awaits
anything, so every call is atomic within its event loop.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from cluster import keys
from cluster.clock import Clock
from cluster.scheduler.memory_money import Money
from cluster.scheduler.memory_pool import Lease, Offer, PoolBooks, Replica, Terms
from cluster.scheduler.memory_queue import Queue, Ticket
from cluster.scheduler.scheduler import (
    CLASSES,
    DEAD_AFTER_MS,
    EXPIRED_PER_REAP,
    GATEWAY_TTL_MS,
    LOOK_AT_REPLICAS,
    REBUILD_GRACE_MS,
    RESERVATION_TTL_MS,
)
from cluster.types import (
    LOCAL_FENCE,
    AdmitRequest,
    BudgetLine,
    BudgetState,
    Candidate,
    Grant,
    HeldLease,
    Lost,
    Placement,
    PoolLoad,
    Refusal,
    RefusalReason,
    Renewal,
    ReplicaPhase,
    ReplicaState,
    Settlement,
    SettleRequest,
    Spend,
    Waiting,
)

GRANTS_AT_ONCE = 16
"""Per call and pool; the next reap goes on."""

REBUILDING_RETRY_MS = 1_000
FENCES_PER_MS = 16
FENCE_EPOCH_MS = 1_700_000_000_000


_SETTLED, _EXPIRED, _CANCELLED = "settled", "expired", "cancelled"


@dataclass(slots=True)
class _Pool:
    books: PoolBooks = field(default_factory=PoolBooks)
    queue: Queue = field(default_factory=Queue)


@dataclass(slots=True)
class _Reservation:
    """`over` is None while the request waits or runs, else how it ended. This decides about money; the lease
    decides about slots."""

    step: int
    pool: str
    hold: int
    rates: tuple[tuple[str, int], ...]
    budgets: tuple[tuple[str, str], ...]
    note: str
    forget_at_ms: int
    over: str | None = None
    cost: int = 0
    saved: int = 0


@dataclass(frozen=True, slots=True)
class _Option:
    """A candidate whose pool has a living replica, or is `asleep` and can be waited for."""

    candidate: Candidate
    placement: Placement
    terms: Terms
    offer: Offer | None
    asleep: bool


@dataclass(frozen=True, slots=True)
class _Promise:
    """What waiting with an option would be like. A slot of its pool comes free every `turn_us`."""

    option: _Option
    turn_us: int
    ahead: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class _Before:
    """What the step before of a request holds: a lease, which has ended already, or a place in the queue."""

    pool: str
    lease: Lease | None

    @property
    def freed(self) -> str | None:
        return self.lease.replica_id if self.lease else None


class MemoryScheduler:
    """`Scheduler` of one process. Everything lives by `clock`. `on_grant` is told of each grant to a waiter,
    with the name of its gateway."""

    def __init__(self, clock: Clock, on_grant: Callable[[str, Grant], None] | None = None) -> None:
        self._clock = clock
        self._on_grant = on_grant
        self.lose_everything()

    def lose_everything(self) -> None:
        """As FLUSHALL does."""
        self._fence = 0
        self._epoch = ""
        self._gateways: dict[str, int] = {}
        self._pools: defaultdict[str, _Pool] = defaultdict(_Pool)
        self._money = Money()
        self._reservations: dict[str, _Reservation] = {}
        self._to_forget: deque[tuple[int, str]] = deque()
        self._spend: defaultdict[str, Counter[str]] = defaultdict(Counter)

    # Admission.

    async def admit(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        now_ms = self._clock.now_ms()
        known = self._reservation(request.request_id)
        if known is None:
            refusal = self._money_refusal(request, now_ms)
            answer = refusal or self._place(request, None, None, now_ms)
        elif known.over or known.step > request.step:
            answer = Refusal(RefusalReason.ENDED, 0)
        elif known.step == request.step:
            answer = self._again(request, known.pool)
        else:
            # Until it is clear that the new step is not refused, the slot of the step before counts as free.
            books = self._pools[known.pool].books
            before = _Before(known.pool, books.end_lease(request.request_id))
            answer = self._place(request, known, before, now_ms)
            if isinstance(answer, Refusal) and before.lease is not None:
                books.begin_lease(request.request_id, before.lease)
        if isinstance(answer, Refusal):
            self._today().update({f"refused:{answer.reason}": 1})
        return answer

    def _again(self, request: AdmitRequest, pool_name: str) -> Grant | Waiting | Refusal:
        pool, request_id = self._pools[pool_name], request.request_id
        lease = pool.books.leases.get(request_id)
        if lease is not None:
            return _grant_of(request_id, request.step, lease)
        ticket = pool.queue.tickets.get(request_id)
        if ticket is None:
            return Refusal(RefusalReason.ENDED, 0)
        return Waiting(request_id, request.step, ticket.candidate, pool.queue.position(request_id), 0)

    def _money_refusal(self, request: AdmitRequest, now_ms: int) -> Refusal | None:
        refusal = self._money.rate_refusal(request.rates, now_ms) or self._money.budget_refusal(
            request.budgets, request.hold_micro_usd, now_ms
        )
        if refusal is None and request.checked and not self._is_checked(request.epoch_id):
            return Refusal(RefusalReason.REBUILDING, REBUILDING_RETRY_MS)
        return refusal

    def _place(
        self, request: AdmitRequest, known: _Reservation | None, before: _Before | None, now_ms: int
    ) -> Grant | Waiting | Refusal:
        """The cheapest free replica of the first tier that lives (of all candidates, with spill); or a place
        in the queue."""
        options = list(self._options(request, now_ms))
        if not options:
            return Refusal(RefusalReason.NO_REPLICA, DEAD_AFTER_MS)
        best: tuple[_Option, Offer] | None = None
        for option in options:
            # Of equal offers the earlier candidate wins.
            if option.offer is None or (best is not None and option.offer.rank >= best[1].rank):
                continue
            # Where others wait, nobody goes past them: this call queues, and the order says who is next.
            if self._pools[option.candidate.pool].queue.next(now_ms) is None:
                best = option, option.offer
        if best is None:
            return self._wait(request, options, known, before, now_ms)

        option, offer = best
        candidate, is_cold = option.candidate, option.terms.is_cold_on(offer.replica_id)
        pool_name, replica_id = candidate.pool, offer.replica_id
        books = self._pools[pool_name].books
        sent = self._end_step_before(request.request_id, before, now_ms)
        self._reserve(request, known, pool_name, now_ms)
        lease = Lease(
            candidate=candidate,
            replica_id=replica_id,
            address=books.replicas[replica_id].address,
            tokens=request.tokens,
            fence=self._next_fence(now_ms),
            granted_ms=now_ms,
            expiry_ms=now_ms + request.lease_ttl_ms,
            dispatched=sent,
        )
        books.begin_lease(request.request_id, lease, is_cold=is_cold)
        if candidate.adapter is not None and replica_id in books.holders[candidate.adapter]:
            books.holders[candidate.adapter].put(replica_id, offer.tokens + request.tokens)
        if before is not None and before.pool != pool_name:
            self._pass_on(before.pool, before.freed, now_ms)
        return _grant_of(request.request_id, request.step, lease)

    def _options(self, request: AdmitRequest, now_ms: int) -> Iterator[_Option]:
        excluded = set(request.exclude_replicas)
        look_at = LOOK_AT_REPLICAS + len(excluded)
        live_tier: str | None = None
        placements = request.placement_of_each
        for candidate, placement in zip(request.candidates, placements, strict=True):
            if live_tier not in (None, candidate.tier) and not request.spill:
                return
            books = self._pools[candidate.pool].books
            holders = books.holders[candidate.adapter] if candidate.adapter is not None else None
            terms = Terms(
                base=placement.base_nano_usd,
                per_token=placement.per_token_nano_usd,
                cold=placement.cold_nano_usd if holders is not None else 0,
                affine=placement.affine_replica,
                credit=placement.credit_nano_usd,
                holders=holders if holders is not None else (),
            )
            also = [*(holders.first(look_at) if holders is not None else ()), placement.affine_replica]
            offer, live = books.cheapest(
                request.tokens, terms, excluded, look_at=look_at, also=also, now_ms=now_ms
            )
            asleep = not live and placement.wake_ms > 0 and len(books.ready) == 0
            option = _Option(candidate, placement, terms, offer, asleep)
            if live or (asleep and self._can_be_waited_for(request, option, now_ms)):
                live_tier = candidate.tier
                yield option

    def _can_be_waited_for(self, request: AdmitRequest, option: _Option, now_ms: int) -> bool:
        """Who cannot wait until it is awake still says that the pool is asked for, or it would sleep on."""
        if self._promise(request, option, now_ms).wait_ms <= _patience_ms(request):
            return True
        self._pools[option.candidate.pool].books.asked += 1
        return False

    def _wait(
        self,
        request: AdmitRequest,
        options: Sequence[_Option],
        known: _Reservation | None,
        before: _Before | None,
        now_ms: int,
    ) -> Grant | Waiting | Refusal:
        """In the pool that promises the shortest wait; the earlier candidate wins a tie."""
        level = CLASSES.index(request.priority)
        promises = [self._promise(request, option, now_ms) for option in options]
        promise = min(promises, key=lambda promise: promise.wait_ms)
        wait_ms, option = promise.wait_ms, promise.option
        terms = request.queue
        if terms is None:
            return Refusal(RefusalReason.CAPACITY, wait_ms)
        pool_name = option.candidate.pool
        pool = self._pools[pool_name]
        if pool.queue.as_urgent(level) >= terms.longest_queue:
            return Refusal(RefusalReason.QUEUE_FULL, wait_ms)
        patience_ms = _patience_ms(request)
        if wait_ms > patience_ms:
            return Refusal(RefusalReason.WAIT, wait_ms - patience_ms)

        sent = self._end_step_before(request.request_id, before, now_ms)
        self._reserve(request, known, pool_name, now_ms)
        adapter = option.candidate.adapter
        holders = tuple(pool.books.holders[adapter].first(LOOK_AT_REPLICAS) if adapter is not None else ())
        excluded = tuple(dict.fromkeys(request.exclude_replicas))
        ticket = Ticket(
            request_id=request.request_id,
            step=request.step,
            candidate=option.candidate,
            gateway=request.gateway,
            level=level,
            tenant=request.tenant,
            weight=request.weight,
            tokens=request.tokens,
            since_ms=now_ms,
            # A pool may not wake at all: then nobody waits for longer than was foreseen to be bearable.
            deadline_ms=now_ms + (patience_ms if option.asleep else request.deadline_ms),
            ticket_ttl_ms=terms.ticket_ttl_ms,
            ageing_ms=max(1, terms.ageing_ms),
            lease_ttl_ms=request.lease_ttl_ms,
            excluded=excluded,
            holders=holders,
            terms=replace(option.terms, holders=holders),
            look_at=LOOK_AT_REPLICAS + len(excluded),
            sent=sent,
        )
        pool.queue.join(ticket, promise.turn_us, now_ms, asleep=option.asleep)
        # A slot may be free: one that this request gave up, or that nobody ahead of it fits.
        if before is not None and before.pool != pool_name:
            self._pass_on(before.pool, before.freed, now_ms)
        self._pass_on(pool_name, before.freed if before else None, now_ms)
        lease = pool.books.leases.get(request.request_id)
        if lease is not None:
            return _grant_of(request.request_id, request.step, lease)
        return Waiting(request.request_id, request.step, option.candidate, promise.ahead, wait_ms)

    def _promise(self, request: AdmitRequest, option: _Option, now_ms: int) -> _Promise:
        pool, placement = self._pools[option.candidate.pool], option.placement
        level = CLASSES.index(request.priority)
        service_us = placement.service_us if pool.books.service_us is None else pool.books.service_us
        # A pool that sleeps counts as one replica: that is what it wakes with.
        turn_us = max(1, service_us // max(1, placement.slots * max(1, len(pool.books.ready))))
        ahead, wait_ms = pool.queue.predicted_wait(
            level, request.tenant, request.weight, turn_us=turn_us, now_ms=now_ms, asleep=option.asleep
        )
        if option.asleep:
            wait_ms += placement.wake_ms
        return _Promise(option, turn_us, ahead, wait_ms)

    def _end_step_before(self, request_id: str, before: _Before | None, now_ms: int) -> bool:
        """True: an engine may have run it, so this is no call that never ran."""
        if before is None:
            return False
        pool = self._pools[before.pool]
        if before.lease is not None:
            pool.books.learn_service_time(before.lease, now_ms)
            return before.lease.dispatched
        ticket = pool.queue.leave(request_id)
        return ticket is not None and ticket.sent

    def _reserve(self, request: AdmitRequest, known: _Reservation | None, pool: str, now_ms: int) -> None:
        """A request pays once, whatever steps it takes."""
        if known is None:
            self._money.take_rates(request.rates, now_ms)
            self._money.hold(request.budgets, request.hold_micro_usd, now_ms)
            known = _reservation_of(request)
        self._remember(request.request_id, replace(known, step=request.step, pool=pool), now_ms)

    # Queue.

    async def poll(
        self, waiting: Sequence[Waiting], ticket_ttl_ms: int
    ) -> tuple[Grant | Waiting | None, ...]:
        now_ms = self._clock.now_ms()
        return tuple(self._polled(each, ticket_ttl_ms, now_ms) for each in waiting)

    def _polled(self, waiting: Waiting, ticket_ttl_ms: int, now_ms: int) -> Grant | Waiting | None:
        pool = self._pools[waiting.candidate.pool]
        request_id = waiting.request_id
        lease = pool.books.leases.get(request_id)
        if lease is not None:
            return _grant_of(request_id, waiting.step, lease)
        if not pool.queue.is_in_line(request_id) or pool.queue.tickets[request_id].deadline_ms <= now_ms:
            return None
        pool.queue.renew(request_id, ticket_ttl_ms, now_ms)
        return replace(waiting, position=pool.queue.position(request_id), predicted_wait_ms=0)

    def _pass_on(self, pool_name: str, freed: str | None, now_ms: int) -> None:
        """Give free slots (of the replica `freed`, and others) to waiters, in order; stops at the first that
        fits nowhere, so that large calls are not overtaken for ever. One whose replicas are all gone or left
        out stops nobody."""
        pool = self._pools[pool_name]
        passed: Counter[str] = Counter()
        for _ in range(GRANTS_AT_ONCE):
            ticket = pool.queue.next(now_ms, passed)
            if ticket is None:
                return
            offer, live = pool.books.cheapest(
                ticket.tokens,
                ticket.terms,
                ticket.excluded,
                look_at=ticket.look_at,
                also=(freed or "", *ticket.holders, ticket.terms.affine),
                now_ms=now_ms,
            )
            if offer is not None:
                self._grant(pool, ticket, offer.replica_id, now_ms)
            elif live:
                return
            else:
                passed[ticket.owner] += 1

    def _grant(self, pool: _Pool, ticket: Ticket, replica_id: str, now_ms: int) -> None:
        lease = Lease(
            candidate=ticket.candidate,
            replica_id=replica_id,
            address=pool.books.replicas[replica_id].address,
            tokens=ticket.tokens,
            fence=self._next_fence(now_ms),
            granted_ms=now_ms,
            expiry_ms=now_ms + ticket.lease_ttl_ms,
            dispatched=ticket.sent,
        )
        pool.books.begin_lease(ticket.request_id, lease, is_cold=ticket.terms.is_cold_on(replica_id))
        pool.queue.granted(ticket.request_id, now_ms)
        if self._on_grant is not None:
            self._on_grant(ticket.gateway, _grant_of(ticket.request_id, ticket.step, lease))

    # Life and end of a call.

    def _is_checked(self, epoch_id: str) -> bool:
        state, _, current_id = self._epoch.partition("|")
        return state == "open" and epoch_id in ("", current_id)

    async def renew(self, gateway: str, leases: Sequence[HeldLease], lease_ttl_ms: int) -> Renewal:
        now_ms = self._clock.now_ms()
        self._gateways[gateway] = now_ms + GATEWAY_TTL_MS
        self._gateways = {name: end_ms for name, end_ms in self._gateways.items() if end_ms > now_ms}
        kept = []
        for each in leases:
            lease = self._pools[each.grant.candidate.pool].books.leases.get(each.grant.request_id)
            if lease is not None and lease.fence == each.grant.fence:
                lease.expiry_ms = max(lease.expiry_ms, now_ms + lease_ttl_ms)
                lease.dispatched = lease.dispatched or each.dispatched
                kept.append(True)
            else:
                kept.append(False)
        return Renewal(tuple(kept), self._epoch, len(self._gateways))

    async def settle_all(self, requests: Sequence[SettleRequest]) -> tuple[Settlement | None, ...]:
        return tuple([await self.settle(request) for request in requests])

    async def settle(self, request: SettleRequest) -> Settlement | None:
        now_ms = self._clock.now_ms()
        known = self._reservation(request.request_id)
        if known is None:
            return None
        late = known.over == _EXPIRED and not request.cancelled
        if known.over and not late:
            return Settlement(known.cost, known.saved, first=False)

        today = self._today()
        cost, saved = request.cost_micro_usd, request.saved_micro_usd
        if request.cancelled:
            cost, saved = 0, 0
        elif request.budgets and cost > known.hold:
            today["overrun"] += cost - known.hold
            saved += cost - known.hold
            cost = known.hold
        charged = known.cost  # by `reap`, or nothing
        held = 0 if late else known.hold
        self._money.change(request.budgets, cost - charged, -held, now_ms)
        if not request.cancelled:
            today.update({"spent": cost - charged, "saved": saved, "calls": 1, f"calls:{request.tier}": 1})
        over = replace(known, over=_CANCELLED if request.cancelled else _SETTLED, cost=cost, saved=saved)
        self._remember(request.request_id, over, now_ms)
        if not late:
            self._money.correct_rates(request.rates, now_ms)
            self._end_place(request.request_id, known.pool, now_ms, learn=True)
        return Settlement(cost, saved, first=True)

    def _end_place(self, request_id: str, pool_name: str, now_ms: int, *, learn: bool = False) -> bool:
        """End the lease or the wait, and pass the slot on. True: an engine may have run the call."""
        pool = self._pools[pool_name]
        lease = pool.books.end_lease(request_id)
        ticket = pool.queue.leave(request_id) if lease is None else None
        if lease is not None and learn:
            pool.books.learn_service_time(lease, now_ms)
        self._pass_on(pool_name, lease.replica_id if lease else None, now_ms)
        return (lease is not None and lease.dispatched) or (ticket is not None and ticket.sent)

    # Janitor.

    async def reap(self, pools: Sequence[str], *, charge_lost: bool = True) -> tuple[Lost, ...]:
        now_ms = self._clock.now_ms()
        self._forget_reservations(now_ms)
        expired: list[tuple[str, str]] = []
        for name in dict.fromkeys(pools):
            pool = self._pools[name]
            for replica_id in [id_ for id_, each in pool.books.replicas.items() if each.dead(now_ms)]:
                pool.books.forget(replica_id)
            self._pass_on(name, None, now_ms)
            leases = {id_: lease.expiry_ms for id_, lease in pool.books.leases.items()}
            for ends_ms in (leases, pool.queue.ends_ms):
                over = ((end_ms, id_) for id_, end_ms in ends_ms.items() if end_ms <= now_ms)
                expired += [(name, id_) for _, id_ in heapq.nsmallest(EXPIRED_PER_REAP, over)]
        return tuple(self._end_lost(name, request_id, now_ms, charge_lost) for name, request_id in expired)

    def _end_lost(self, pool_name: str, request_id: str, now_ms: int, charge_lost: bool) -> Lost:
        known = self._reservation(request_id)
        sent = self._end_place(request_id, pool_name, now_ms)
        if known is None or known.over:
            return Lost(request_id, 0, "")
        charge = known.hold if sent and charge_lost else 0
        if not sent:
            self._money.correct_rates(known.rates, now_ms)
        self._money.change(known.budgets, charge, -known.hold, now_ms)
        self._today().update({"spent": charge, "lost": 1})
        self._remember(request_id, replace(known, over=_EXPIRED, cost=charge), now_ms)
        return Lost(request_id, charge, known.note, known.budgets)

    async def rebuild(self, spent: Sequence[tuple[BudgetLine, int]], grace_ms: int = REBUILD_GRACE_MS) -> str:
        now_ms = self._clock.now_ms()
        for line, micro_usd in spent:
            self._money.raise_spent(line, micro_usd, now_ms)
        state, _, began_ms = (self._epoch or f"rebuilding|{now_ms}").partition("|")
        if now_ms - int(began_ms) >= grace_ms:
            state = "open"
        self._epoch = f"{state}|{began_ms}"
        return self._epoch

    async def reregister(self, request: AdmitRequest, lease: HeldLease) -> Grant | None:
        now_ms = self._clock.now_ms()
        grant = lease.grant
        known = self._reservation(request.request_id)
        place = (grant.step, grant.candidate.pool)
        if known is not None and (
            grant.fence != LOCAL_FENCE or known.over or (known.step, known.pool) != place
        ):
            return None
        fence = self._next_fence(now_ms)
        pool = self._pools[grant.candidate.pool]
        books, sent, freed = pool.books, lease.dispatched, None
        if known is not None:
            before, ticket = books.end_lease(request.request_id), pool.queue.leave(request.request_id)
            if before is not None:
                sent, freed = sent or before.dispatched, before.replica_id
            sent = sent or (ticket is not None and ticket.sent)
        else:
            self._money.hold(request.budgets, request.hold_micro_usd, now_ms)
            reservation = replace(_reservation_of(request), step=grant.step, pool=grant.candidate.pool)
            self._remember(request.request_id, reservation, now_ms)
        # Where the replica has not reported yet, its first heartbeat finds this load and keeps it.
        books.replicas.setdefault(grant.replica_id, Replica(since=fence - 1))
        brought_back = Lease(
            candidate=grant.candidate,
            replica_id=grant.replica_id,
            address=grant.address,
            tokens=request.tokens,
            fence=fence,
            granted_ms=now_ms,
            expiry_ms=now_ms + request.lease_ttl_ms,
            dispatched=sent,
        )
        books.begin_lease(request.request_id, brought_back)
        self._pass_on(grant.candidate.pool, freed, now_ms)
        return replace(grant, fence=fence)

    # Replicas.

    async def heartbeat(self, state: ReplicaState) -> None:
        now_ms = self._clock.now_ms()
        self._pools[state.pool].books.report(state, self._fence, now_ms)
        if state.phase is ReplicaPhase.READY:
            self._pass_on(state.pool, state.replica_id, now_ms)

    async def deregister(self, state: ReplicaState) -> None:
        self._pools[state.pool].books.forget(state.replica_id)

    # Views.

    async def pool_load(self, pool: str) -> PoolLoad:
        now_ms = self._clock.now_ms()
        books, queue = self._pools[pool].books, self._pools[pool].queue
        interactive, normal, batch = (queue.waiting(level) for level in range(len(CLASSES)))
        return PoolLoad(
            replicas=tuple(
                replace(each.state, load_requests=each.requests, load_tokens=each.tokens)
                for _, each in sorted(books.replicas.items())
                if each.state is not None and not each.dead(now_ms)
            ),
            leases=sum(lease.expiry_ms > now_ms for lease in books.leases.values()),
            waiting=(interactive, normal, batch),
        )

    async def budget_states(self, budgets: Sequence[tuple[str, str]]) -> tuple[BudgetState, ...]:
        now_ms = self._clock.now_ms()
        return tuple(self._money.state(owner, window, now_ms) for owner, window in budgets)

    async def spend_today(self) -> Spend:
        sums = self._today()

        def group(prefix: str) -> tuple[tuple[str, int], ...]:
            names = sorted(name for name in sums if name.startswith(prefix))
            return tuple((name.removeprefix(prefix), sums[name]) for name in names)

        return Spend(
            spent_micro_usd=sums["spent"],
            saved_micro_usd=sums["saved"],
            calls=sums["calls"],
            calls_by_tier=group("calls:"),
            refused=group("refused:"),
            lost_calls=sums["lost"],
            overrun_micro_usd=sums["overrun"],
        )

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing to close."""

    def _next_fence(self, now_ms: int) -> int:
        """It rises with the clock: so it stays above every earlier one also after data loss."""
        self._fence = max(self._fence, (now_ms - FENCE_EPOCH_MS) * FENCES_PER_MS) + 1
        return self._fence

    def _remember(self, request_id: str, reservation: _Reservation, now_ms: int) -> None:
        reservation.forget_at_ms = now_ms + RESERVATION_TTL_MS
        self._reservations[request_id] = reservation
        self._to_forget.append((reservation.forget_at_ms, request_id))

    def _reservation(self, request_id: str) -> _Reservation | None:
        known = self._reservations.get(request_id)
        return known if known is not None and known.forget_at_ms > self._clock.now_ms() else None

    def _forget_reservations(self, now_ms: int) -> None:
        """Redis forgets keys by itself."""
        while self._to_forget and self._to_forget[0][0] <= now_ms:
            forget_at_ms, request_id = self._to_forget.popleft()
            known = self._reservations.get(request_id)
            if known is not None and known.forget_at_ms == forget_at_ms:
                del self._reservations[request_id]

    def _today(self) -> Counter[str]:
        return self._spend[keys.utc_day(self._clock.now_ms())]


def _patience_ms(request: AdmitRequest) -> int:
    """The longest wait that a call may be told of."""
    return min(request.queue.longest_wait_ms, request.deadline_ms) if request.queue else 0


def _grant_of(request_id: str, step: int, lease: Lease) -> Grant:
    return Grant(
        request_id=request_id,
        step=step,
        candidate=lease.candidate,
        replica_id=lease.replica_id,
        address=lease.address,
        fence=lease.fence,
        lease_expiry_ms=lease.expiry_ms,
    )


def _reservation_of(request: AdmitRequest) -> _Reservation:
    return _Reservation(
        step=request.step,
        pool="",
        hold=request.hold_micro_usd,
        rates=tuple((rate.bucket, rate.increment_us) for rate in request.rates),
        budgets=request.budget_names,
        note=request.note,
        forget_at_ms=0,
    )
