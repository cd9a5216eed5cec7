"""The life of an adapter version, as a table. The registry obeys it; who calls decides when.

    built ──► shadow ──► canary ──► live         steps may be left out on the way up
      ▲          │          │         │
      └──────────┴──────────┴─────────┘          superseded, rolled back or given up
    any but retired ──► retired                  for good

A version that another one supersedes goes back to `built`, not to `retired`: `name` leads to the new one at
once, but clients that pinned `name@n` go on, and a rollback needs no download.
"""

from __future__ import annotations

from enum import StrEnum

from cluster.adapters.errors import ForbiddenMove


class AdapterLife(StrEnum):
    """How far a version may be trusted with calls. Only `live` answers to the bare name."""

    BUILT = "built"
    """Registered; served to those who ask for `name@n`."""
    SHADOW = "shadow"
    """Gets copies of calls; its answers reach nobody."""
    CANARY = "canary"
    """Gets a share of the calls to the name."""
    LIVE = "live"
    RETIRED = "retired"
    """Never served again."""


MOVES: dict[AdapterLife, frozenset[AdapterLife]] = {
    AdapterLife.BUILT: frozenset(
        {AdapterLife.SHADOW, AdapterLife.CANARY, AdapterLife.LIVE, AdapterLife.RETIRED}
    ),
    AdapterLife.SHADOW: frozenset(
        {AdapterLife.BUILT, AdapterLife.CANARY, AdapterLife.LIVE, AdapterLife.RETIRED}
    ),
    AdapterLife.CANARY: frozenset({AdapterLife.BUILT, AdapterLife.LIVE, AdapterLife.RETIRED}),
    AdapterLife.LIVE: frozenset({AdapterLife.BUILT, AdapterLife.RETIRED}),
    AdapterLife.RETIRED: frozenset(),
}


def check_move(adapter_id: str, before: AdapterLife, after: AdapterLife) -> None:
    """Raises ForbiddenMove."""
    if after in MOVES[before]:
        return
    if before is AdapterLife.RETIRED:
        raise ForbiddenMove(
            f"{adapter_id} is retired, which is for good. Add its files again: they become a new version."
        )
    allowed = ", ".join(sorted(MOVES[before]))
    raise ForbiddenMove(f"{adapter_id} is {before} and cannot become {after}. It can become {allowed}.")
