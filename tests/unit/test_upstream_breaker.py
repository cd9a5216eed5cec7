"""An upstream that fails is left alone, then tried by one call."""

from __future__ import annotations

import pytest

from deployments.upstream.breaker import LONGEST_COOLDOWN_S, Circuit, CircuitBreaker


class Time:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def breaker(clock: Time) -> CircuitBreaker:
    return CircuitBreaker(3, 5.0, clock)


def test_it_opens_after_failures_in_a_row_only(breaker):
    for _ in range(5):
        breaker.failed("x")
        breaker.failed("x")
        breaker.succeeded()
    assert breaker.circuit is Circuit.CLOSED

    for _ in range(3):
        assert breaker.admit() == 0
        breaker.failed("it is down")
    assert breaker.circuit is Circuit.OPEN
    assert breaker.reason == "it is down"
    assert breaker.admit() == 5.0


def test_after_the_cooldown_one_call_tries_for_all(breaker, clock):
    breaker.trip("down")
    clock.now_s += 5
    assert breaker.circuit is Circuit.HALF_OPEN
    assert breaker.admit() == 0
    assert breaker.admit() > 0, "a second one waits for the first"

    breaker.succeeded()
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.admit() == breaker.admit() == 0


def test_a_trial_that_fails_doubles_the_cooldown_up_to_a_bound(breaker, clock):
    breaker.trip("down")
    waits_s = []
    for _ in range(10):
        clock.now_s += breaker.admit()
        assert breaker.admit() == 0
        breaker.failed("still down")
        waits_s.append(breaker.admit())
    assert waits_s[:3] == [10, 20, 40]
    assert waits_s[-1] == LONGEST_COOLDOWN_S

    clock.now_s += LONGEST_COOLDOWN_S
    breaker.admit()
    breaker.succeeded()
    breaker.trip("again")
    assert breaker.admit() == 5.0, "a success forgets the doubling"


def test_an_answer_that_began_closes_it_on_probation(breaker, clock):
    breaker.trip("down")
    clock.now_s += 5
    assert breaker.admit() == 0
    breaker.began()
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.admit() == 0, "others need not wait for its end"
    breaker.failed("broke off")
    assert breaker.admit() == 10, "one failure is enough, and it was no recovery"

    clock.now_s += 10
    breaker.admit()
    breaker.began()
    breaker.succeeded()
    breaker.failed("once")
    assert breaker.circuit is Circuit.CLOSED


def test_beginnings_do_not_make_up_for_failures(breaker):
    for _ in range(3):
        breaker.began()
        breaker.failed("broke off")
    assert breaker.circuit is Circuit.OPEN


def test_a_trial_whose_client_left_leaves_room_for_another(breaker, clock):
    breaker.trip("down")
    clock.now_s += 5
    assert breaker.admit() == 0
    breaker.abandoned()
    assert breaker.admit() == 0


def test_calls_from_before_it_opened_neither_close_nor_prolong_it(breaker, clock):
    breaker.trip("down")
    clock.now_s += 2
    breaker.succeeded()
    assert breaker.circuit is Circuit.OPEN
    breaker.failed("late")
    assert breaker.admit() == 3.0
    assert breaker.reason == "down"
