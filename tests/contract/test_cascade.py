"""Cascades over real HTTP: a small tier's draft is verified before it leaves, or the large one answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.tenants import Budget, BudgetWindow
from cluster.types import SettleRequest
from tests.gateways import FAST, GatewayUnderTest, cost_of, running_gateway

pytestmark = pytest.mark.contract

REFUSES_ALL = {"kind": "confidence", "mean_logprob": 0.0}
"""The simulated engine is never quite sure."""

ACCEPTS_ALL = {"kind": "confidence", "mean_logprob": -100.0}


def large_cost_of(answer: dict[str, Any]) -> int:
    """Micro-USD on the large tier of tests/configs.py."""
    usage = answer["usage"]
    return int(usage["prompt_tokens"] * 10 + usage["completion_tokens"] * 100)


Started = Callable[..., AbstractAsyncContextManager[GatewayUnderTest]]


@pytest.fixture
def cascade(redis_scheduler: object, valkey_url: str, tmp_path: Path) -> Started:
    def start(*verify: dict[str, Any], **more: Any) -> AbstractAsyncContextManager[GatewayUnderTest]:
        policy = {"kind": "cascade", "to": "large", "verify": list(verify)} | more
        return running_gateway(
            valkey_url, tmp_path, router__policy="careful", router__policies={"careful": policy}
        )

    return start


async def both(gateway: GatewayUnderTest, **small: Any) -> GatewayUnderTest:
    await gateway.add_engine("specialist", "s1", **small)
    await gateway.add_engine("reserve", "r1")
    return gateway


async def test_an_accepted_draft_is_the_answer_and_the_only_cost(cascade: Started) -> None:
    async with cascade(ACCEPTS_ALL) as gateway:
        await both(gateway)

        async with gateway.post({"max_tokens": 6}) as response:
            answer = await response.json()

        assert (response.status, response.headers["x-sprat-tier"]) == (200, "small")
        assert response.headers["x-sprat-reason"] == "careful:always_small"
        assert answer["choices"][0]["logprobs"] is None, "nobody asked for them but us"
        assert float(response.headers["x-sprat-cost-usd"]) == pytest.approx(cost_of(answer) / 1e6)


async def test_a_client_that_asks_for_logprobs_gets_them(cascade: Started) -> None:
    async with cascade(ACCEPTS_ALL) as gateway:
        await both(gateway)

        _, answer = await gateway.ask({"max_tokens": 3, "logprobs": True, "top_logprobs": 2})

        tokens = answer["choices"][0]["logprobs"]["content"]
        assert [len(each["top_logprobs"]) for each in tokens] == [2, 2, 2]


async def test_a_refused_draft_goes_up_and_is_paid(cascade: Started) -> None:
    async with cascade(REFUSES_ALL) as gateway:
        await both(gateway)
        key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, 10_000_000))

        async with gateway.post({"max_tokens": 6}, key=key) as response:
            answer = await response.json()

        assert (response.status, response.headers["x-sprat-tier"]) == (200, "large")
        assert response.headers["x-sprat-reason"].startswith("careful:always_small;confidence:mean")
        draft = cost_of(answer)  # both say as much
        cost = draft + large_cost_of(answer)
        assert float(response.headers["x-sprat-cost-usd"]) == pytest.approx(cost / 1e6)
        assert float(response.headers["x-sprat-saved-usd"]) == pytest.approx(-draft / 1e6)
        await gateway.until_settled()
        spent, held = await gateway.budget(f"key:{key_id}")
        assert held == 0
        assert spent == round(1e6 * float(response.headers["x-sprat-cost-usd"]))
        await gateway.until_no_lease()


async def test_the_worst_case_of_both_is_held(cascade: Started) -> None:
    """While the draft runs, its own worst case and that of what may follow."""
    async with cascade(REFUSES_ALL) as gateway:
        small = await gateway.add_engine("specialist", "s1", profile=replace(FAST, decode_tokens_per_s=20))
        await gateway.add_engine("reserve", "r1")
        key, key_id = gateway.new_key(Budget("", BudgetWindow.TOTAL, 10_000_000))

        asking = asyncio.create_task(gateway.ask({"max_tokens": 10}, key=key))
        await small.until_running()
        _, held = await gateway.budget(f"key:{key_id}")
        status, answer = await asking

        assert status == 200
        assert held >= cost_of(answer) + large_cost_of(answer)


async def test_a_draft_that_never_comes_goes_up_too(cascade: Started) -> None:
    async with cascade(ACCEPTS_ALL) as gateway:
        await both(gateway, refuse=True)

        async with gateway.post({"max_tokens": 6}) as response:
            answer = await response.json()

        assert (response.status, response.headers["x-sprat-tier"]) == (200, "large")
        assert response.headers["x-sprat-reason"] == "careful:always_small;draft_failed"
        assert float(response.headers["x-sprat-cost-usd"]) == pytest.approx(large_cost_of(answer) / 1e6)


async def events_of(gateway: GatewayUnderTest, body: dict[str, Any]) -> tuple[Any, list[str]]:
    async with gateway.post({"stream": True} | body) as response:
        text = await response.text()
    return response.headers, [event for event in text.split("\n\n") if event]


def chunks_in(events: list[str]) -> list[dict[str, Any]]:
    return [json.loads(event[6:]) for event in events if event.startswith("data: {")]


def text_in(events: list[str]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for chunk in chunks_in(events) for choice in chunk["choices"]
    )


@pytest.mark.parametrize("verifier", [ACCEPTS_ALL, REFUSES_ALL], ids=["accepted", "refused"])
async def test_a_stream_is_that_of_one_model_from_its_first_event(
    cascade: Started, verifier: dict[str, Any]
) -> None:
    async with cascade(verifier) as gateway:
        await both(gateway)
        body = {"max_tokens": 8, "stream_options": {"include_usage": True}}

        headers, events = await events_of(gateway, body)
        whole = {"max_tokens": 8, "model": headers["x-sprat-tier"]}
        _, alone = await gateway.ask(whole)

        assert headers["x-sprat-tier"] == ("small" if verifier is ACCEPTS_ALL else "large")
        assert text_in(events) == alone["choices"][0]["message"]["content"]
        chunks = chunks_in(events)
        assert {chunk["model"] for chunk in chunks} == {headers["x-sprat-model"]}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert not any(choice.get("logprobs") for chunk in chunks for choice in chunk["choices"])
        assert chunks[-1]["usage"]["completion_tokens"] == 8
        assert events[-1] == "data: [DONE]"
        cost = json.loads(events[-2].removeprefix(": sprat "))["cost_usd"]
        paid = cost_of(chunks[-1]) + (large_cost_of(chunks[-1]) if verifier is REFUSES_ALL else 0)
        assert cost == pytest.approx(paid / 1e6)


async def test_a_stream_may_begin_early_where_the_policy_says_so(cascade: Started) -> None:
    async with cascade(ACCEPTS_ALL, release={"after_tokens": 3}) as gateway:
        await both(gateway, profile=replace(FAST, decode_tokens_per_s=20))

        async with gateway.post({"stream": True, "max_tokens": 20}) as response:
            first = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 0.7)
            assert first.startswith(b"data: ")
            rest = await response.text()

        assert rest.rstrip().endswith("data: [DONE]")
        assert '"logprobs":{' not in rest


async def test_a_beginning_that_is_refused_ends_its_generation(cascade: Started) -> None:
    """Long before its end: twenty tokens a second would take ten seconds."""
    async with cascade(REFUSES_ALL, release={"after_tokens": 3}) as gateway:
        await both(gateway, profile=replace(FAST, decode_tokens_per_s=20))

        async with asyncio.timeout(4):
            headers, events = await events_of(gateway, {"max_tokens": 200})

        assert headers["x-sprat-tier"] == "large"
        assert events[-1] == "data: [DONE]"
        await gateway.engines["s1"].until_idle()


async def test_drafts_that_agree_become_one_answer(cascade: Started) -> None:
    async with cascade({"kind": "agreement", "drafts": 3}) as gateway:
        await both(gateway)
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        same = {
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        }

        async with gateway.post(same) as response:
            answer = await response.json()
        headers, events = await events_of(gateway, same)

        assert (response.headers["x-sprat-tier"], headers["x-sprat-tier"]) == ("small", "small")
        (choice,) = answer["choices"]
        assert (choice["index"], text_in(events)) == (0, choice["message"]["content"])
        assert answer["usage"]["completion_tokens"] % 3 == 0, "all three are paid"


async def test_drafts_that_differ_go_up(cascade: Started) -> None:
    async with cascade({"kind": "agreement", "drafts": 3}) as gateway:
        await both(gateway)

        async with gateway.post({"max_tokens": 12}) as response:
            answer = await response.json()

        assert response.headers["x-sprat-tier"] == "large"
        assert ";agreement:" in response.headers["x-sprat-reason"]
        assert len(answer["choices"]) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"n": 2}),
        ("/responses", {"input": "hello", "messages": None}),
        ("/messages", {"max_tokens": 5}),
    ],
)
async def test_what_cannot_be_judged_goes_up_at_once(
    cascade: Started, path: str, body: dict[str, Any]
) -> None:
    async with cascade(ACCEPTS_ALL) as gateway:
        await both(gateway)
        body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]} | body
        body = {name: value for name, value in body.items() if value is not None}

        async with gateway.session.post(
            gateway.url + path, json=body, headers={"authorization": f"Bearer {gateway.key}"}
        ) as response:
            text = await response.text()

        assert (response.status, response.headers["x-sprat-tier"]) == (200, "large"), text
        assert response.headers["x-sprat-reason"].endswith(";not_verifiable")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "hello", "max_output_tokens": 4}),
        ("/messages", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}),
    ],
)
@pytest.mark.parametrize(("allow_cut_off", "tier"), [(True, "small"), (False, "large")])
async def test_one_draft_of_other_dialects_is_judged(
    cascade: Started, path: str, body: dict[str, Any], allow_cut_off: bool, tier: str
) -> None:
    """By what needs neither logprobs nor a second draft."""
    async with cascade({"kind": "refusal", "allow_cut_off": allow_cut_off}) as gateway:
        await both(gateway)
        headers = {"authorization": f"Bearer {gateway.key}"}
        for streamed in (False, True):
            async with gateway.session.post(
                gateway.url + path, json={"model": "auto", "stream": streamed} | body, headers=headers
            ) as response:
                text = await response.text()

            assert (response.status, response.headers["x-sprat-tier"]) == (200, tier), text
            assert (";refusal:" in response.headers["x-sprat-reason"]) is (tier == "large")


async def test_completions_are_judged_too(cascade: Started) -> None:
    async with cascade({"kind": "refusal", "allow_cut_off": True}) as gateway:
        await both(gateway)

        async with gateway.session.post(
            gateway.url + "/completions",
            json={"model": "auto", "prompt": "hello", "max_tokens": 4},
            headers={"authorization": f"Bearer {gateway.key}"},
        ) as response:
            answer = await response.json()

        assert response.headers["x-sprat-tier"] == "small"
        assert answer["choices"][0]["text"]
        assert answer["choices"][0]["logprobs"] is None


async def test_a_client_that_leaves_after_the_draft_pays_the_draft(cascade: Started) -> None:
    async with cascade(REFUSES_ALL) as gateway:
        await gateway.add_engine("specialist", "s1")
        large = await gateway.add_engine("reserve", "r1", profile=replace(FAST, decode_tokens_per_s=5))

        asking = asyncio.create_task(gateway.ask({"max_tokens": 50}))
        await large.until_running()
        asking.cancel()
        await large.until_idle(within_s=3)
        await gateway.until_settled()

        spend = await gateway.scheduler.spend_today()
        assert spend.calls == 1
        assert spend.spent_micro_usd > 0
        await gateway.until_no_lease()


async def test_a_verifier_that_raises_or_hangs_sends_the_call_up(cascade: Started) -> None:
    hangs = {"kind": "python", "function": "tests.contract.test_cascade:hangs", "timeout_s": 0.2}
    async with cascade(hangs) as gateway:
        await both(gateway)

        async with gateway.post({"max_tokens": 3}) as response:
            await response.read()

        assert (response.status, response.headers["x-sprat-tier"]) == (200, "large")
        assert response.headers["x-sprat-reason"] == "careful:always_small;python:timeout"


def hangs(draft: dict[str, Any], expected: dict[str, Any]) -> bool:
    while True:
        pass


def decisions_of(gateway: GatewayUnderTest, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Grows with each call that is settled."""
    logged: list[dict[str, Any]] = []
    settle = gateway.gateway.context.settling.settle

    def settle_and_tell(request: SettleRequest, entry: Any, decision: Any) -> None:
        logged.append(decision)
        settle(request, entry, decision)

    monkeypatch.setattr(gateway.gateway.context.settling, "settle", settle_and_tell)
    return logged


async def test_a_draft_is_logged_as_accepted_only_when_it_was(
    cascade: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cascade(ACCEPTS_ALL) as gateway:
        slow = await gateway.add_engine("specialist", "s1", profile=replace(FAST, decode_tokens_per_s=20))
        await gateway.add_engine("reserve", "r1")
        logged = decisions_of(gateway, monkeypatch)

        async with gateway.post({"max_tokens": 2}) as response:
            await response.read()
        leaving = asyncio.create_task(gateway.ask({"max_tokens": 100}))
        await slow.until_running()
        leaving.cancel()
        await slow.until_idle(within_s=3)
        await gateway.until_settled()

        assert [[step["verdict"] for step in decision["steps"]] for decision in logged] == [
            ["accepted"],
            [None],
        ]


async def test_the_decision_is_logged_with_its_steps(
    cascade: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cascade(REFUSES_ALL) as gateway:
        await both(gateway)
        logged = decisions_of(gateway, monkeypatch)

        async with gateway.post({"max_tokens": 6}) as response:
            await response.read()
        (decision,) = logged

        assert decision["request_id"] == response.headers["x-sprat-request-id"]
        assert (decision["policy"], decision["target"]) == ("careful", "small>large")
        assert [(step["tier"], step["verdict"]) for step in decision["steps"]] == [
            ("small", "refused"),
            ("large", None),
        ]
        assert sum(step["cost_micro_usd"] for step in decision["steps"]) == round(
            1e6 * float(response.headers["x-sprat-cost-usd"])
        )
        assert "hi there" not in json.dumps(decision)
