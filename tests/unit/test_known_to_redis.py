"""What may be booked: all before it is known to Redis, in whatever order it answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway import known_to_redis
from deployments.gateway.journal import Position
from deployments.gateway.known_to_redis import KnownToRedis

BEGIN = Position(1, 0)


def at(number: int) -> Position:
    return Position(1 + number // 10, number)


def test_nothing_behind_an_open_answer_is_sure() -> None:
    known = KnownToRedis(BEGIN)
    for number in (1, 2, 3):
        known.sent(at(number))
    known.answered(at(2), knows=True)
    assert known.until() == BEGIN
    assert known.is_known(at(2))
    assert known.is_on_the_way(at(1))

    known.answered(at(1), knows=True)
    assert known.until() == at(2)


def test_a_record_goes_with_its_batch() -> None:
    known = KnownToRedis(BEGIN)
    known.sent(at(4))
    known.sent(at(8))
    known.answered(at(8), knows=True)
    assert known.is_on_the_way(at(2))
    assert not known.is_known(at(4))
    assert known.is_known(at(5))
    assert not known.is_known(at(9))


def test_what_redis_does_not_know_stops_it_until_it_was_told() -> None:
    known = KnownToRedis(BEGIN)
    for number in (1, 2):
        known.sent(at(number))
    known.answered(at(1), knows=False)
    known.answered(at(2), knows=True)
    assert known.until() == BEGIN
    assert not known.is_on_the_way(at(1))
    assert not known.is_known(at(1))

    known.passed(at(1), is_end=False)
    assert known.until() == at(2)


def test_what_it_forgot_is_never_taken_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_to_redis, "REMEMBERED", 2)
    known = KnownToRedis(BEGIN)
    for number in (1, 2, 3):
        known.sent(at(number))
    for number in (1, 2, 3):
        known.answered(at(number), knows=True)
    assert known.until() == at(2)
    known.sent(at(4))
    known.answered(at(4), knows=True)
    assert known.until() == at(2), "the third may not be known"

    known.passed(at(4), is_end=True)
    known.sent(at(5))
    known.answered(at(5), knows=True)
    assert known.until() == at(5)


@given(st.data())
def test_sure_is_the_longest_beginning_that_is_known(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    answers = data.draw(st.permutations(range(1, count + 1)))
    answered = data.draw(st.integers(0, count))
    refused = data.draw(st.sets(st.integers(1, count)))
    known = KnownToRedis(BEGIN)
    for number in range(1, count + 1):
        known.sent(at(number))
    knows = set()
    for number in answers[:answered]:
        known.answered(at(number), knows=number not in refused)
        if number not in refused:
            knows.add(number)
        if data.draw(st.booleans()):
            known.until()

    first_gap = next(number for number in range(1, count + 2) if number not in knows)
    assert known.until() == (at(first_gap - 1) if first_gap > 1 else BEGIN)
    assert all(known.is_known(at(number)) == (number in knows) for number in range(1, count + 1))
