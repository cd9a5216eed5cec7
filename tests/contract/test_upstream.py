"""An upstream replica before providers that are slow, broken, hostile."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from cluster.config.upstream import ListPrices, UpstreamConfig
from cluster.errors import StartError
from deployments.upstream import client as client_module
from deployments.upstream.breaker import Circuit
from deployments.upstream.client import UpstreamClient
from tests.certificates import self_signed
from tests.providers import (
    DONE,
    KEY,
    MODEL,
    USAGE_EVENT,
    Provider,
    answer,
    event,
    good,
    hang,
    replies,
    running_provider,
    running_replica,
    streamed,
)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with running_provider() as running:
        yield running


async def whole(response: aiohttp.ClientResponse) -> bytes:
    return await response.read()


# What is sent.


async def test_nothing_of_the_caller_reaches_the_provider_but_its_question(provider):
    async with running_replica(provider) as replica:
        status, body = await replica.ask(
            {"cache_salt": "salt", "temperature": 0.5}, **{"x-forwarded-for": "1.2.3.4", "cookie": "a=b"}
        )
    assert (status, body["model"], body["usage"]["completion_tokens"]) == (200, "ours", 3)
    (seen,) = provider.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
        "temperature": 0.5,
    }
    assert {name.lower() for name in seen.headers} == {
        *("host", "authorization", "accept", "accept-encoding", "user-agent"),
        *("content-type", "content-length"),
    }
    assert seen.headers["Authorization"] == f"Bearer {KEY}"


async def test_no_cookie_is_kept(provider):
    provider.answers = [replies(200, answer(), set_cookie="session=tenant-a; Path=/")]
    async with running_replica(provider) as replica:
        await replica.ask()
        await replica.ask()
    assert all("Cookie" not in seen.headers for seen in provider.seen)


async def test_a_call_cannot_choose_the_address(provider):
    fields = {"base_url": "http://127.0.0.1:1", "api_base": "http://127.0.0.1:1", "api_key": "x"}
    async with running_replica(provider) as replica:
        assert (await replica.ask(fields))[0] == 200
    assert not fields.keys() & provider.seen[0].body.keys()


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize", "/v1/messages/count_tokens"]
)
async def test_routes_that_it_does_not_offer_are_refused_here(provider, path):
    async with running_replica(provider) as replica:
        status, body = await replica.ask(path=path)
    assert (status, body["error"]["code"]) == (400, "route_not_offered")
    assert provider.seen == []


async def test_only_gateways_may_ask(provider):
    async with running_replica(provider) as replica:
        assert (await replica.ask(authorization="Bearer " + "u" * 32))[0] == 401
        assert (await replica.ask(path="/v1/load_lora_adapter"))[0] == 404
        assert (await replica.ask({"messages": 5}))[0] == 400
    assert provider.seen == []


@pytest.mark.parametrize(
    ("path", "reply"),
    [
        ("/v1/responses", {"model": MODEL, "output": [], "usage": {"input_tokens": 1, "output_tokens": 2}}),
        ("/v1/messages", {"model": MODEL, "content": [], "usage": {"input_tokens": 1, "output_tokens": 2}}),
        ("/v1/embeddings", {"model": MODEL, "data": [], "usage": {"prompt_tokens": 1}}),
    ],
)
async def test_other_dialects_where_it_offers_them(provider, path, reply):
    provider.answers = [replies(200, reply)]
    async with running_replica(provider, routes=["responses", "messages", "embeddings"]) as replica:
        status, body = await replica.ask({"input": "hi"}, path=path)
    assert (status, body) == (200, reply | {"model": "ours"})
    assert provider.seen[0].path == path


# Streams.


async def test_each_event_passes_when_it_comes(provider):
    free = asyncio.Event()

    async def wait(_: web.Request) -> None:
        await free.wait()

    provider.answers = [streamed(event("first"), then=wait)]
    async with running_replica(provider) as replica, replica.post({"stream": True}) as response:
        assert response.content_type == "text/event-stream"
        async with asyncio.timeout(1):
            assert b"first" in await response.content.readany()
        free.set()


async def test_a_whole_stream(provider):
    async with running_replica(provider) as replica, replica.post({"stream": True}) as response:
        events = await whole(response)
    assert provider.seen[0].body["stream_options"] == {"include_usage": True}
    assert events.endswith(b"data: [DONE]\n\n")
    assert events.count(b'"usage":{') == 1
    assert MODEL.encode() not in events


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_leaves_ends_the_generation(provider, stream):
    provider.answers = [streamed(event("a"), then=hang) if stream else hang]
    async with running_replica(provider) as replica:
        call = asyncio.create_task(replica.ask({"stream": stream}))
        while not provider.seen:
            await asyncio.sleep(0.01)
        call.cancel()
        await provider.until_cancelled()
        assert replica.client.breaker.circuit is Circuit.CLOSED
        provider.answers = [good]
        assert (await replica.ask())[0] == 200


async def test_a_provider_that_dies_in_mid_stream_breaks_the_answer(provider):
    async def die(request: web.Request) -> None:
        request.transport.abort()

    provider.answers = [streamed(event("a"), then=die)]
    async with running_replica(provider) as replica:
        async with replica.post({"stream": True}) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await whole(response)
        assert len(provider.seen) == 1, "what began to answer is not repeated"


@pytest.mark.parametrize(
    "pieces",
    [
        [event("a")],
        [event("a"), b"data: {garbage}\n\n", DONE],
        [event("a"), b'data: {"error": {"message": "overloaded"}}\n\n', DONE],
    ],
    ids=["ends early", "garbage", "error"],
)
async def test_a_stream_that_turns_bad_breaks_and_never_says_done(provider, pieces):
    provider.answers = [streamed(*pieces)]
    async with running_replica(provider) as replica, replica.post({"stream": True}) as response:
        received = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async for piece in response.content.iter_any():
                received += piece
    assert b"[DONE]" not in received


@pytest.mark.parametrize("first", [b"data: {garbage}\n\n", b'data: {"error": {"message": "x"}}\n\n', b""])
async def test_a_stream_that_begins_badly_is_a_status(provider, first):
    provider.answers = [streamed(first)]
    async with running_replica(provider) as replica:
        status, body = await replica.ask({"stream": True})
    assert (status, body["error"]["code"]) == (502, "upstream_failed")


async def test_a_provider_that_begins_and_never_ends_well_is_left_alone(provider):
    provider.answers = [streamed(event("a"))]
    async with running_replica(provider, failures_to_open=2) as replica:
        for _ in range(2):
            async with replica.post({"stream": True}) as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await whole(response)
        assert (await replica.ask())[0] == 503


async def test_a_stream_that_never_closes_ends_with_done(provider):
    provider.answers = [streamed(event("a", "stop"), USAGE_EVENT, DONE, then=hang)]
    async with running_replica(provider) as replica, replica.post({"stream": True}) as response:
        async with asyncio.timeout(2):
            assert (await whole(response)).endswith(DONE)
        await provider.until_cancelled()


async def test_without_usage_it_is_estimated(provider):
    provider.answers = [replies(200, answer("x" * 40, usage=None))]
    async with running_replica(provider) as replica:
        _, body = await replica.ask()
    assert body["usage"]["completion_tokens"] == 10
    assert body["usage"]["estimated"] is True


# Slow and silent.


async def test_a_silent_provider_is_given_up(provider):
    provider.answers = [hang]
    async with running_replica(provider, silence_timeout_s=0.2) as replica:
        started_s = time.monotonic()
        status, body = await replica.ask()
    assert (status, body["error"]["code"]) == (502, "upstream_failed")
    assert time.monotonic() - started_s < 2
    assert len(provider.seen) == 1, "it would not answer the next time"


async def test_a_stream_that_falls_silent_is_given_up(provider):
    provider.answers = [streamed(event("a"), then=hang)]
    async with running_replica(provider, silence_timeout_s=0.2) as replica:
        async with replica.post({"stream": True}) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await whole(response)
        await provider.until_cancelled()


async def test_an_answer_that_drips_for_ever_ends_at_the_time_limit(provider):
    async def dripping(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    provider.answers = [dripping]
    async with running_replica(provider, timeout_s=0.5) as replica:
        status, _ = await replica.ask()
        await provider.until_cancelled()
    assert status == 502


# Broken.


async def test_a_failure_is_repeated_until_it_works(provider):
    provider.answers = [replies(500), replies(503), good]
    async with running_replica(provider) as replica:
        assert (await replica.ask())[0] == 200
    assert len(provider.seen) == 3


async def test_attempts_are_counted(provider):
    provider.answers = [replies(500)]
    async with running_replica(provider, max_attempts=2) as replica:
        status, body = await replica.ask()
    assert (status, body["error"]["code"]) == (502, "upstream_failed")
    assert len(provider.seen) == 2


async def test_what_the_caller_did_wrong_is_not_repeated(provider):
    provider.answers = [replies(400, {"error": {"message": "temperature must be at most 1"}})]
    async with running_replica(provider) as replica:
        status, body = await replica.ask()
    assert (status, body["error"]["message"]) == (400, "temperature must be at most 1")
    assert len(provider.seen) == 1


async def test_a_prompt_that_is_too_long_is_told_in_the_words_that_the_gateway_knows(provider):
    provider.answers = [replies(400, {"error": {"message": "prompt is too long: 9 tokens > 8 maximum"}})]
    async with running_replica(provider) as replica:
        status, body = await replica.ask()
    assert status == 400
    assert "context length" in body["error"]["message"]


async def test_after_failures_in_a_row_nobody_is_sent_there_until_one_call_tried(provider):
    provider.answers = [replies(500)]
    async with running_replica(provider, max_attempts=1, failures_to_open=3) as replica:
        for _ in range(3):
            assert (await replica.ask())[0] == 502
        async with replica.post({}) as refused:
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await refused.json())["error"]["code"] == "upstream_away"
        assert len(provider.seen) == 3
        assert "500" in replica.client.breaker.reason

        await asyncio.sleep(0.25)
        free = asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            await free.wait()
            return await good(request)

        provider.answers = [slow]
        calls = [asyncio.create_task(replica.ask()) for _ in range(5)]
        await asyncio.sleep(0.2)
        free.set()
        assert sorted([status for status, _ in await asyncio.gather(*calls)]) == [200, 503, 503, 503, 503]
        assert len(provider.seen) == 4, "one tried for all"
        assert (await replica.ask())[0] == 200


async def test_before_a_call_tries_the_provider_is_asked_for_its_models(provider):
    async with running_replica(provider) as replica:
        replica.client.breaker.trip("down")
        await asyncio.sleep(0.25)
        provider.models = replies(500)
        await replica.client.recover()
        assert replica.client.breaker.circuit is Circuit.OPEN
        await asyncio.sleep(0.45)
        provider.models = replies(200, {"data": []})
        await replica.client.recover()
        assert replica.client.breaker.circuit is Circuit.HALF_OPEN
    assert provider.seen == []


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\xff" * 100,
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"",
    ],
    ids=["noise", "short body", "bad chunk", "huge header", "nothing"],
)
async def test_garbage_is_a_failure(raw, caplog):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, running_replica(Provider(url), max_attempts=1) as replica:
        status, body = await replica.ask()
    assert (status, body["error"]["code"]) == (502, "upstream_failed")
    assert KEY not in caplog.text


async def test_redirects_are_not_followed(provider, caplog):
    async with running_provider() as other:
        provider.answers = [replies(307, location=other.url + "/chat/completions")]
        async with running_replica(provider) as replica:
            assert (await replica.ask())[0] == 502
        assert other.seen == []
    assert len(provider.seen) == 1
    assert "set upstream.base_url" in caplog.text


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_without_end_is_cut(provider, stream, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 2**16)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 2**16)

    provider.answers = [endless]
    async with running_replica(provider) as replica:
        assert (await replica.ask({"stream": stream}))[0] == 502
        await provider.until_cancelled()


async def test_a_huge_error_is_still_its_status(provider):
    provider.answers = [replies(400, {"error": {"message": "x" * 2**20}})]
    async with running_replica(provider) as replica:
        status, body = await replica.ask()
    assert status == 400
    assert len(orjson.dumps(body)) < 1000


async def test_compressed_answers_are_not_opened(provider):
    async def bomb(_: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(b"0" * 2**24), headers={"content-encoding": "gzip"})

    provider.answers = [bomb]
    async with running_replica(provider) as replica:
        assert (await replica.ask())[0] == 502
    assert provider.seen[0].headers["Accept-Encoding"] == "identity"


async def test_a_certificate_that_nobody_signed_is_not_trusted(tmp_path: Path, caplog):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*map(str, self_signed(tmp_path)))
    reached = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, running_replica(Provider(url), max_attempts=1) as replica:
        assert (await replica.ask())[0] == 502
    assert "Certificate" in caplog.text
    assert reached == []


# Limits.


async def test_a_short_retry_after_is_waited_for(provider):
    provider.answers = [replies(429, retry_after_ms="300"), good]
    async with running_replica(provider) as replica:
        started_s = time.monotonic()
        assert (await replica.ask())[0] == 200
    assert 0.3 <= time.monotonic() - started_s < 2


async def test_a_long_retry_after_sends_calls_elsewhere_at_once(provider):
    provider.answers = [replies(429, retry_after="30")]
    async with running_replica(provider) as replica:
        for _ in range(3):
            async with replica.post({}) as response:
                assert response.status == 429
                assert 28 <= int(response.headers["retry-after"]) <= 30
                error = (await response.json())["error"]
                assert error["code"] == "upstream_busy"
                assert 28 < error["retry_after_s"] <= 30
        assert replica.client.breaker.circuit is Circuit.CLOSED
    assert len(provider.seen) == 1, "the others did not ask"


async def test_announced_limits_are_kept(provider):
    provider.answers = [
        replies(200, answer(), x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="400ms")
    ]
    async with running_replica(provider) as replica:
        await replica.ask()
        started_s = time.monotonic()
        assert (await replica.ask())[0] == 200
        assert time.monotonic() - started_s >= 0.35


async def test_limits_of_the_yaml_are_kept(provider):
    async with running_replica(provider, requests_per_minute=2, longest_wait_s=0.1) as replica:
        statuses = [status for status, _ in await asyncio.gather(*[replica.ask() for _ in range(5)])]
    assert sorted(statuses) == [200, 200, 429, 429, 429]
    assert len(provider.seen) == 2


async def test_tokens_that_were_not_used_are_free_again(provider):
    async with running_replica(provider, tokens_per_minute=140, longest_wait_s=0.1) as replica:
        for _ in range(5):  # each may take 77, and takes 14
            assert (await replica.ask({"max_tokens": 70}))[0] == 200
        async with replica.post({"max_tokens": 70, "stream": True}) as response:
            assert response.status == 429


# The key.


async def test_a_refused_key_takes_the_replica_out_and_names_the_variable(provider):
    provider.answers = [replies(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})]
    async with running_replica(provider) as replica:
        status, body = await replica.ask()
        assert (status, body["error"]["code"]) == (503, "upstream_away")
        assert replica.client.breaker.circuit is Circuit.OPEN
        assert "check PROVIDER_KEY" in replica.client.breaker.reason
    assert len(provider.seen) == 1


async def test_a_single_call_that_is_forbidden_takes_nobody_out(provider):
    provider.answers = [replies(403, {"error": {"message": "flagged"}})]
    async with running_replica(provider) as replica:
        assert (await replica.ask())[0] == 400
        assert replica.client.breaker.circuit is Circuit.CLOSED
        provider.models = replies(403)
        assert (await replica.ask())[0] == 503
        assert "PROVIDER_KEY" in replica.client.breaker.reason


async def test_the_check_at_the_start(provider):
    async with running_replica(provider) as replica:
        check = replica.client.check
        assert await check() == ""
        provider.models = replies(200, {"data": [{"id": "another"}]})
        assert "does not list" in await check()
        provider.models = replies(404)
        assert "could be checked" in await check()
        for status in (401, 403):
            provider.models = replies(status, {"error": {"message": f"bad key {KEY}"}})
            with pytest.raises(StartError, match="check PROVIDER_KEY") as refused:
                await check()
            assert KEY not in str(refused.value)
        provider.models = replies(302, location="http://127.0.0.1:1/")
        with pytest.raises(StartError, match="base_url"):
            await check()


async def test_the_check_of_a_provider_that_is_not_there():
    upstream = UpstreamConfig(
        base_url="http://127.0.0.1:1/v1",
        model="m",
        prices=ListPrices(prompt_usd_per_mtok=1, output_usd_per_mtok=1),
    )
    client = UpstreamClient(upstream, None, pool="p")
    with pytest.raises(StartError, match="cannot be reached"):
        await client.check()
    await client.close()


ECHO: dict[str, Any] = {
    "error": {"message": f"Bearer {KEY} for {MODEL} at https://x.example/v1 is bad: {KEY}"}
}


@pytest.mark.parametrize("status", [200, 302, 400, 401, 402, 403, 404, 422, 429, 500, 503])
async def test_the_key_is_in_no_answer_and_no_log(provider, status, caplog):
    caplog.set_level(logging.DEBUG)
    provider.answers = [replies(status, ECHO, retry_after=KEY, location=KEY)]
    async with running_replica(provider, failures_to_open=1) as replica:
        async with replica.post({}) as response:
            assert response.status >= 400
            shown = (await whole(response)).decode() + str(response.headers)
        shown += replica.client.breaker.reason
    for word in (KEY, "x.example"):
        assert word not in shown
        assert word not in caplog.text
    assert MODEL not in shown
