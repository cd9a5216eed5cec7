"""How far tenants of one class may drift apart.

Self-clocked fair queueing serves the tenant with the least F = S + tokens per weight of its first waiter,
where S is the F of what the tenant was served last, or the clock where it began to wait later; the clock is
the largest F that was served. So while a tenant waits, its S is not above the clock; nor is it more than L
below, with L its largest request per weight, because the clock does not pass an F that waits, and a first
waiter that leaves unserved leaves S as it was. S grows by what the tenant is given, per weight. Therefore:

* in any interval in which both always wait: |W_i / w_i - W_j / w_j| <= L_i + L_j (Golestani 1994);
* from the moment at which both began to wait, in an empty queue: at most the larger of L_i and L_j, because
  both S start at 0 and end at most L_i or L_j below the same clock;
* who waits with t tokens is passed by another tenant with t / w of its weight and one request more, at most.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import count, cycle, pairwise, zip_longest

import hypothesis.strategies as st
from hypothesis import given, settings

from cluster.clock import ManualClock
from cluster.scheduler.memory_scheduler import MemoryScheduler
from cluster.types import Grant, Waiting
from tests.builders import NOON_MS, PATIENT, admit_request, ready_replica, settle_request
from tests.property.test_scheduler_twin import EXAMPLES, finished

LARGEST = 200
WEIGHTS = (1, 2, 4, 5)
EXACT = 20  # virtual time has no fractions for these, nor have shares times this
TENANTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(WEIGHTS), min_size=2)
TOKENS = st.lists(st.integers(1, LARGEST), min_size=4, max_size=40)


class OneSlot:
    """Serves one call at a time, as fast as they can be asked for."""

    def __init__(self) -> None:
        self.served: list[tuple[str, int]] = []
        self._granted: list[str] = []
        self.twin = MemoryScheduler(
            ManualClock(NOON_MS), lambda _, grant: self._granted.append(grant.request_id)
        )
        self._asked: dict[str, tuple[str, int]] = {}
        finished(self.twin.heartbeat(ready_replica("a", max_concurrency=1)))
        self._running = "first"
        assert isinstance(finished(self.twin.admit(admit_request("first"))), Grant)

    def ask(self, tenant: str, weight: int, tokens: int) -> None:
        request_id = f"{tenant}{len(self._asked)}"
        self._asked[request_id] = (tenant, tokens)
        request = admit_request(request_id, tenant=tenant, weight=weight, tokens=tokens, queue=PATIENT)
        assert isinstance(finished(self.twin.admit(request)), Waiting)

    def leave(self, tenant: str) -> None:
        """The first of a tenant, unserved."""
        queue = self.twin._pools["small"].queue
        first = next(name for name in queue.tickets if self._asked[name][0] == tenant)
        finished(self.twin.settle(replace(settle_request(first), cancelled=True)))

    def serve_next(self) -> str:
        """The tenant."""
        finished(self.twin.settle(settle_request(self._running)))
        (self._running,) = self._granted
        self._granted.clear()
        self.served.append(self._asked[self._running])
        return self.served[-1][0]


@settings(max_examples=5 * EXAMPLES, deadline=None)
@given(
    tenants=TENANTS,
    tokens=TOKENS,
    backlog=st.integers(1, 3),
    leaving=st.lists(st.sampled_from("abcd"), max_size=60),
)
def test_tenants_that_always_wait_share_by_weight(tenants, tokens, backlog, leaving):
    """Also where waiters leave unserved: that is no service."""
    slot = OneSlot()
    sizes = defaultdict(lambda: cycle(tokens))
    for tenant, weight in tenants.items():
        for _ in range(backlog + 1):
            slot.ask(tenant, weight, next(sizes[tenant]))
    for _, leaver in zip_longest(range(60), leaving):
        tenant = slot.serve_next()
        slot.ask(tenant, tenants[tenant], next(sizes[tenant]))
        if leaver in tenants:
            slot.ask(leaver, tenants[leaver], next(sizes[leaver]))
            slot.leave(leaver)

    largest = {tenant: max(tokens) * EXACT // weight for tenant, weight in tenants.items()}
    given_so_far = [dict.fromkeys(tenants, 0)]
    for tenant, size in slot.served:
        before = given_so_far[-1]
        given_so_far.append({**before, tenant: before[tenant] + size * EXACT // tenants[tenant]})
    for one, other in pairwise(sorted(tenants)):
        lead = [at[one] - at[other] for at in given_so_far]
        assert max(map(abs, lead)) <= max(largest[one], largest[other])
        assert max(lead) - min(lead) <= largest[one] + largest[other]


@settings(max_examples=5 * EXAMPLES, deadline=None)
@given(
    tokens=st.integers(1, 60),
    weight=st.sampled_from(WEIGHTS),
    others=TENANTS,
    sizes=TOKENS,
    begun=st.integers(0, 30),
)
def test_nobody_is_starved_by_a_flood(tokens, weight, others, sizes, begun):
    """Of the others, and of ever new tenants: each of those passes with one call at most."""
    slot = OneSlot()
    flood = cycle(sizes)
    for tenant, share in others.items():
        for _ in range(3):
            slot.ask(tenant, share, next(flood))
    for _ in range(begun):
        slot.ask(tenant := slot.serve_next(), others[tenant], next(flood))
    already = len(slot.served)
    slot.ask("victim", weight, tokens)
    for number in count():
        tenant = slot.serve_next()
        if tenant == "victim":
            break
        if tenant in others:
            slot.ask(tenant, others[tenant], next(flood))
        if number < 50:
            slot.ask(f"new{number}", 1, next(flood))

    passed = defaultdict(int)
    for tenant, size in slot.served[already:]:
        passed[tenant] += size
    assert passed.pop("victim") == tokens
    for tenant, given_tokens in passed.items():
        share = others.get(tenant, 1)
        assert given_tokens * weight <= tokens * share + max(sizes) * weight
