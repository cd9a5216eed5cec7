"""From a key and a decision to rates, budgets, hold, queue and placement."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cluster.router.router import Router
from cluster.router.view import FleetView
from cluster.scheduler.key_terms import KeyTerms, increment_us
from cluster.scheduler.terms import AdmissionTerms
from cluster.tenants import ApiKey, Budget, BudgetWindow, KeyLimits, RateLimit, window_name
from cluster.types import BudgetLine, PriorityClass, RequestFeatures
from tests.configs import config_of, simulated

NOV_22_MS = 1_795_305_600_000  # 2026-11-22T00:00:00Z
CONFIG = config_of(simulated())
FEATURES = RequestFeatures(
    model="small",
    prompt_tokens_estimate=25,
    longest_prompt_tokens=25,
    max_tokens=10,
    conversation="c",
    shared_tokens_estimate=10,
)


def key(**changes) -> ApiKey:
    fields = {"digest": "d" * 64, "key_id": "ab12", "tenant": "acme", "name": "test"}
    return ApiKey(**(fields | changes))


def request(api_key=None, features=FEATURES, config=CONFIG, **more):
    terms = AdmissionTerms(config, "gateway-1", 15_000)
    decision = Router.of(config).route(features)
    return terms.request("r", api_key or key(), decision, features, **({"now_ms": NOV_22_MS} | more))


@pytest.mark.parametrize(
    ("wanted", "of_key", "of_tenant", "given"),
    [
        (None, "interactive", "interactive", "normal"),
        ("interactive", "interactive", "interactive", "interactive"),
        ("interactive", "normal", "interactive", "normal"),
        ("interactive", "interactive", "batch", "batch"),
        ("batch", "interactive", "interactive", "batch"),
        (None, "batch", "interactive", "batch"),
    ],
)
def test_class_is_the_wish_bounded_by_key_and_tenant(wanted, of_key, of_tenant, given):
    api_key = key(
        limits=KeyLimits(highest_class=PriorityClass(of_key)),
        tenant_limits=KeyLimits(highest_class=PriorityClass(of_tenant)),
    )
    assert request(api_key, wanted=PriorityClass(wanted) if wanted else None).priority == given


def test_increments_are_rounded_up_so_that_high_rates_are_never_free():
    assert increment_us(1, RateLimit(60, 60)) == 1_000_000
    assert increment_us(1, RateLimit(10**9, 10**9)) == 1
    assert increment_us(0, RateLimit(60, 60)) == 0
    assert increment_us(3, RateLimit(7, 7)) == -(-3 * 60_000_000 // 7)


def test_rates_of_key_and_tenant():
    limits = KeyLimits(requests=RateLimit(60, 10), tokens=RateLimit(6000, 600))
    api_key = key(limits=limits, tenant_limits=KeyLimits(tokens=RateLimit(60_000, 60_000)))

    terms = KeyTerms(api_key)
    charges = {each.bucket: (each.increment_us, each.burst_us) for each in terms.rate_charges(100)}

    assert charges == {
        "requests:key:ab12": (1_000_000, 10_000_000),
        "tokens:key:ab12": (1_000_000, 6_000_000),
        "tokens:tenant:acme": (100_000, 60_000_000),
    }
    assert terms.rate_corrections(100, 30) == (
        ("tokens:key:ab12", 700_000),
        ("tokens:tenant:acme", 70_000),
    )
    assert terms.rate_corrections(100, 200)[0] == ("tokens:key:ab12", -1_000_000)
    assert dict(terms.rate_refunds(100)) == {bucket: taken for bucket, (taken, _) in charges.items()}


def test_budgets_in_the_windows_of_the_call():
    api_key = key(
        budgets=(
            Budget("key:ab12", BudgetWindow.DAY, 5),
            Budget("tenant:acme", BudgetWindow.MONTH, 7),
            Budget("tenant:acme", BudgetWindow.TOTAL, 9),
        )
    )
    day_ms = 86_400_000
    assert request(api_key).budgets == (
        BudgetLine("key:ab12", "day:20261122", 5, 3 * day_ms),
        BudgetLine("tenant:acme", "month:202611", 7, 40 * day_ms),
        BudgetLine("tenant:acme", "total", 9, 0),
    )
    assert request(api_key, now_ms=NOV_22_MS - 1).budgets[0].window == "day:20261121"


def test_windows_are_utc():
    assert window_name(BudgetWindow.DAY, NOV_22_MS) == "day:20261122"
    assert window_name(BudgetWindow.MONTH, NOV_22_MS + 9 * 86_400_000) == "month:202612"
    assert window_name(BudgetWindow.TOTAL, 0) == "total"


def test_hold_is_the_dearest_alternative_with_an_upper_bound_of_the_prompt():
    held = request(features=replace(FEATURES, model="auto", task="classify"))
    small, large = FleetView.of(CONFIG).pools[0].price, FleetView.of(CONFIG).pools[1].price
    assert [each.tier for each in held.candidates] == ["small", "large"]
    # 4 bytes per estimated token and 256 for what a chat template adds; the small context holds 256 in all.
    assert held.candidates[0].worst_case_micro_usd == small.cost_micro_usd(256, 10)
    assert held.hold_micro_usd == large.cost_micro_usd(4 * 25 + 256, 10)


def test_hold_of_several_answers():
    features = RequestFeatures(
        model="large", prompt_tokens_estimate=25, longest_prompt_tokens=25, max_tokens=10, sequences=3
    )
    price = FleetView.of(CONFIG).pools[1].price
    assert request(features=features).hold_micro_usd == price.cost_micro_usd(356, 30)


def test_without_max_tokens_the_default_of_the_pool_is_held():
    features = RequestFeatures(model="large", prompt_tokens_estimate=25, longest_prompt_tokens=25)
    price = FleetView.of(CONFIG).pools[1].price
    assert request(features=features).hold_micro_usd == price.cost_micro_usd(356, 64)
    assert request(features=features).tokens == 25 + 64


def test_pending_tokens_always_count_and_urgency_makes_them_dearer():
    price = {each: request(wanted=each).placements[0].per_token_nano_usd for each in PriorityClass}
    # 0.36 USD per hour = 100 micro-USD per second, at 100 output tokens per second: 1 micro-USD per token.
    assert price == {PriorityClass.INTERACTIVE: 1000, PriorityClass.NORMAL: 100, PriorityClass.BATCH: 1}


def test_what_a_conversation_shares_counts_only_on_its_replica_and_an_adapter_only_where_one_is_asked_for():
    plain = request().placements[0]
    assert (plain.affine_replica, plain.credit_nano_usd, plain.cold_nano_usd) == ("", 0, 0)

    affine = request(affine_replica=lambda pool, name: f"{pool}-{name}").placements[0]
    assert affine.affine_replica == "specialist-c"
    # 10 prompt tokens: 1 micro-USD each at most, and their 10 ms at the price of a normal call's time.
    assert affine.credit_nano_usd == 1000 + round(10_000 * 10 / 1000)

    first = replace(FEATURES, shared_tokens_estimate=0)
    affine = request(features=first, affine_replica=lambda pool, _: f"{pool}-7").placements[0]
    assert affine.credit_nano_usd == 1, "decides between equal replicas, and nothing else"

    adapter = RequestFeatures(
        model="intent", prompt_tokens_estimate=25, longest_prompt_tokens=25, max_tokens=1
    )
    assert request(features=adapter).placements[0].cold_nano_usd == 20_000


def test_the_queue_follows_the_configuration():
    assert request(wanted=PriorityClass.INTERACTIVE).queue.longest_wait_ms == 10_000
    assert request(config=config_of(simulated(scheduler__longest_queue=0))).queue is None
    assert request(deadline_ms=700).deadline_ms == 700
    assert request().deadline_ms == 600_000


@pytest.mark.parametrize(
    ("replicas", "wake_ms"),
    [
        (2, 0),
        ({"min": 1, "max": 2, "cold_start_s": 20}, 0),
        ({"min": 0, "max": 2, "cold_start_s": 20.5}, 20_500),
    ],
)
def test_only_a_pool_that_may_sleep_is_waited_for(replicas, wake_ms):
    config = config_of(simulated(pools__specialist__replicas=replicas))

    features = replace(FEATURES, model="auto", task="classify")

    placements = request(features=features, config=config).placements

    assert [each.wake_ms for each in placements] == [wake_ms, 0]


def test_the_note_is_enough_to_book_the_call_of_a_dead_gateway():
    assert json.loads(request().note) == {
        "tenant": "acme",
        "key_id": "ab12",
        "tier": "small",
        "pool": "specialist",
        "model": "tiny",
        "admitted_ms": NOV_22_MS,
    }
