"""Random lives of a scheduler. The twin and the scripts on a real Valkey give the same answers and keep the
same books to the last number, and a model that knows nothing of either agrees with what can be seen of them.

`SPRAT_PROPERTY_EXAMPLES` sets how many lives are tried, `SPRAT_PROPERTY_SEED` which of the long ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cluster.clock import ManualClock
from cluster.scheduler.memory_scheduler import GRANTS_AT_ONCE, MemoryScheduler
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.scheduler.scheduler import Scheduler
from cluster.scheduler.together import is_plain
from cluster.types import (
    LOCAL_FENCE,
    AdmitRequest,
    BudgetLine,
    Grant,
    HeldLease,
    Placement,
    PriorityClass,
    QueueTerms,
    RateCharge,
    Refusal,
    ReplicaPhase,
    Waiting,
)
from tests.builders import NOON_MS, PATIENT, admit_request, candidate, ready_replica, settle_request
from tests.conftest import patient_client
from tests.property.books import books_in_memory, books_in_redis
from tests.property.model import Model
from tests.stopped_time import StoppedServer, stop_time

EXAMPLES = int(os.environ.get("SPRAT_PROPERTY_EXAMPLES", "24"))
SEED = os.environ.get("SPRAT_PROPERTY_SEED", "1")
RULES_PER_LIFE = 50

# Hypothesis shrinks a failure for up to 5 minutes; long runs have no limit.
pytestmark = pytest.mark.timeout(0 if "SPRAT_PROPERTY_EXAMPLES" in os.environ else 900)

POOLS = ("small", "large")
ADAPTERS = ("legal@1", "code@2")
BUDGETS = {
    "rich": BudgetLine("tenant:rich", "20261122", 10_000),
    "poor": BudgetLine("key:poor", "total", 900),
}
NAMES = [(line.owner, line.window) for line in BUDGETS.values()]

# Few values, so that ties happen.
WEIGHTS = {"acme": 1, "a|1|é": 1, "cat": 3}
REQUEST_RATE = RateCharge("requests:k1", 100_000, 10**6)
RATES = [
    *[()] * 6,
    (REQUEST_RATE,),
    (REQUEST_RATE, RateCharge("tokens:k1", 400_000, 10**6)),
    (RateCharge("tokens:k1", 0, 10**6),),
    (REQUEST_RATE, RateCharge("tokens:k1", 10**7, 10**6)),
]
TERMS = [
    None,
    PATIENT,
    QueueTerms(longest_queue=20, longest_wait_ms=10**6, ticket_ttl_ms=2_000, ageing_ms=1_000),
    QueueTerms(longest_queue=20, longest_wait_ms=10**6, ticket_ttl_ms=2_000, ageing_ms=10**6),
    QueueTerms(longest_queue=4, longest_wait_ms=3_000, ticket_ttl_ms=5_000, ageing_ms=3_000),
]
OPTIONS = [candidate(pool, adapter=adapter) for pool in POOLS for adapter in (None, *ADAPTERS)]
PLACEMENTS = [
    Placement(),
    Placement(base_nano_usd=100, per_token_nano_usd=3, cold_nano_usd=500, service_us=10**5, slots=2),
    Placement(affine_replica="s1", credit_nano_usd=50),
    # Longer than the impatient terms below: a wait for a pool that sleeps ends with the deadline of the call.
    Placement(wake_ms=5_000),
    Placement(cold_nano_usd=10**6, affine_replica="l1", credit_nano_usd=10**6, slots=4),
]

RANDOMS = st.randoms(use_true_random=False)


class Schedulers(RuleBasedStateMachine):
    """The twin and the model, and Valkey where a subclass has a `url`. Every rule takes what it needs from a
    `random.Random`, so that Hypothesis can choose (and shrink), or a plain one (and be fast)."""

    url: ClassVar[str] = ""
    replica_pools: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("s0", "s1", "s2", "s3"), "small"),
        **dict.fromkeys(("l0", "l1"), "large"),
    }
    sees_all_replicas: ClassVar[bool] = True
    calls_made: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(NOON_MS)
        self.granted: list[tuple[str, Grant]] = []
        self.twin = MemoryScheduler(self.clock, lambda gateway, grant: self.granted.append((gateway, grant)))
        self.model = Model()
        self.requests: dict[str, AdmitRequest] = {}
        self.waiting: dict[str, Waiting] = {}
        self.grants: list[Grant] = []
        if self.url:
            self.runner = asyncio.Runner()
            client = patient_client(self.url)
            self.server = StoppedServer(client, self.clock)
            self.redis = RedisScheduler(client, self.clock)
            self.runner.run(self.server.begin())

    # Machinery.

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms()

    def both(self, name: str, call: Callable[[Scheduler], Coroutine[Any, Any, Any]]) -> Any:
        """The answer of the twin, and that of Redis, which must be the same."""
        self.calls_made[name] += 1
        self.granted.clear()
        answer = finished(call(self.twin))
        if self.url:
            assert self.runner.run(call(self.redis)) == answer
        return answer

    def hear_of_grants(self, *pools: str) -> None:
        """After a call that gives free slots in `pools` to waiters."""
        for gateway, grant in self.granted:
            self.model.granted(gateway, grant, self.now_ms)
            self.waiting.pop(grant.request_id, None)
            self.grants.append(grant)
        if not self.sees_all_replicas or len(self.granted) >= GRANTS_AT_ONCE:
            return
        for pool in pools:
            first = self.first_waiter(pool)
            if first is not None:
                self.model.check_no_slot_is_idle(pool, first, self.now_ms)

    def first_waiter(self, pool: str) -> str | None:
        """Of those for whom a replica lives."""
        queue, passed = self.twin._pools[pool].queue, Counter()
        while (ticket := queue.next(self.now_ms, passed)) is not None:
            if any(
                each.can_be_chosen(self.now_ms) and each.state.pool == pool
                for replica_id, each in self.model.replicas.items()
                if replica_id not in ticket.excluded
            ):
                return ticket.request_id
            passed[ticket.owner] += 1
        return None

    # Replicas.

    @initialize(rng=RANDOMS)
    def replicas_report(self, rng):
        cap = rng.choice([1, 2])
        for replica_id in self.replica_pools:
            self.report(replica_id, max_concurrency=cap)
        self.both("rebuild", lambda scheduler: scheduler.rebuild([], grace_ms=0))

    def report(self, replica_id, **changes):
        pool = self.replica_pools[replica_id]
        state = ready_replica(replica_id, pool, **changes)
        self.both("heartbeat", lambda scheduler: scheduler.heartbeat(state))
        self.model.heartbeat(state, self.now_ms)
        self.hear_of_grants(*([pool] if state.phase is ReplicaPhase.READY else []))

    @rule(rng=RANDOMS)
    def heartbeat(self, rng):
        self.report(
            rng.choice(list(self.replica_pools)),
            max_concurrency=rng.choice([0, 1, 1, 2, 3]),
            max_outstanding_tokens=rng.choice([0, 0, 150]),
            epoch=rng.choice([1, 1, 1, 2]),
            phase=rng.choice([ReplicaPhase.READY] * 4 + [ReplicaPhase.DRAINING]),
            adapters=tuple(
                (name, rng.choice(["loaded", "loading"])) for name in ADAPTERS if rng.choice([True, False])
            ),
        )

    @rule(rng=RANDOMS)
    def everybody_reports(self, rng):
        """As before, but some have become ready."""
        for replica_id in self.replica_pools:
            known = self.model.replicas.get(replica_id)
            if known is None or known.state.epoch == 0:
                self.report(replica_id, max_concurrency=1)
            elif rng.choice([True, True, False]):
                self.report(
                    replica_id,
                    max_concurrency=max(1, known.state.max_concurrency),
                    max_outstanding_tokens=known.state.max_outstanding_tokens,
                    epoch=known.state.epoch,
                    adapters=known.state.adapters,
                )

    @rule(rng=RANDOMS)
    def deregister(self, rng):
        replica_id = rng.choice(list(self.replica_pools))
        state = ready_replica(replica_id, self.replica_pools[replica_id])
        self.both("deregister", lambda scheduler: scheduler.deregister(state))
        self.model.deregistered(replica_id)

    # Calls.

    @rule(rng=RANDOMS)
    def admit(self, rng):
        candidates = tuple(rng.choice(OPTIONS) for _ in range(rng.choice([1, 1, 2, 3])))
        tenant = rng.choice(list(WEIGHTS))
        money = rng.choice([(), ("rich",), ("rich", "poor")])
        lease_ttl_ms, deadline_ms = rng.choice(
            [(60_000, 60_000), (60_000, 60_000), (1_000, 2_000), (5_000, 700)]
        )
        shared = {
            "candidates": candidates,
            "placements": tuple(rng.choice(PLACEMENTS) for _ in candidates),
            "tokens": rng.choice([1, 10, 100, 100, 400]),
            "tenant": tenant,
            "weight": WEIGHTS[tenant],
            "gateway": f"g{tenant}",
            "priority": rng.choice(list(PriorityClass)),
            "lease_ttl_ms": lease_ttl_ms,
            "deadline_ms": deadline_ms,
            "exclude_replicas": self.some_replicas(rng, len(self.replica_pools) // 2),
            "spill": rng.choice([True, False]),
            "rates": rng.choice(RATES),
            "budgets": tuple(BUDGETS[name] for name in money),
            "hold_micro_usd": rng.choice([0, 1, 100, 400]),
            "checked": bool(money),
            "queue": rng.choice(TERMS),
        }
        for _ in range(rng.choice([1, 2, 4])):
            number = self.calls_of_this_life
            self.calls_of_this_life += 1
            self.ask(admit_request(f"r{number}", note=f"note|{number}", **shared))

    @rule(rng=RANDOMS)
    def admit_together(self, rng):
        """By one script, as far as that is plain. What it leaves must be as if it had not been there."""
        if not self.url:
            return
        pool = rng.choice(POOLS)
        others = [candidate(other) for other in POOLS if other != pool]
        requests = []
        for _ in range(rng.choice([1, 2, 3, 6])):
            number = self.calls_of_this_life
            self.calls_of_this_life += 1
            tenant = rng.choice(list(WEIGHTS))
            money = rng.choice([(), ("rich",), ("rich", "poor")])
            candidates = (candidate(pool), *rng.choice([(), others]))
            requests.append(
                admit_request(
                    f"r{number}",
                    note=f"note|{number}",
                    candidates=candidates,
                    placements=tuple(rng.choice(PLACEMENTS) for _ in candidates),
                    tokens=rng.choice([1, 10, 100, 400]),
                    tenant=tenant,
                    weight=WEIGHTS[tenant],
                    gateway=f"g{tenant}",
                    rates=rng.choice(RATES),
                    budgets=tuple(BUDGETS[name] for name in money),
                    hold_micro_usd=rng.choice([0, 1, 100, 400]),
                    checked=bool(money),
                    queue=rng.choice(TERMS),
                )
            )
        if rng.choice([True, False, False]) and self.requests:
            again = self.requests[rng.choice(sorted(self.requests))]
            requests.append(replace(requests[0], request_id=again.request_id))
        requests += rng.choice([[], [], requests[:1]])
        assert all(map(is_plain, requests))
        alone = []
        for request, answer in zip(
            requests, self.runner.run(self.redis._admit_together(requests)), strict=True
        ):
            self.calls_made[f"together: {type(answer).__name__}"] += 1
            if answer is None:
                alone.append(request)
                continue
            self.granted.clear()
            assert finished(self.twin.admit(request)) == answer
            assert not self.granted
            self.requests[request.request_id] = request
            self.model.admitted(request, answer, self.now_ms)
            self.grants.append(answer)
        for request in alone:
            if request.request_id not in self.requests:
                self.ask(request)

    @rule(rng=RANDOMS)
    def settle_together(self, rng):
        """By one script, as far as that is plain."""
        if not self.url:
            return
        pool = rng.choice(POOLS)
        among = self.model.open_calls if rng.choice([True, True, True, False]) else sorted(self.requests)
        names = [rng.choice(among) for _ in range(rng.choice([1, 2, 5])) if among]
        settles = [
            settle_request(
                name,
                rng.choice([0, 1, 100, 500]),
                saved_micro_usd=rng.choice([0, 7, -7]),
                budgets=tuple((line.owner, line.window) for line in self.requests[name].budgets),
                rates=tuple(
                    (rate.bucket, rng.choice([0, 50_000, -200_000])) for rate in self.requests[name].rates
                ),
                pools=(pool, *POOLS),
            )
            for name in names
        ]
        if not settles:
            return
        answers = self.runner.run(self.redis._settle_together(pool, settles))
        for settle, answer in zip(settles, answers, strict=True):
            self.calls_made[f"together: {type(answer).__name__}"] += 1
            if answer is None:
                continue
            self.granted.clear()
            assert finished(self.twin.settle(settle)) == answer
            assert not self.granted
            self.model.settled(settle, answer, self.now_ms)
            self.waiting.pop(settle.request_id, None)

    calls_of_this_life = 0

    def some_replicas(self, rng, at_most):
        return tuple(rng.sample(sorted(self.replica_pools), rng.choice([0, 0, rng.randint(0, at_most)])))

    def ask(self, request: AdmitRequest) -> None:
        before = without_the_overdue(books_in_memory(self.twin, POOLS, self.now_ms), self.now_ms)
        call = self.model.calls.get(request.request_id)
        pools = [call.pool] if call else []
        answer = self.both("admit", lambda scheduler: scheduler.admit(request))
        self.calls_made[f"admit: {getattr(answer, 'reason', type(answer).__name__)}"] += 1
        if isinstance(answer, Refusal):
            self.model.admitted(request, answer, self.now_ms)
            assert not self.granted
            after = books_in_memory(self.twin, POOLS, self.now_ms)
            assert without_the_overdue(after, self.now_ms) == before, "a refusal changes nothing"
            return
        stored = call is not None and call.request.step == request.step
        self.requests[request.request_id] = request
        if isinstance(answer, Grant) and any(each.fence == answer.fence for _, each in self.granted):
            self.model.admitted_through_the_queue(request, answer, self.now_ms)
        else:
            self.model.admitted(request, answer, self.now_ms)
            if isinstance(answer, Waiting):
                self.waiting[request.request_id] = answer
            else:
                self.waiting.pop(request.request_id, None)
                self.grants.append(answer)
        self.hear_of_grants(*([] if stored else [*pools, answer.candidate.pool]))

    @rule(rng=RANDOMS)
    def ask_again(self, rng):
        if self.requests:
            self.ask(self.requests[rng.choice(sorted(self.requests))])

    @rule(rng=RANDOMS)
    def another_step(self, rng):
        open_calls = self.model.open_calls
        if not open_calls:
            return
        request = self.requests[rng.choice(open_calls)]
        if request.step and rng.choice([True] + [False] * 5):
            self.ask(replace(request, step=request.step - 1))
            return
        self.ask(
            replace(
                request,
                step=request.step + rng.choice([1, 2]),
                candidates=tuple(rng.choice(OPTIONS) for _ in range(rng.choice([1, 2]))),
                placements=(),
                tokens=rng.choice([10, 100, 400]),
                queue=rng.choice(TERMS),
                deadline_ms=rng.choice([60_000, 2_000]),
                exclude_replicas=self.some_replicas(rng, 5),
            )
        )

    @rule(rng=RANDOMS)
    def poll(self, rng):
        everybody = rng.choice([True, False])
        waiting = [each for each in self.waiting.values() if everybody or rng.choice([True, False])]
        ttl_ms = rng.choice([1, 2_000, 60_000])
        answers = self.both("poll", lambda scheduler: scheduler.poll(waiting, ttl_ms))
        for each, answer in zip(waiting, answers, strict=True):
            self.model.polled(each, answer, ttl_ms, self.now_ms)

    @rule(rng=RANDOMS)
    def renew(self, rng):
        held = [
            HeldLease(rng.choice(self.grants[-30:]), rng.choice([True, False]))
            for _ in range(rng.randint(0, 6) if self.grants else 0)
        ]
        gateway, ttl_ms = rng.choice("gh"), rng.choice([1, 9_000])
        renewal = self.both("renew", lambda scheduler: scheduler.renew(gateway, held, ttl_ms))
        self.model.renewed(held, renewal.kept, ttl_ms, self.now_ms)

    @rule(rng=RANDOMS)
    def settle(self, rng):
        for _ in range(rng.choice([1, 2, 3])):
            names = self.model.open_calls if rng.choice([True, True, True, False]) else sorted(self.requests)
            if not names:
                return
            self.end(
                rng.choice(names),
                cost=rng.choice([0, 1, 100, 500]),
                back=rng.choice([0, 50_000, 10**6, -200_000]),
                saved_micro_usd=rng.choice([0, 7, -7]),
                cancelled=rng.choice([False, False, True]),
                pools=rng.choice([POOLS, POOLS[:1], ()]),
            )

    def end(self, request_id: str, *, cost: int = 0, back: int = 0, **changes: Any) -> None:
        request = self.requests[request_id]
        call = self.model.calls.get(request_id)
        pools = [call.pool] if call and not call.end else []
        settle = settle_request(
            request_id,
            cost,
            budgets=tuple((line.owner, line.window) for line in request.budgets),
            rates=tuple((rate.bucket, back) for rate in request.rates),
            **changes,
        )
        settlement = self.both("settle", lambda scheduler: scheduler.settle(settle))
        self.model.settled(settle, settlement, self.now_ms)
        self.waiting.pop(request_id, None)
        self.hear_of_grants(*pools)

    # Time, and what it undoes.

    @rule(rng=RANDOMS)
    def time_passes(self, rng):
        self.calls_made["time"] += 1
        self.advance(rng.choice([1, 100, 600, 1_100, 2_500]))

    def advance(self, by_ms):
        if self.url:
            self.runner.run(self.server.advance_ms(by_ms))
        else:
            self.clock.advance(by_ms)

    @rule(rng=RANDOMS)
    def reap(self, rng):
        charge_lost = rng.choice([True, True, False])
        lost = self.both("reap", lambda scheduler: scheduler.reap(POOLS, charge_lost=charge_lost))
        self.model.reaped(lost, self.now_ms, charge_lost=charge_lost)
        for each in lost:
            self.waiting.pop(each.request_id, None)
        self.hear_of_grants(*POOLS)

    @rule(rng=RANDOMS)
    def rebuild(self, rng):
        spent = [(line, rng.choice([0, 50, 800])) for line in BUDGETS.values() if rng.choice([True, False])]
        self.both("rebuild", lambda scheduler: scheduler.rebuild(spent))
        self.model.rebuilt(spent)

    @rule(rng=RANDOMS)
    def bring_back(self, rng):
        """After data loss; or where the gateway let it run alone, wherever the store has it by now."""
        if not self.grants:
            return
        grant = rng.choice(self.grants[-30:])
        alone = rng.choice([True, False])
        if alone:
            waiting = [*self.waiting.values(), *self.grants[-5:]]
            mine = rng.choice(waiting)
            grant = replace(
                rng.choice(self.grants[-30:]),
                request_id=mine.request_id,
                step=mine.step,
                candidate=mine.candidate,
                fence=LOCAL_FENCE,
            )
            if self.replica_pools[grant.replica_id] != mine.candidate.pool:
                return
        request = self.requests[grant.request_id]
        if grant.step != request.step:
            return
        lease = HeldLease(grant, rng.choice([True, False]))
        back = self.both("reregister", lambda scheduler: scheduler.reregister(request, lease))
        if back is not None:
            self.calls_made[f"reregister: {'alone' if alone else 'loss'}"] += 1
            self.waiting.pop(back.request_id, None)
            back = replace(back, lease_expiry_ms=self.now_ms + request.lease_ttl_ms)
            self.grants.append(back)
        self.model.reregistered(request, lease, back, self.now_ms)
        self.hear_of_grants(*([grant.candidate.pool] if back else []))

    @rule(rng=RANDOMS)
    def lose_everything(self, rng):
        """Rarely: what happens after it is only a part of life."""
        if rng.randint(0, 9):
            return
        self.calls_made["loss"] += 1
        self.advance(1_000)
        if self.url:
            self.runner.run(self.server.begin())
        self.twin.lose_everything()
        self.model.forget_everything()
        self.waiting.clear()

    # What must always hold.

    @invariant()
    def the_books_are_the_same(self):
        if self.url:
            found = self.runner.run(books_in_redis(self.server.client, POOLS, ADAPTERS, self.now_ms))
            assert found == books_in_memory(self.twin, POOLS, self.now_ms)

    @invariant()
    def the_model_agrees(self):
        states = self.both("budget_states", lambda scheduler: scheduler.budget_states(NAMES))
        self.model.check_budgets(dict(zip(NAMES, states, strict=True)))
        self.model.check_day(self.both("spend_today", lambda scheduler: scheduler.spend_today()))
        for pool in POOLS:
            load = self.both("pool_load", lambda scheduler, pool=pool: scheduler.pool_load(pool))
            self.model.check_pool(pool, load, self.now_ms)

    def teardown(self):
        try:
            self.everybody_gets_a_turn()
        finally:
            if self.url:
                self.runner.run(self.server.client.aclose())
                self.runner.close()

    def everybody_gets_a_turn(self):
        """Replicas come back, calls end: then no waiter is left behind, and no money or slot either."""
        self.reap(random.Random(1))
        for replica_id in self.replica_pools:
            self.report(replica_id, epoch=3, max_concurrency=1)
        for _ in range(len(self.model.open_calls) + 1):
            self.reap(random.Random(1))
            for name in [name for name in self.model.open_calls if self.model.calls[name].runs]:
                self.end(name, cost=1)
        without_replica = {
            name
            for name in self.model.open_calls
            if all(
                replica_id in self.requests[name].exclude_replicas
                for replica_id, pool in self.replica_pools.items()
                if pool == self.model.calls[name].pool
            )
        }
        assert without_replica == set(self.model.open_calls)
        for name in without_replica:
            self.end(name, cancelled=True)
        self.the_books_are_the_same()
        self.the_model_agrees()
        assert not any(self.model.held(name) for name in NAMES)


def without_the_overdue(books: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """Any call may notice that a replica is dead or a wait is over: then the next of that tenant is first.
    And any may ask for a pool that sleeps."""
    return {name: _live(value, now_ms) if name in POOLS else value for name, value in books.items()}


def _live(pool: dict[str, Any], now_ms: int) -> dict[str, Any]:
    return {
        **{part: rows for part, rows in pool.items() if part not in ("ready", "turns", "asked")},
        "lines": [member for member in pool["lines"] if pool["waits"][member.rpartition("|")[2]] > now_ms],
        "virtual": {name: value for name, value in pool["virtual"].items() if not name.startswith("weight|")},
    }


def finished(call: Coroutine[Any, Any, Any]) -> Any:
    """The twin awaits nothing."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the twin waited for something")


def live(schedulers: type[Schedulers], lives: int) -> None:
    """Hypothesis chooses: short lives, and the shortest one where a promise is broken."""
    run_state_machine_as_test(
        schedulers,
        settings=settings(
            max_examples=lives,
            stateful_step_count=RULES_PER_LIFE,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    tell(schedulers, lives)


WALK = {
    "admit_together": 8,
    "settle_together": 6,
    "admit": 12,
    "settle": 10,
    "time_passes": 8,
    "everybody_reports": 6,
    "poll": 5,
    "heartbeat": 4,
    "another_step": 5,
    "renew": 3,
    "reap": 3,
    "ask_again": 1,
    "deregister": 1,
    "rebuild": 1,
    "bring_back": 1,
    "lose_everything": 1,
}


def walk(schedulers: type[Schedulers], lives: int, rules: int) -> None:
    """Dice choose: long, busy lives."""
    for seed in range(lives):
        rng = random.Random(f"{SEED}/{seed}")
        machine = schedulers()
        done: list[str] = []
        try:
            machine.replicas_report(rng)
            for name in rng.choices(list(WALK), list(WALK.values()), k=rules):
                done.append(name)
                getattr(machine, name)(rng)
                machine.the_books_are_the_same()
                machine.the_model_agrees()
            machine.teardown()
        except Exception as error:
            error.add_note(f"life {SEED}/{seed} broke after {len(done)} rules: …, {', '.join(done[-5:])}")
            raise
    tell(schedulers, lives)


VIEWS = ("budget_states", "spend_today", "pool_load")


def tell(schedulers: type[Schedulers], lives: int) -> None:
    made = schedulers.calls_made
    steps = sum(count for name, count in made.items() if name not in VIEWS and ":" not in name)
    print(f"\n{steps} calls in {lives} lives: {dict(sorted(made.items()))}")


def variant(name: str, **changes: Any) -> type[Schedulers]:
    return type(name, (Schedulers,), {"calls_made": Counter(), **changes})


def test_the_twin_keeps_its_promises():
    live(variant("Twin"), EXAMPLES)


def test_the_twin_keeps_its_promises_in_long_lives():
    walk(variant("Twin"), EXAMPLES, rules=200)


@pytest.mark.contract
def test_the_scripts_do_what_the_twin_does(valkey_url, monkeypatch):
    stop_time(monkeypatch)
    live(variant("Both", url=valkey_url), EXAMPLES // 2)


@pytest.mark.contract
def test_the_scripts_do_what_the_twin_does_in_long_lives(valkey_url, monkeypatch):
    stop_time(monkeypatch)
    walk(variant("Both", url=valkey_url), EXAMPLES // 4, rules=100)


@pytest.mark.contract
def test_the_scripts_do_what_the_twin_does_in_a_crowd(valkey_url, monkeypatch):
    """More replicas than a choice looks at."""
    stop_time(monkeypatch)
    crowd = {f"s{number}": "small" for number in range(12)} | {"l0": "large", "l1": "large"}
    both = variant("Crowd", url=valkey_url, replica_pools=crowd, sees_all_replicas=False)
    walk(both, EXAMPLES // 8, rules=100)
