"""Keys, limits and budgets in both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Engine

from cluster.clock import ManualClock
from cluster.errors import InvalidRequest
from cluster.store import BudgetStore, KeyStore
from cluster.tenants import (
    MAX_MICRO_USD,
    ApiKey,
    Budget,
    BudgetWindow,
    KeyLimits,
    RateLimit,
    digest_of,
    key_owner,
    tenant_owner,
)
from cluster.types import PriorityClass

PEPPER = b"p" * 32
LIMITS = KeyLimits(RateLimit(60, 10), RateLimit(100_000, 20_000), PriorityClass.BATCH)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(engine: Engine, clock: ManualClock) -> KeyStore:
    return KeyStore(engine, PEPPER, clock)


@pytest.fixture
def budgets(engine: Engine) -> BudgetStore:
    return BudgetStore(engine)


def found(keys: KeyStore, key_text: str) -> ApiKey:
    key = keys.find(digest_of(key_text, PEPPER))
    assert key is not None
    return key


def works(keys: KeyStore, key_text: str) -> bool:
    return not found(keys, key_text).revoked


def day(owner: str, micro_usd: int = 5_000_000, *, hard: bool = True) -> Budget:
    return Budget(owner, BudgetWindow.DAY, micro_usd, hard)


def test_a_new_key_is_found_by_its_digest_only(keys: KeyStore) -> None:
    key_text = keys.create("acme", "first")

    key = found(keys, key_text)

    assert (key.tenant, key.name, key.revoked) == ("acme", "first", False)
    assert (key.limits, key.tenant_limits, key.budgets) == (KeyLimits(), KeyLimits(), ())
    assert keys.find(digest_of(key_text, b"another pepper")) is None
    assert keys.find(digest_of(key_text + "x", PEPPER)) is None


def test_the_text_of_a_key_is_nowhere_in_the_store(keys: KeyStore, engine: Engine) -> None:
    key_text = keys.create("acme", "first")

    with engine.connect() as connection:
        rows = [
            connection.execute(text(f"SELECT * FROM {name}")).all() for name in ("api_keys", "key_digests")
        ]

    assert key_text.removeprefix("sk-sprat-") not in repr(rows)


def test_a_key_comes_with_all_that_admission_needs(keys: KeyStore, budgets: BudgetStore) -> None:
    own = Budget("", BudgetWindow.MONTH, 100_000_000, hard=False)
    key_text = keys.create("acme", "first", limits=LIMITS, budgets=[own])
    keys.create("other", "not asked for", budgets=[own])
    keys.set_tenant_limits("acme", KeyLimits(tokens=RateLimit(5, 6)))
    budgets.set(day(tenant_owner("acme")))
    budgets.set(day(tenant_owner("other")))

    key = found(keys, key_text)

    assert key.limits == LIMITS
    assert key.tenant_limits == KeyLimits(tokens=RateLimit(5, 6))
    assert key.budgets == (
        Budget(key_owner(key.key_id), BudgetWindow.MONTH, 100_000_000, hard=False),
        day(tenant_owner("acme")),
    )


def test_a_key_that_cannot_have_its_budget_is_not_made(keys: KeyStore) -> None:
    with pytest.raises(InvalidRequest):
        keys.create("acme", "first", budgets=[Budget("", BudgetWindow.DAY, 0)])

    assert keys.list_keys() == ()


# Rotation and end.


def test_after_a_rotation_only_the_new_text_works(
    keys: KeyStore, budgets: BudgetStore, clock: ManualClock
) -> None:
    old = keys.create("acme", "first", limits=LIMITS)
    before = found(keys, old)
    budgets.set(day(key_owner(before.key_id)))

    new = keys.rotate(before.key_id)

    assert not works(keys, old)
    after = found(keys, new)
    assert (after.key_id, after.name, after.limits) == (before.key_id, "first", LIMITS)
    assert after.budgets == (day(key_owner(before.key_id)),)
    assert keys.record(before.key_id).old_text_until_ms is None


def test_both_texts_work_during_the_overlap(keys: KeyStore, clock: ManualClock) -> None:
    old = keys.create("acme", "first")
    key_id = found(keys, old).key_id

    new = keys.rotate(key_id, overlap_s=60)

    assert keys.record(key_id).old_text_until_ms == clock.now_ms() + 60_000
    clock.advance(59_999)
    assert works(keys, old)
    assert works(keys, new)
    clock.advance(1)
    assert not works(keys, old)
    assert works(keys, new)
    assert keys.record(key_id).old_text_until_ms is None


def test_a_second_rotation_does_not_lengthen_the_life_of_the_first_text(
    keys: KeyStore, clock: ManualClock
) -> None:
    first = keys.create("acme", "first")
    key_id = found(keys, first).key_id
    second = keys.rotate(key_id, overlap_s=60)
    third = keys.rotate(key_id, overlap_s=3600)

    clock.advance(60_000)

    assert [works(keys, each) for each in (first, second, third)] == [False, True, True]


def test_a_rotation_without_overlap_ends_an_overlap(keys: KeyStore) -> None:
    first = keys.create("acme", "first")
    key_id = found(keys, first).key_id
    second = keys.rotate(key_id, overlap_s=3600)
    third = keys.rotate(key_id)

    assert [works(keys, each) for each in (first, second, third)] == [False, False, True]


def test_a_revoked_key_ends_with_all_its_texts(keys: KeyStore, clock: ManualClock) -> None:
    old = keys.create("acme", "first")
    key_id = found(keys, old).key_id
    new = keys.rotate(key_id, overlap_s=60)

    keys.revoke(key_id)
    revoked_at_ms = clock.now_ms()
    clock.advance(1000)
    keys.revoke(key_id)

    assert [works(keys, each) for each in (old, new)] == [False, False]
    assert keys.record(key_id).revoked_at_ms == revoked_at_ms
    with pytest.raises(InvalidRequest, match="is revoked"):
        keys.rotate(key_id)


def test_of_rotations_at_once_one_text_survives(engine: Engine) -> None:
    keys = KeyStore(engine, PEPPER)
    key_id = found(keys, keys.create("acme", "first")).key_id
    together = Barrier(4)

    def rotate() -> str:
        together.wait()
        return keys.rotate(key_id)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            texts = [each.result() for each in [threads.submit(rotate) for _ in range(4)]]
            assert [works(keys, each) for each in texts].count(True) == 1


# Limits.


def test_limits_are_replaced_as_a_whole(keys: KeyStore) -> None:
    key_id = found(keys, keys.create("acme", "first", limits=LIMITS)).key_id

    keys.set_limits(key_id, KeyLimits(requests=RateLimit(1, 1)))

    assert keys.record(key_id).limits == KeyLimits(requests=RateLimit(1, 1))


def test_limits_of_tenants(keys: KeyStore) -> None:
    assert keys.tenant_limits() == {}

    keys.set_tenant_limits("beta", LIMITS)
    keys.set_tenant_limits("acme", LIMITS)
    keys.set_tenant_limits("acme", KeyLimits())

    assert keys.tenant_limits() == {"acme": KeyLimits(), "beta": LIMITS}


def test_keys_are_listed_by_tenant_and_age(keys: KeyStore, clock: ManualClock) -> None:
    for tenant, name in (("beta", "b1"), ("acme", "a1"), ("beta", "b2"), ("acme", "a2")):
        keys.create(tenant, name, budgets=[day("")] if name == "a2" else [])
        clock.advance(1)

    listed = keys.list_keys()

    assert [each.name for each in listed] == ["a1", "a2", "b1", "b2"]
    assert [len(each.budgets) for each in listed] == [0, 1, 0, 0]


def test_a_key_that_is_not_there(keys: KeyStore) -> None:
    keys.create("acme", "first")

    for act in (
        keys.record,
        keys.rotate,
        keys.revoke,
        lambda key_id: keys.set_limits(key_id, LIMITS),
    ):
        with pytest.raises(InvalidRequest, match=r"There is no key 'nothing'\. `sprat keys list` shows all"):
            act("nothing")


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("", "x"),
        ("a" * 65, "x"),
        ("a:b", "x"),
        (".a", "x"),
        ("a\n", "x"),
        ("é", "x"),
        ("a", ""),
        ("a", "x\n"),
    ],
)
def test_names_that_cannot_be_kept(keys: KeyStore, tenant: str, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is no name for a"):
        keys.create(tenant, name)


@pytest.mark.parametrize(
    "limit", [RateLimit(0, 1), RateLimit(1, 0), RateLimit(10**9 + 1, 1), RateLimit(1, 2**31)]
)
def test_rates_that_cannot_be_kept(keys: KeyStore, limit: RateLimit) -> None:
    with pytest.raises(InvalidRequest, match="A limit of requests is between"):
        keys.create("acme", "first", limits=KeyLimits(requests=limit))
    with pytest.raises(InvalidRequest, match="A limit of tokens is between"):
        keys.set_tenant_limits("acme", KeyLimits(tokens=limit))


# Budgets.


def test_budgets_are_set_replaced_listed_and_removed(keys: KeyStore, budgets: BudgetStore) -> None:
    key_id = found(keys, keys.create("acme", "first")).key_id
    month = Budget(key_owner(key_id), BudgetWindow.MONTH, MAX_MICRO_USD)
    for each in (month, day("tenant:acme", 1), day("tenant:acme", 2, hard=False), day("tenant:nobody.yet")):
        budgets.set(each)

    assert budgets.list_budgets() == (month, day("tenant:acme", 2, hard=False), day("tenant:nobody.yet"))

    budgets.remove("tenant:acme", BudgetWindow.DAY)

    assert budgets.list_budgets() == (month, day("tenant:nobody.yet"))
    with pytest.raises(
        InvalidRequest, match=r"tenant:acme has no day budget\. `sprat budget list` shows all"
    ):
        budgets.remove("tenant:acme", BudgetWindow.DAY)


@pytest.mark.parametrize(
    "owner", ["", "acme", "acme:x", "tenant:", "tenant:a:b", "key:", "key:XYZ", "key:'--"]
)
def test_owners_of_another_form(budgets: BudgetStore, owner: str) -> None:
    with pytest.raises(InvalidRequest):
        budgets.set(day(owner))


def test_a_budget_of_a_key_that_is_not_there(budgets: BudgetStore) -> None:
    with pytest.raises(InvalidRequest, match="There is no key 'abcdef'"):
        budgets.set(day("key:abcdef"))

    assert budgets.list_budgets() == ()


@pytest.mark.parametrize("micro_usd", [-1, 0, MAX_MICRO_USD + 1])
def test_amounts_that_cannot_be_kept(budgets: BudgetStore, micro_usd: int) -> None:
    with pytest.raises(InvalidRequest, match="A budget is between 1 and 9007199254740991 micro-USD"):
        budgets.set(day("tenant:acme", micro_usd))


def test_whether_any_key_is_without_a_budget(keys: KeyStore, budgets: BudgetStore) -> None:
    def unbudgeted() -> tuple[bool, bool]:
        return keys.any_unbudgeted(but_for_soft=False), keys.any_unbudgeted(but_for_soft=True)

    assert unbudgeted() == (False, False), "there is no key at all"
    own = found(keys, keys.create("acme", "own"))
    assert unbudgeted() == (True, True)
    budgets.set(day(key_owner(own.key_id), hard=False))
    assert unbudgeted() == (False, True)
    budgets.set(day(tenant_owner("acme")))
    assert unbudgeted() == (False, False)
    other = found(keys, keys.create("other", "free"))
    assert unbudgeted() == (True, True)
    keys.revoke(other.key_id)
    assert unbudgeted() == (False, False)
