"""Admissions of one turn of the loop share a script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cluster.errors import SchedulerUnavailable
from cluster.scheduler.gathering import AT_ONCE, Gathering
from cluster.scheduler.together import is_plain
from cluster.types import AdmitRequest, Grant
from tests.builders import admit_request, candidate


class Scripts:
    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.away = False

    async def together(self, requests: Sequence[AdmitRequest]) -> list[Grant | None]:
        self.batches.append([each.request_id for each in requests])
        await asyncio.sleep(0)
        if self.away:
            raise SchedulerUnavailable("away", retry_after_s=1.0)
        return [
            None
            if each.request_id == "odd"
            else Grant(each.request_id, 0, each.candidates[0], "r", "127.0.0.1:1", 1, 1)
            for each in requests
        ]


def of(request_id: str, pool: str = "small") -> AdmitRequest:
    return admit_request(request_id, candidates=(candidate(pool),))


async def test_those_of_a_turn_share_a_script_per_pool() -> None:
    scripts = Scripts()
    gathering = Gathering(scripts.together)
    asked = [of("a"), of("b"), of("odd"), of("c", "large"), of("d")]
    answers = await asyncio.gather(*map(gathering.admit, asked))
    assert scripts.batches == [["a", "b", "odd", "d"], ["c"]]
    assert [answer and answer.request_id for answer in answers] == ["a", "b", None, "c", "d"]


async def test_one_alone_waits_for_nobody() -> None:
    scripts = Scripts()
    gathering = Gathering(scripts.together)
    for number in range(3):
        assert await gathering.admit(of(f"r{number}")) is not None
    assert scripts.batches == [["r0"], ["r1"], ["r2"]]


async def test_a_script_is_never_long() -> None:
    scripts = Scripts()
    gathering = Gathering(scripts.together)
    await asyncio.gather(*(gathering.admit(of(f"r{number}")) for number in range(2 * AT_ONCE + 1)))
    assert [len(batch) for batch in scripts.batches] == [AT_ONCE, AT_ONCE, 1]


async def test_who_has_left_is_not_admitted() -> None:
    scripts = Scripts()
    gathering = Gathering(scripts.together)
    tasks = [asyncio.create_task(gathering.admit(of(name))) for name in "abc"]
    asyncio.get_running_loop().call_soon(tasks[1].cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert scripts.batches == [["a", "c"]]


async def test_each_hears_of_a_store_that_is_away_by_an_error_of_its_own() -> None:
    scripts = Scripts()
    scripts.away = True
    gathering = Gathering(scripts.together)
    others = await asyncio.gather(*(gathering.admit(of(name)) for name in "abc"), return_exceptions=True)
    assert all(isinstance(each, SchedulerUnavailable) for each in others)
    assert others[0] is not others[1], "callers write their own headers on it"


@pytest.mark.parametrize(
    ("request_", "plain"),
    [
        (of("r"), True),
        (admit_request("r", candidates=(candidate("small"), candidate("large"))), True),
        (admit_request("r", candidates=(candidate("small", adapter="a@1"),)), False),
        (admit_request("r", step=1), False),
        (admit_request("r", exclude_replicas=("x",)), False),
        (admit_request("r", candidates=(candidate("small"), candidate("large")), spill=True), False),
    ],
)
def test_what_is_plain(request_: AdmitRequest, *, plain: bool) -> None:
    assert is_plain(request_) is plain
