"""The stub engine as clients of engines see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from time import perf_counter

import aiohttp
import pytest

from loadtest.stub_engine import TOKENS_PER_S, serve


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = await serve(0)
    yield "http://{}:{}".format(*server.sockets[0].getsockname())
    server.close()


async def post(url: str, body: object) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body) as answer,
    ):
        return answer.status, await answer.read()


def events(body: bytes) -> list[dict | str]:
    payloads = [part.removeprefix("data: ") for part in body.decode().split("\n\n") if part]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


async def test_a_whole_answer_is_a_chat_completion_of_about_2_kb(url):
    status, body = await post(url, {"model": "at-once"})
    answer = json.loads(body)
    assert status == 200
    assert 1500 < len(body) < 2500
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 32


@pytest.mark.parametrize("tokens", [2, 32, 100])
async def test_a_stream_has_as_many_chunks_as_asked_for(url, tokens):
    status, body = await post(url, {"model": "at-once", "stream": True, "max_tokens": tokens})
    *chunks, done = events(body)
    assert (status, done) == (200, "[DONE]")
    assert len(chunks) == tokens
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (tokens - 1) + ["stop"]


async def test_usage_comes_last_if_it_is_asked_for(url):
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}
    _, body = await post(url, {"model": "at-once", **options})
    *_, usage, _done = events(body)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)


async def test_a_paced_stream_keeps_its_pace_and_does_not_drift(url):
    began_s = perf_counter()
    await post(url, {"model": "paced", "stream": True, "max_tokens": 16})
    assert perf_counter() - began_s == pytest.approx(15 / TOKENS_PER_S, abs=0.1)


async def test_routers_may_probe_it(url):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/health") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/v1/models") as answer:
            assert [model["id"] for model in (await answer.json())["data"]] == ["at-once", "paced"]
        async with session.get(f"{url}/elsewhere") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "gpt"}, 404, b"no model"),
        ({}, 400, b"not a chat completion"),
        ([], 400, b"not a chat completion"),
        ({"model": "paced", "max_tokens": "many"}, 400, b"not a chat completion"),
    ],
)
async def test_a_wrong_request_is_told_so(url, body, status, says):
    got, text = await post(url, body)
    assert got == status
    assert says in text


async def raw(url: str, sent: bytes) -> bytes:
    """Everything until the stub hangs up."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    received = b""
    try:
        async with asyncio.timeout(5):
            received = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return received


def request(body: bytes, *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n%s\r\n%s" % (len(body), head, body)


async def test_connection_close_is_obeyed(url):
    assert (await raw(url, request(b'{"model":"at-once"}', b"connection: close"))).startswith(b"HTTP/1.1 200")


async def test_a_request_before_the_end_of_an_answer_ends_the_connection(url):
    """It would mix two answers: whoever does that to an engine has a fault."""
    stream = request(b'{"model":"paced","stream":true,"max_tokens":90}')
    began_s = perf_counter()
    received = await raw(url, stream + stream)
    assert b"[DONE]" not in received
    assert perf_counter() - began_s < 1


async def test_what_is_not_http_ends_the_connection(url):
    assert await raw(url, b"EHLO example\r\n\r\n") == b""
