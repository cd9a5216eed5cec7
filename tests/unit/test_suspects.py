"""Who just failed is left alone for a moment, where somebody else can be asked."""

from __future__ import annotations

from dataclasses import replace

from cluster.scheduler.snapshot import FleetSnapshot
from deployments.gateway.suspects import SUSPECT_S, Suspects
from tests.builders import ready_replica

A, B = (replace(ready_replica(name), pool="small") for name in ("a", "b"))
BOTH = FleetSnapshot(ready={"small": (A, B)})
ONE = FleetSnapshot(ready={"small": (A,)})


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_replica_that_failed_is_avoided_for_a_while() -> None:
    clock = Clock()
    suspects = Suspects(clock)
    assert suspects.to_avoid(["small"], BOTH) == ()

    suspects.failed("a")
    assert suspects.to_avoid(["small", "large"], BOTH) == ("a",)

    clock.now_s += SUSPECT_S
    assert suspects.to_avoid(["small"], BOTH) == ()


def test_an_answer_clears_it() -> None:
    suspects = Suspects(Clock())
    suspects.failed("a")
    suspects.answered("a")
    assert suspects.to_avoid(["small"], BOTH) == ()


def test_the_last_one_of_a_pool_is_asked_all_the_same() -> None:
    suspects = Suspects(Clock())
    suspects.failed("a")
    assert suspects.to_avoid(["small"], ONE) == ()
    suspects.failed("b")
    assert suspects.to_avoid(["small"], BOTH) == ()
