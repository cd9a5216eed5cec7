"""Feedback on calls: what is taken, about whose calls, and how long one waits for a call to appear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jsonschema
import orjson
import pytest
from sqlalchemy.engine import Engine

from cluster.clock import ManualClock
from cluster.decision_log import OutcomeSource
from cluster.errors import InvalidRequest, RateLimited, SpratError, StoreUnavailable, Unauthenticated
from cluster.store import open_store, sqlite_url
from cluster.store.decisions import DecisionLog
from cluster.store.schema import decisions as decisions_table
from deployments.gateway import feedback as feedback_module
from deployments.gateway.feedback import Feedback, UnknownCall
from deployments.gateway.openapi import openapi
from deployments.gateway.pages import pages
from deployments.gateway.tasks import end_task
from tests.builders import NOON_MS
from tests.decisions import decision_row

OURS = "req-" + "a" * 24
THEIRS = "req-" + "b" * 24
NOBODYS = "req-" + "c" * 24


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = open_store(sqlite_url(tmp_path / "store.sqlite"))
    yield opened
    opened.dispose()


@pytest.fixture
def log(engine: Engine) -> DecisionLog:
    made = DecisionLog(engine, ManualClock(NOON_MS))
    made.append([decision_row(OURS), decision_row(THEIRS, tenant="other")])
    return made


@pytest.fixture
def feedback(log: DecisionLog) -> Feedback:
    return Feedback(log, ManualClock(NOON_MS + 5), wait_s=0.2, poll_s=0.02)


def body(**changes: Any) -> bytes:
    return orjson.dumps({"request_id": OURS, "score": 0.5} | changes)


async def test_it_is_kept_and_told_back(feedback: Feedback, log: DecisionLog) -> None:
    kept = await feedback.give("acme", body(score=1, label="résolu"))

    assert kept == {
        "object": "feedback",
        "request_id": OURS,
        "score": 1.0,
        "label": "résolu",
        "at_ms": NOON_MS + 5,
    }
    found = log.outcomes_of(OURS)[OutcomeSource.FEEDBACK]
    assert (found.score, found.label, found.at_ms) == (1.0, "résolu", NOON_MS + 5)


async def test_the_last_one_counts(feedback: Feedback, log: DecisionLog) -> None:
    await feedback.give("acme", body(score=1, label="good"))
    await feedback.give("acme", body(score=0))

    found = log.outcomes_of(OURS)[OutcomeSource.FEEDBACK]
    assert (found.score, found.label) == (0.0, None)


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"request_id": "x", "score": NaN}', None),
        (orjson.dumps({"score": 1}), "request_id"),
        (orjson.dumps({"request_id": OURS}), "score"),
        (body(score=None), "score"),
        (body(score=True), "score"),
        (body(score="1"), "score"),
        (body(score=1.01), "score"),
        (body(score=-0.1), "score"),
        (body().replace(b"0.5", b"1e999"), None),
        (body(label=""), "label"),
        (body(label="x" * 257), "label"),
        (body(label="a\0b"), "label"),
        (body(label="two\nlines"), "label"),
        (body(label=5), "label"),
        (body(request_id=5), "request_id"),
        (body(request_id="r" * 129), "request_id"),
        (body(comment="x"), "comment"),
    ],
)
async def test_a_wrong_body_is_refused_with_the_field(
    feedback: Feedback, log: DecisionLog, raw: bytes, param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await feedback.give("acme", raw)

    assert (caught.value.status, caught.value.param) == (400, param)
    assert log.outcomes_of(OURS) == {}


async def test_a_body_that_is_too_large(feedback: Feedback) -> None:
    with pytest.raises(SpratError) as caught:
        await feedback.give("acme", body(label="x" * 5000))

    assert caught.value.status == 413


async def test_another_tenants_call_answers_as_one_that_never_was(
    feedback: Feedback, log: DecisionLog
) -> None:
    answers = []
    for request_id in (THEIRS, NOBODYS):
        begin_s = time.monotonic()
        with pytest.raises(UnknownCall) as caught:
            await feedback.give("acme", body(request_id=request_id))
        waited = time.monotonic() - begin_s >= 0.2
        answers.append((caught.value.status, caught.value.to_openai(), waited))

    assert answers[0] == answers[1]
    assert answers[0][0] == 404
    assert answers[0][2], "nor does the time tell"
    assert log.outcomes_of(THEIRS) == {}


async def test_a_text_that_is_no_id_of_ours_is_not_waited_for(log: DecisionLog) -> None:
    patient = Feedback(log, wait_s=60)

    async with asyncio.timeout(5):
        for request_id in ("chatcmpl-1", OURS.upper(), OURS + "0"):
            with pytest.raises(UnknownCall):
                await patient.give("acme", body(request_id=request_id))


async def test_a_call_that_is_on_its_way_is_waited_for(log: DecisionLog) -> None:
    patient = Feedback(log, wait_s=30, poll_s=0.02)
    giving = asyncio.create_task(patient.give("acme", body(request_id=NOBODYS)))
    await asyncio.sleep(0.1)
    assert not giving.done()

    log.append([decision_row(NOBODYS)])

    async with asyncio.timeout(10):
        assert (await giving)["request_id"] == NOBODYS


async def test_a_slow_database_does_not_block_the_loop(log: DecisionLog) -> None:
    class Slow(DecisionLog):
        def tenant_of(self, request_id: str) -> str | None:
            time.sleep(0.5)
            return log.tenant_of(request_id)

    slow = Slow(None)  # type: ignore[arg-type]
    slow.put_outcomes = log.put_outcomes  # type: ignore[method-assign]
    giving = asyncio.create_task(Feedback(slow).give("acme", body()))

    turns = 0
    while not giving.done():
        await asyncio.sleep(0.01)
        turns += 1

    assert (await giving)["score"] == 0.5
    assert turns > 10


async def test_a_store_that_is_away_is_told_of(feedback: Feedback, engine: Engine) -> None:
    with engine.begin() as connection:
        decisions_table.drop(connection)

    with pytest.raises(StoreUnavailable) as caught:
        await feedback.give("acme", body())

    assert caught.value.retry_after_s


async def test_a_tenant_gives_only_so_much_at_once(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback_module, "MAX_AT_ONCE", 1)
    patient = Feedback(log, wait_s=60, poll_s=0.02)
    waiting = asyncio.create_task(patient.give("acme", body(request_id=NOBODYS)))
    await asyncio.sleep(0.1)

    with pytest.raises(RateLimited):
        await patient.give("acme", body())
    await patient.give("other", body(request_id=THEIRS))

    await end_task(waiting)
    await patient.give("acme", body())


def test_the_description_takes_what_is_taken() -> None:
    path = openapi({}, "1")["paths"]["/v1/feedback"]["post"]
    schema = path["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema)

    assert list(validator.iter_errors({"request_id": OURS, "score": 1, "label": None})) == []
    for wrong in ({"score": 2}, {"score": True}, {"label": ""}, {"label": "x" * 257}, {"more": 1}):
        assert list(validator.iter_errors({"request_id": OURS, "score": 1} | wrong)), wrong


# As a page.


class OneKey:
    """Stands for the authenticator."""

    async def key_of(self, authorization: str | None, x_api_key: str | None = None) -> Any:
        if authorization != "Bearer good" and x_api_key != "good":
            raise Unauthenticated("No.")
        return SimpleNamespace(tenant="acme")


@pytest.fixture
async def client(feedback: Feedback) -> AsyncIterator[httpx.AsyncClient]:
    router: Any = SimpleNamespace(names=lambda: ("auto",))
    key: Any = OneKey()
    application = pages(router, SimpleNamespace(), key, feedback)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
        yield made


@pytest.mark.parametrize("headers", [{"authorization": "Bearer good"}, {"x-api-key": "good"}])
async def test_the_route(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post("/v1/feedback", content=body(), headers=headers)

    assert (answer.status_code, answer.json()["score"]) == (200, 0.5)


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"content": body(request_id="nothing")}, 404, "request_not_found"),
        ({"content": b"{"}, 400, None),
        ({"headers": {"authorization": "Bearer bad"}}, 401, "invalid_api_key"),
        ({"headers": {"content-encoding": "gzip", "x-api-key": "good"}}, 415, "unsupported_encoding"),
        ({"method": "GET"}, 405, "method_not_allowed"),
    ],
)
async def test_what_the_route_refuses(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, code: str | None
) -> None:
    call = {"method": "POST", "url": "/v1/feedback", "content": body(), "headers": {"x-api-key": "good"}}

    answer = await client.request(**(call | change))

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_store_that_is_away_says_when_to_come_back(client: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        decisions_table.drop(connection)

    answer = await client.post("/v1/feedback", content=body(), headers={"x-api-key": "good"})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
