"""An account's limits per minute, and what the upstream says of them in headers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.upstream.pacing import Pacer
from deployments.upstream.rate_headers import LONGEST_S, RateHeaders, Remaining, duration_s, rate_headers

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class Time:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def pacer(requests: int | None = None, tokens: int | None = None, **more) -> tuple[Pacer, Time]:
    clock = Time()
    return Pacer(requests, tokens, clock_s=clock, **more), clock


def test_requests_wait_for_the_oldest_to_leave_the_minute():
    paced, clock = pacer(requests=2)
    paced.take(1)
    clock.now_s += 10
    paced.take(1)
    assert paced.wait_s(1) == 50
    clock.now_s += 50
    assert paced.wait_s(1) == 0


def test_tokens_count_what_a_call_took_in_the_end():
    paced, clock = pacer(tokens=1000)
    charge = paced.take(900)
    assert paced.wait_s(200) == 60
    paced.correct(charge, 300)
    assert paced.wait_s(200) == 0
    clock.now_s += 61
    assert paced.wait_s(1000) == 0
    paced.correct(charge, 5000)
    assert paced.wait_s(1000) == 0, "a charge that has left the minute changes nothing"


def test_a_call_larger_than_the_limit_waits_for_an_empty_minute_only():
    paced, _ = pacer(tokens=1000)
    assert paced.wait_s(5000) == 0
    paced.take(10)
    assert paced.wait_s(5000) == 60


def test_replicas_share_the_limits_of_the_account():
    paced, _ = pacer(requests=10, share_of=5)
    paced.take(1)
    paced.take(1)
    assert paced.wait_s(1) == 60
    alone, _ = pacer(requests=1, share_of=5)
    assert alone.wait_s(1) == 0, "at least one call a minute"


def test_what_the_upstream_announces_holds_until_its_reset():
    paced, clock = pacer()
    paced.learn(RateHeaders(requests=Remaining(1, 6.0), tokens=Remaining(100, 3.0)))
    assert paced.wait_s(101) == 3
    assert paced.wait_s(100) == 0
    paced.take(60)
    assert paced.wait_s(10) == 6, "the one request is used"
    clock.now_s += 6
    assert paced.wait_s(10_000) == 0


def test_a_pause_holds_all_calls_and_a_shorter_one_does_not_end_it():
    paced, clock = pacer()
    paced.pause(5)
    paced.pause(1)
    assert paced.wait_s(0) == 5
    clock.now_s += 5
    assert paced.wait_s(0) == 0


@given(st.integers(1, 20), st.lists(st.tuples(st.floats(0, 40), st.integers(1, 50)), min_size=1, max_size=60))
def test_no_minute_ever_holds_more_than_the_limits(requests, calls):
    paced, clock = pacer(requests=requests, tokens=100)
    sent = []
    for gap_s, tokens in calls:
        clock.now_s += gap_s
        clock.now_s += paced.wait_s(tokens)
        while paced.wait_s(tokens) > 0:  # rounding
            clock.now_s += 1e-6
        paced.take(tokens)
        sent.append((clock.now_s, tokens))
    for start_s, _ in sent:
        inside = [tokens for at_s, tokens in sent if start_s <= at_s < start_s + 60]
        assert len(inside) <= requests
        assert sum(inside) <= 100


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3600), ("12", 12), ("0", 0)]
    + [(bad, None) for bad in ("", "soon", "-1", "1s 2s", "1x", "s", "9" * 20, "1e5", "nan", "inf")],
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


def test_headers_as_openai_sends_them():
    found = rate_headers(
        {
            "retry-after": "7",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        NOW,
    )
    assert found == RateHeaders(7.0, Remaining(59, 1.0), Remaining(149_984, 360.0))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Fri, 23 Nov 2096 11:00:00 GMT"}, LONGEST_S),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "whenever"}, None),
        ({"retry-after": "-5"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert rate_headers(headers, NOW).retry_after_s == seconds


def test_half_an_announcement_is_none():
    assert rate_headers({"x-ratelimit-remaining-requests": "0"}, NOW) == RateHeaders()
    assert (
        rate_headers({"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1s"}, NOW)
        == RateHeaders()
    )
