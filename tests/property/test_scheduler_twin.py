"""The twin in memory and the scripts on a real Valkey give the same answers to the same calls.

No time passes here: leases are long, and nobody dies of age.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cluster import keys
from cluster.clock import ManualClock
from cluster.scheduler.memory_scheduler import MemoryScheduler
from cluster.scheduler.redis_scheduler import RedisScheduler
from cluster.types import Grant, Price, ReplicaPhase, Settlement, Usage
from tests.builders import admit_request, candidate, ready_replica
from tests.conftest import patient_client

pytestmark = pytest.mark.contract

HOUR_MS = 3_600_000
POOLS = ("small", "large")
REPLICAS = {
    f"{pool[0]}{number}": ready_replica(f"{pool[0]}{number}", pool, max_concurrency=1 + number % 3)
    for pool in POOLS
    for number in range(10)
}

request_ids = st.sampled_from([f"r{number}" for number in range(24)])
replica_ids = st.sampled_from(sorted(REPLICAS))
phases = st.sampled_from([ReplicaPhase.READY] * 4 + [ReplicaPhase.STARTING, ReplicaPhase.DRAINING])
# Few values, so that ties happen.
tokens = st.sampled_from([0, 1, 2, 100, 10**9])
prices = st.builds(
    Price, st.sampled_from([0, 1, 999_999, 10**6, 10**8]), st.sampled_from([0, 400_000, 10**8 - 1])
)
usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))
candidates = st.lists(
    st.builds(
        candidate,
        st.sampled_from(POOLS),
        price=prices,
        adapter=st.sampled_from([None, "legal@1"]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
requests = st.builds(
    admit_request,
    request_ids,
    step=st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3]),
    candidates=candidates,
    tokens=tokens,
    large_price=prices,
    lease_ttl_ms=st.just(HOUR_MS),
    exclude_replicas=st.lists(replica_ids, max_size=3).map(tuple),
    spill=st.booleans(),
)


class Twins(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        clock = ManualClock()
        self.client = patient_client(self.url)
        self.redis = RedisScheduler(self.client, clock)
        self.memory = MemoryScheduler(clock)
        self.run(self.client.flushall())
        self.requests = {}
        self.grants: list[Grant] = []
        self.last_fence = 0
        self.charged: list[Settlement] = []

    def run(self, call):
        return self.runner.run(call)

    def both(self, call):
        """The reply of both to the same call, which must be the same but for the clock."""
        from_redis = self.run(call(self.redis))
        from_memory = self.run(call(self.memory))
        assert without_time(from_memory) == without_time(from_redis)
        return from_redis

    @initialize(ready=st.sets(replica_ids, min_size=1))
    def some_replicas_report(self, ready):
        for replica_id in sorted(ready):
            self.heartbeat(replica_id, epoch=1, phase=ReplicaPhase.READY)

    @rule(replica_id=replica_ids, epoch=st.sampled_from([1, 1, 1, 2]), phase=phases)
    def heartbeat(self, replica_id, epoch, phase):
        state = replace(REPLICAS[replica_id], epoch=epoch, phase=phase)
        self.both(lambda scheduler: scheduler.heartbeat(state))

    @rule(replica_id=replica_ids)
    def deregister(self, replica_id):
        self.both(lambda scheduler: scheduler.deregister(REPLICAS[replica_id]))

    # Many at once, or pools would never be full.
    @rule(batch=st.lists(requests, min_size=1, max_size=12))
    def admit_many(self, batch):
        for request in batch:
            self.admit(request)

    def admit(self, request):
        # A step that is repeated is repeated as it was: the protocol asks for that.
        request = self.requests.setdefault((request.request_id, request.step), request)
        answer = self.both(lambda scheduler: scheduler.admit(request))
        if isinstance(answer, Grant) and answer not in self.grants:
            assert answer.fence > self.last_fence
            self.last_fence = answer.fence
            self.grants.append(answer)

    @rule(data=st.data())
    def renew(self, data):
        grants = data.draw(st.lists(st.sampled_from(self.grants), max_size=5) if self.grants else st.just([]))
        self.both(lambda scheduler: scheduler.renew(grants, 2 * HOUR_MS))

    @rule(request_id=request_ids, pools=st.sampled_from([POOLS, POOLS[:1], ()]), usage=usages)
    def settle(self, request_id, pools, usage):
        settlement = self.both(lambda scheduler: scheduler.settle(request_id, pools, usage))
        if settlement is not None and settlement.first:
            self.charged.append(settlement)

    @rule()
    def reap(self):
        assert self.both(lambda scheduler: scheduler.reap(POOLS)) == 0

    @rule(pool=st.sampled_from(POOLS))
    def look(self, pool):
        self.both(lambda scheduler: scheduler.pool_load(pool))

    @invariant()
    def load_is_the_sum_over_live_leases_and_within_the_cap(self):
        for pool in POOLS:
            leases, load, expiries = self.run(self.books(pool))
            assert expiries == len(leases)
            sums = {replica_id: [0, 0] for replica_id in REPLICAS}
            for lease in leases:
                lease_tokens, fence, replica_id = lease.split("|", 2)
                if int(fence) > int(load.get(f"{replica_id}|since", 2**53)):
                    sums[replica_id][0] += 1
                    sums[replica_id][1] += int(lease_tokens)
            for replica_id, expected in sums.items():
                if f"{replica_id}|req" in load:
                    assert expected == [int(load[f"{replica_id}|req"]), int(load[f"{replica_id}|tok"])]
                    assert expected[0] <= int(load[f"{replica_id}|cap"])

    async def books(self, pool):
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.hvals(keys.lease_details(pool))
            pipeline.hgetall(keys.load(pool))
            pipeline.zcard(keys.leases(pool))
            return await pipeline.execute()

    @invariant()
    def spend_is_the_sum_of_the_settlements(self):
        spend = self.both(lambda scheduler: scheduler.spend_today())
        assert spend.spent_micro_usd == sum(one.cost_micro_usd for one in self.charged)
        assert spend.saved_micro_usd == sum(one.saved_micro_usd for one in self.charged)
        assert spend.calls == len(self.charged) == sum(count for _, count in spend.calls_by_tier)

    def teardown(self):
        self.run(self.client.aclose())
        self.runner.close()


def without_time(reply):
    return replace(reply, lease_expiry_ms=0) if isinstance(reply, Grant) else reply


def twins_on(url: str) -> type[Twins]:
    return type("TwinsOnThisServer", (Twins,), {"url": url})


@pytest.fixture(autouse=True)
def nobody_dies_of_age(monkeypatch):
    monkeypatch.setattr("cluster.scheduler.redis_scheduler.DEAD_AFTER_MS", HOUR_MS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_twins_agree_in_a_crowd(valkey_url, seed):
    """Long enough for what the short runs below hardly reach: many replicas, most of them full."""
    rng = random.Random(seed)
    twins = twins_on(valkey_url)()
    try:
        for replica_id in REPLICAS:
            twins.heartbeat(replica_id, epoch=1, phase=ReplicaPhase.READY)
        for turn in range(600):
            replica_id = rng.choice(list(REPLICAS))
            request_id = f"r{rng.randrange(turn + 1)}"
            match rng.choice(["admit"] * 7 + ["settle"] * 2 + ["heartbeat", "deregister"]):
                case "admit":
                    twins.admit(
                        admit_request(
                            f"r{turn}" if rng.random() < 0.5 else request_id,
                            step=rng.choice([0, 0, 1, 2]),
                            candidates=tuple(
                                candidate(rng.choice(POOLS)) for _ in range(rng.choice([1, 1, 2]))
                            ),
                            tokens=rng.choice([0, 1, 2, 100, 10**9]),
                            lease_ttl_ms=HOUR_MS,
                            exclude_replicas=tuple(rng.sample(list(REPLICAS), rng.choice([0, 0, 1, 4]))),
                            spill=rng.random() < 0.5,
                        )
                    )
                case "settle":
                    twins.settle(request_id, POOLS, Usage(rng.randrange(9), rng.randrange(9)))
                case "heartbeat":
                    twins.heartbeat(replica_id, epoch=rng.choice([1, 1, 2]), phase=ReplicaPhase.READY)
                case "deregister":
                    twins.deregister(replica_id)
                    twins.heartbeat(replica_id, epoch=1, phase=ReplicaPhase.READY)
            if turn % 20 == 0:
                twins.load_is_the_sum_over_live_leases_and_within_the_cap()
                twins.spend_is_the_sum_of_the_settlements()
    finally:
        twins.teardown()


@pytest.mark.timeout(600)  # 10 s when it passes; Hypothesis shrinks a failure for up to 5 minutes
def test_twins_agree(valkey_url):
    run_state_machine_as_test(
        twins_on(valkey_url),
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
