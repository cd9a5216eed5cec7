"""Every Redis key of sprat. Nothing else formats a key.

All keys carry the hash tag `{sch}`: one decision touches one shard (SCHEDULER.md 1).
"""

from __future__ import annotations

from datetime import UTC, datetime

TAG = "{sch}"


def leases(pool: str) -> str:
    """zset: request id by lease expiry, ms of the server's clock."""
    return f"{TAG}:lease:{pool}"


def lease_details(pool: str) -> str:
    """hash: request id -> `tokens|fence|replica`. What ending a lease needs, so that no script has
    to build the name of a key. The replica is last: its id may contain anything."""
    return f"{TAG}:lease_info:{pool}"


def replicas(pool: str) -> str:
    """zset: ready replica by outstanding tokens; one at its request cap is raised by 1e12, so that the
    free ones always come first."""
    return f"{TAG}:reps:{pool}"


def load(pool: str) -> str:
    """hash: `<replica>|<field>` for req, tok (outstanding, from leases with a fence above since), since (the
    fence when this epoch began), epoch, cap, hb (last heartbeat, ms of the server's clock), addr. Also of
    replicas that are not ready, and of gone ones until their last lease has ended."""
    return f"{TAG}:load:{pool}"


def directory(pool: str) -> str:
    """set of the pool's replica ids; `reap` and `deregister` take the gone ones out."""
    return f"{TAG}:dir:{pool}"


def replica(replica_id: str) -> str:
    """string (JSON of `ReplicaState`), expires 3 s after the last heartbeat: the entry in the replica
    directory. Read for snapshots, never per request."""
    return f"{TAG}:rep:{replica_id}"


def reservation(request_id: str) -> str:
    """hash, kept 24 h: state (open, settled), the last step and its answer (candidate, pool, tier, replica,
    address, fence, expiry), frozen prices (micro-USD per million tokens), and once settled cost and saved.
    A lease that expires leaves it open: the lease decides about slots, this about money."""
    return f"{TAG}:resv:{request_id}"


def utc_day(time_ms: int) -> str:
    """The UTC day of a time in ms since the Unix epoch, `YYYYMMDD`."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y%m%d")


def spend(day: str) -> str:
    """hash of one UTC day: spent, saved (micro-USD), calls, calls:<tier>."""
    return f"{TAG}:spend:{day}"


FENCE = f"{TAG}:fence"
"""integer: strictly rising, one per grant."""
