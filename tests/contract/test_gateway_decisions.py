"""From a call to its decision and its feedback, through a real gateway and its ledger's writer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.decision_log import OutcomeSource
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from tests.gateways import GatewayUnderTest, cost_of, running_gateway

pytestmark = pytest.mark.contract


@pytest.fixture
async def gateway(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(valkey_url, tmp_path, router__policy="random") as running:
        await running.add_engine("specialist", "s1")
        await running.add_engine("reserve", "r1")
        yield running


@pytest.fixture
def log(gateway: GatewayUnderTest, tmp_path: Path) -> DecisionLog:
    return DecisionLog(open_store(sqlite_url(tmp_path / "store.sqlite")))


async def call(gateway: GatewayUnderTest, **body: Any) -> tuple[dict[str, str], dict[str, Any]]:
    async with gateway.post({"max_tokens": 4} | body) as response:
        assert response.status == 200
        return {k.lower(): v for k, v in response.headers.items()}, await response.json()


async def test_every_call_leaves_its_decision(gateway: GatewayUnderTest, log: DecisionLog) -> None:
    headers, _ = await call(gateway, metadata={"task": "classify"})
    await gateway.until_settled()

    found = log.find(headers["x-sprat-request-id"])

    assert found is not None
    assert (found.tenant, found.policy, found.reason) == ("tenant", "random", headers["x-sprat-reason"])
    assert (found.target, found.probability) == (headers["x-sprat-tier"], 0.5)
    assert {each.target: each.probability for each in found.considered} == {"small": 0.5, "large": 0.5}
    assert found.features["task"] == "classify"
    (step,) = found.steps
    assert (step.tier, step.model) == (headers["x-sprat-tier"], headers["x-sprat-model"])
    assert step.replica == headers["x-sprat-replica"]
    assert step.cost_micro_usd == round(float(headers["x-sprat-cost-usd"]) * 1e6)
    assert found.large_micro_usd == step.cost_micro_usd + round(float(headers["x-sprat-saved-usd"]) * 1e6)


async def test_a_model_that_was_asked_for_is_no_decision_of_a_policy(
    gateway: GatewayUnderTest, log: DecisionLog
) -> None:
    named, answer = await call(gateway, model="small")
    async with gateway.post({"max_tokens": 4}, x_sprat_tier="small") as response:
        by_header = response.headers["x-sprat-request-id"]
    await gateway.until_settled()

    for request_id in (named["x-sprat-request-id"], by_header):
        found = log.find(request_id)
        assert found is not None
        assert found.asked_for
        assert found.probability == 1
    assert found.cost_micro_usd == cost_of(answer)


async def test_feedback_right_after_the_call(gateway: GatewayUnderTest, log: DecisionLog) -> None:
    headers, _ = await call(gateway)
    request_id = headers["x-sprat-request-id"]

    async with gateway.session.post(
        f"{gateway.url}/feedback",
        json={"request_id": request_id, "score": 0.25, "label": "half"},
        headers={"authorization": f"Bearer {gateway.key}"},
    ) as response:
        status, kept = response.status, await response.json()

    assert (status, kept["score"], kept["label"]) == (200, 0.25, "half")
    assert log.outcomes_of(request_id)[OutcomeSource.FEEDBACK].score == 0.25


async def test_feedback_belongs_to_the_tenant(gateway: GatewayUnderTest) -> None:
    headers, _ = await call(gateway)
    await gateway.until_settled()
    same_tenant, _ = gateway.new_key(tenant="tenant")
    other_tenant, _ = gateway.new_key(tenant="other")

    answers = []
    for key, request_id in (
        (same_tenant, headers["x-sprat-request-id"]),
        (other_tenant, headers["x-sprat-request-id"]),
        (other_tenant, "req-" + "0" * 24),
        ("wrong", headers["x-sprat-request-id"]),
    ):
        begin_s = time.monotonic()
        async with gateway.session.post(
            f"{gateway.url}/feedback",
            json={"request_id": request_id, "score": 1},
            headers={"authorization": f"Bearer {key}"},
        ) as response:
            answers.append((response.status, await response.json(), time.monotonic() - begin_s > 1.9))

    assert [status for status, _, _ in answers] == [200, 404, 404, 401]
    assert answers[1] == answers[2], "nor does the time tell"
