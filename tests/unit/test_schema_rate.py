"""Different schemas per key and minute."""

from __future__ import annotations

import pytest

from cluster.errors import RateLimited
from deployments.gateway.schema_rate import MAX_KEYS, SchemaRate


def test_the_same_schemas_are_free_and_new_ones_are_not() -> None:
    rate = SchemaRate(per_minute=2)
    for now_s in range(50):
        rate.check("k", f"schema-{now_s % 2}", now_s)

    with pytest.raises(RateLimited) as caught:
        rate.check("k", "third", 50)

    assert (caught.value.status, caught.value.code) == (429, "too_many_schemas")
    assert caught.value.retry_after_s == 58  # the older of the two was used last at 48
    rate.check("other key", "third", 50)
    rate.check("k", "schema-0", 50)


def test_after_a_minute_without_use_a_schema_makes_room() -> None:
    rate = SchemaRate(per_minute=1)
    rate.check("k", "a", 0)
    with pytest.raises(RateLimited):
        rate.check("k", "b", 60)

    rate.check("k", "b", 61)


def test_a_refused_schema_takes_no_room_and_keys_are_bounded() -> None:
    rate = SchemaRate(per_minute=1)
    rate.check("k", "a", 0)
    for _ in range(3):
        with pytest.raises(RateLimited):
            rate.check("k", "b", 1)
    rate.check("k", "a", 2)

    for number in range(MAX_KEYS):
        rate.check(f"key {number}", "a", 3)
    rate.check("k", "b", 3)  # forgotten: others came after it
