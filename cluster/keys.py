"""Every Redis key of sprat. Nothing else formats a key.

All keys carry the hash tag `{sch}`: one decision touches one shard (SCHEDULER.md 1).
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from cluster.clock import DAY_MS

TAG = "{sch}"


def leases(pool: str) -> str:
    """zset: request id by lease expiry, ms of the server's clock."""
    return f"{TAG}:lease:{pool}"


def lease_details(pool: str) -> str:
    """hash: request id -> `tokens|fence|candidate|granted ms|sent to an engine|address|replica`. What a grant
    says and what ending a lease needs, so that no script has to build the name of a key. The replica is
    last: its id may contain anything."""
    return f"{TAG}:lease_info:{pool}"


def replicas(pool: str) -> str:
    """zset: ready replica by outstanding tokens; one at a cap is raised by 1e12, so that the free ones
    always come first."""
    return f"{TAG}:reps:{pool}"


def load(pool: str) -> str:
    """hash: `<replica>|<field>` for req, tok (outstanding, from leases with a fence above since), since (the
    fence when this epoch began), epoch, cap, tcap (tokens; 0: none), hb (last heartbeat, ms of the server's
    clock), addr, adp (names of its adapters), lds (adapters that load there). Also of replicas that are not
    ready, and of gone ones until their last lease has ended. `#service_us` is the mean time that a lease of
    the pool lasts, `#asked` counts calls that found the pool asleep and could not wait for it."""
    return f"{TAG}:load:{pool}"


def lines(pool: str) -> str:
    """zset, all scores 0: `<class>|<length of tenant>|<tenant>|<number>|<virtual cost>|<request id>` of those
    who wait, so each tenant's in the order they came."""
    return f"{TAG}:line:{pool}"


def queue(pool: str) -> str:
    """zset: `<class>|<length of tenant>|<tenant>|` of tenants with a waiter, by class * 2^50 + the virtual
    time at which their first one would end."""
    return f"{TAG}:q:{pool}"


def tickets(pool: str) -> str:
    """hash: waiting request -> JSON with all that a grant needs."""
    return f"{TAG}:q_info:{pool}"


def waits(pool: str) -> str:
    """zset: waiting request by the end of its wait, ms of the server's clock: its deadline, or its gateway's
    last sign of life plus the ticket TTL."""
    return f"{TAG}:q_wait:{pool}"


def virtual_time(pool: str) -> str:
    """hash: the `number` of the last waiter; per class the virtual `clock`, the sum of `weight`s and the
    `pace` of its grants; per tenant `last`, up to when it was served, and its `weight`. Gone when nobody
    waits."""
    return f"{TAG}:vt:{pool}"


@lru_cache(maxsize=4096)
def of_pool(pool: str) -> tuple[str, ...]:
    """The nine keys of a pool in the order that `lua/_pool.lua` expects."""
    return (
        leases(pool),
        lease_details(pool),
        replicas(pool),
        load(pool),
        lines(pool),
        queue(pool),
        tickets(pool),
        waits(pool),
        virtual_time(pool),
    )


def adapter_holders(pool: str, adapter: str) -> str:
    """zset: replica that holds the adapter, by its outstanding tokens as of its last heartbeat or grant."""
    return f"{TAG}:adp:{pool}:{adapter}"


def directory(pool: str) -> str:
    """set of the pool's replica ids; `reap` and `deregister` take the gone ones out."""
    return f"{TAG}:dir:{pool}"


def replica(replica_id: str) -> str:
    """string (JSON of `ReplicaState`), expires 3 s after the last heartbeat: the entry in the replica
    directory. Read for snapshots, never per request."""
    return f"{TAG}:rep:{replica_id}"


CONTROLLER = f"{TAG}:controller"
"""string with PX: the controller that is in charge."""

PLACEMENT = f"{TAG}:placement"
"""string (JSON): what the controller said with its last desired sets."""


def desired_adapters(replica_id: str) -> str:
    """string (JSON list): ids of the adapters that a replica shall hold, the most wanted first."""
    return f"{TAG}:want:{replica_id}"


def reservation(request_id: str) -> str:
    """string, kept 24 h: `open|step|pool|hold|note` or `waiting|…`, once over `settled|step|cost|saved`,
    `expired|step|charge|hold` or `cancelled|step|0|0` (micro-USD). A waiter that was granted a slot stays
    `waiting`: the lease decides about slots, this about money."""
    return f"{TAG}:resv:{request_id}"


def rate_bucket(bucket: str) -> str:
    """string with PX: theoretical arrival time of GCRA, us of the server's clock; absent: the bucket is
    full."""
    return f"{TAG}:gcra:{bucket}"


def budget(owner: str, window: str) -> str:
    """string: `<spent> <held>`, micro-USD."""
    return f"{TAG}:bud:{owner}:{window}"


def utc_day(time_ms: int) -> str:
    """The UTC day of a time in ms since the Unix epoch, `YYYYMMDD`."""
    return _day_name(time_ms // DAY_MS)


@lru_cache(maxsize=16)
def _day_name(day: int) -> str:
    return datetime.fromtimestamp(day * DAY_MS // 1000, UTC).strftime("%Y%m%d")


def stats(day: str) -> str:
    """hash of one UTC day, kept for 40: spent, saved (micro-USD), calls, calls:<tier>, refused:<reason>, lost
    (calls whose gateway died), overrun (micro-USD of usage above a hold, which nobody pays: a bug)."""
    return f"{TAG}:spend:{day}"


def idempotency(tenant: str, digest: str) -> str:
    """string with PX: what became of the first call under an Idempotency-Key."""
    return f"{TAG}:idem:{tenant}:{digest}"


def scaling(pool: str) -> str:
    """string (JSON) with PX: how many replicas the pool shall have, and why."""
    return f"{TAG}:scaling:{pool}"


def grants_channel(gateway: str) -> str:
    """channel: grants to the gateway's waiters."""
    return f"{TAG}:grants:{gateway}"


FENCE = f"{TAG}:fence"
"""integer: strictly rising, one per grant."""

EPOCH = f"{TAG}:epoch"
"""string: `open|<id>` or `rebuilding|<id>`; absent after data loss."""

GATEWAYS = f"{TAG}:gateways"
"""zset: gateway by the end of its registration, ms of the server's clock."""

EVENTS = f"{TAG}:ev"
"""stream, about the last 100,000 state changes; metadata only."""
