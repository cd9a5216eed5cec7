"""The routes beside chat and completions through the gateway, with simulated engines: streams that end with
the cost, dialects of errors, what is free, which pool serves what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.tenants import Budget, BudgetWindow
from tests.configs import simulated
from tests.gateways import GatewayUnderTest, running_gateway

pytestmark = pytest.mark.contract

QUESTION = [{"role": "user", "content": "hi there, how are you?"}]
VECTORS = {
    "task": "embed",
    "tier": "small",
    "base_model": "minilm",
    "node_class": "cheap",
    "engine": "simulated",
    "simulated": {},
    "context_tokens": 64,
    "throughput": {"prompt_tokens_per_s": 500, "output_tokens_per_s": 500},
}
POOLS = simulated()["pools"] | {"vectors": VECTORS}
MODELS = simulated()["base_models"] | {"minilm": {"source": "folder:/nowhere", "parameters": 1000}}


@pytest.fixture
async def gateway(
    redis_scheduler: object, valkey_url: str, tmp_path: Path
) -> AsyncIterator[GatewayUnderTest]:
    async with running_gateway(valkey_url, tmp_path, pools=POOLS, base_models=MODELS) as running:
        await running.add_engine("specialist", "s1")
        await running.add_engine("vectors", "v1")
        yield running


async def post(
    gateway: GatewayUnderTest, path: str, body: dict[str, Any], key: str = ""
) -> tuple[int, dict[str, str], bytes]:
    async with gateway.session.post(
        gateway.url.removesuffix("/v1") + path,
        json={"model": "small"} | body,
        headers={"authorization": f"Bearer {key or gateway.key}"},
    ) as response:
        return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 5}, b"data: [DONE]"),
        ("/v1/responses", {"input": "hi there", "max_output_tokens": 5}, b"event: response.completed"),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 5}, b"event: message_stop"),
    ],
)
async def test_streams_end_with_cost_and_saving_before_the_last_event(
    gateway: GatewayUnderTest, path: str, body: dict[str, Any], last: bytes
) -> None:
    status, headers, stream = await post(gateway, path, body | {"stream": True})
    whole = await post(gateway, path, body)

    assert status == whole[0] == 200
    assert headers["content-type"].startswith("text/event-stream")
    *_, comment, end, nothing = stream.split(b"\n\n")
    assert end.startswith(last)
    assert nothing == b""
    money = orjson.loads(comment.removeprefix(b": sprat "))
    assert money["cost_usd"] == pytest.approx(float(whole[1]["x-sprat-cost-usd"]))
    assert money["saved_usd"] == pytest.approx(float(whole[1]["x-sprat-saved-usd"]))
    assert money["saved_usd"] > 0


async def test_embeddings_come_from_their_pool_and_save_nothing(gateway: GatewayUnderTest) -> None:
    status, headers, raw = await post(gateway, "/v1/embeddings", {"model": "auto", "input": ["a", "b"]})

    assert status == 200, raw
    assert (headers["x-sprat-model"], headers["x-sprat-replica"]) == ("minilm", "v1")
    assert float(headers["x-sprat-cost-usd"]) > 0 == float(headers["x-sprat-saved-usd"])
    assert len(orjson.loads(raw)["data"]) == 2

    status, _, raw = await post(gateway, "/v1/embeddings", {"model": "tiny", "input": "a"})
    assert (status, orjson.loads(raw)["error"]["code"]) == (400, "wrong_model_kind")


async def test_an_embedding_model_counts_no_conversations(gateway: GatewayUnderTest) -> None:
    """Its engine has no such route."""
    count = await post(gateway, "/v1/messages/count_tokens", {"model": "minilm", "messages": QUESTION})
    assert count[0] == 400, count

    tokens = await post(gateway, "/tokenize", {"model": "minilm", "prompt": "hi there"})
    assert (tokens[0], tokens[1]["x-sprat-replica"]) == (200, "v1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "hi there"}),
        ("/v1/tokenize", {"messages": QUESTION}),
        ("/v1/detokenize", {"tokens": [1]}),
        ("/v1/messages/count_tokens", {"messages": QUESTION}),
    ],
)
async def test_counting_is_free_even_with_an_empty_budget(
    gateway: GatewayUnderTest, path: str, body: dict[str, Any]
) -> None:
    key, key_id = gateway.new_key(Budget("tenant:acme", BudgetWindow.TOTAL, 1))

    status, headers, raw = await post(gateway, path, body, key)

    assert status == 200, raw
    assert float(headers["x-sprat-cost-usd"]) == float(headers["x-sprat-saved-usd"]) == 0
    await gateway.until_settled()
    assert await gateway.budget("tenant:acme") == (0, 0), key_id


async def test_errors_speak_the_dialect_of_their_route(gateway: GatewayUnderTest) -> None:
    for body, kind, status in (
        ({"messages": QUESTION}, "invalid_request_error", 400),
        ({"model": "nobody", "messages": QUESTION, "max_tokens": 5}, "not_found_error", 404),
        ({"model": "large", "messages": QUESTION, "max_tokens": 5}, "overloaded_error", 503),
    ):
        found, _, raw = await post(gateway, "/v1/messages", body)
        error = orjson.loads(raw)
        assert (found, error["type"], error["error"]["type"]) == (status, "error", kind)

    status, _, raw = await post(gateway, "/v1/messages", {"messages": QUESTION, "max_tokens": 5}, "sk-wrong")
    assert (status, orjson.loads(raw)["error"]["type"]) == (401, "authentication_error")
    status, _, raw = await post(gateway, "/v1/responses", {"input": "hi", "store": True})
    assert (status, orjson.loads(raw)["error"]["param"]) == (400, "store")


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/v1/responses", {"input": "hi", "max_output_tokens": 9}, b"event: error\ndata: "),
        ("/v1/messages", {"messages": QUESTION, "max_tokens": 9}, b"event: error\ndata: "),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event(
    gateway: GatewayUnderTest, path: str, body: dict[str, Any], end: bytes
) -> None:
    await gateway.replace_engine("s1", "s2", fail_after_tokens=4)

    status, _, stream = await post(gateway, path, body | {"stream": True})

    assert status == 200
    *_, last, nothing = stream.split(b"\n\n")
    assert nothing == b""
    assert last.startswith(end)
    assert orjson.loads(last.partition(b"data: ")[2])["type"] == "error"
