"""The gateway's HTTP, byte by byte: `HttpConnection` without a socket and with an echo for a handler."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from deployments.gateway.http.connection import HttpConnection
from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.listener import Listener
from deployments.gateway.http.message import Reply, Request
from tests.raw_http import Answer, Echo, MemoryTransport, answers_in, echo_of, pair_splits, splits

LIMITS = HttpLimits(body_bytes=1000, head_bytes=2000, headers=20, url_bytes=200, pipelined=16)

GET = b"GET /a?b=c HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x:80\r\nContent-Length: 11\r\n\r\nhello world"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;a=b;c="d"\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: 1\r\nHost: y\r\n\r\n'
)
HEAD = b"HEAD /h HTTP/1.1\r\nhost: x\r\n\r\n"
OLD = b"POST /o HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"
OLD_KEPT = b"GET /k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
CLOSING = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
ABSOLUTE = b"GET http://elsewhere:81/abs?q HTTP/1.1\r\nhost: x\r\n\r\n"
TWO_LENGTHS = (
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)

WELL_FORMED = {
    "get": (GET, [b"GET /a?b=c "]),
    "post": (POST, [b"POST /p? hello world"]),
    "chunked": (CHUNKED, [b"POST /c? hello world"]),
    "http10": (OLD, [b"POST /o? hi"]),
    "http10-kept": (OLD_KEPT + OLD, [b"GET /k? ", b"POST /o? hi"]),
    "absolute": (ABSOLUTE, [b"GET /abs?q "]),
    "three-in-one": (
        CHUNKED + GET + POST,
        [b"POST /c? hello world", b"GET /a?b=c ", b"POST /p? hello world"],
    ),
    "closing": (POST + CLOSING + GET, [b"POST /p? hello world", b"GET /last? "]),
    "empty-line-before": (b"\r\n" + GET, [b"GET /a?b=c "]),
}
"""Requests, and what an echo answers to each."""


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    with socket.socket() as sock:
        yield Listener(sock, Echo(), LIMITS)


def connect(listener: Listener) -> MemoryTransport:
    return MemoryTransport(HttpConnection(listener))


async def written_to(listener: Listener, packets: Iterable[bytes]) -> bytes:
    client = connect(listener)
    await client.send(*packets)
    return await client.leave()


async def converse(listener: Listener, *packets: bytes, methods: tuple[str, ...] = ()) -> list[Answer]:
    answers = answers_in(await written_to(listener, packets), methods)
    assert all(answer.complete for answer in answers)
    return answers


def code_of(answer: Answer) -> str:
    """Of an error of the gateway's HTTP."""
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/json"
    return answer.body.decode().split('"code":"')[1].split('"')[0]


# Splits


@pytest.mark.parametrize("name", WELL_FORMED)
async def test_a_request_is_the_same_wherever_its_bytes_are_split(listener: Listener, name: str) -> None:
    data, expected = WELL_FORMED[name]
    for packets in [(data,), *splits(data), tuple(bytes([byte]) for byte in data)]:
        answers = await converse(listener, *packets)
        assert [answer.body for answer in answers] == expected, packets


@pytest.mark.parametrize(
    "data", [GET, OLD_KEPT[:30] + b"\r\n\r\n", CLOSING], ids=["get", "http10", "closing"]
)
async def test_also_split_at_every_pair_of_offsets(listener: Listener, data: bytes) -> None:
    whole = await written_to(listener, [data])
    for packets in pair_splits(data):
        assert await written_to(listener, packets) == whole, packets


async def test_a_refusal_is_the_same_wherever_its_bytes_are_split(listener: Listener) -> None:
    data = GET + TWO_LENGTHS + GET
    for packets in splits(data):
        first, refused = await converse(listener, *packets)
        assert (first.body, code_of(refused)) == (b"GET /a?b=c ", "malformed_request")


@pytest.mark.parametrize("name", WELL_FORMED)
async def test_a_client_that_leaves_at_any_byte_leaves_nothing_behind(listener: Listener, name: str) -> None:
    """And no request is seen that did not come in whole."""
    data, expected = WELL_FORMED[name]
    for at in range(len(data)):
        seen = listener.handler = Echo()
        client = connect(listener)
        await client.send(data[:at])
        await client.leave()
        assert [echo_of(request) for request in seen.seen] == expected[: len(seen.seen)]
        assert listener.connections == 0
        assert client.lost


# Pipelining


async def test_what_is_pipelined_is_answered_in_order_one_at_a_time(listener: Listener) -> None:
    """The first is slow. One more than the limit waits at most: the rest of the packet is refused."""
    release = asyncio.Event()
    running = 0

    async def slow_first(request: Request, reply: Reply) -> None:
        nonlocal running
        running += 1
        assert running == 1, "two requests of one connection at once"
        if request.query == b"0":
            await release.wait()
        reply.respond(200, {}, request.query)
        running -= 1

    for count in range(2, 51):
        release.clear()
        running = 0
        listener.handler = slow_first
        client = connect(listener)
        await client.send(
            b"".join(b"GET /?%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(count))
        )
        assert client.written == b""
        release.set()
        answers = answers_in(await client.leave())
        kept = min(count, LIMITS.pipelined + 1)
        assert [answer.body for answer in answers[:kept]] == [b"%d" % number for number in range(kept)]
        assert [code_of(answer) for answer in answers[kept:]] == ["too_many_pipelined"] * (count > kept)


async def test_a_client_that_sends_while_it_is_answered_is_not_read_meanwhile(listener: Listener) -> None:
    release = asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        await release.wait()
        reply.respond(200, {}, request.query)

    listener.handler = slow
    client = connect(listener)
    await client.send(GET, GET)
    assert client.reading_paused
    release.set()
    await client.until(lambda: client.written.count(b"HTTP/1.1 200") == 2)
    assert not client.reading_paused
    assert len(answers_in(await client.leave())) == 2


async def test_100_requests_each_in_its_turn(listener: Listener) -> None:
    packets = [
        b"POST /?%d HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n%03d" % (at, at) for at in range(100)
    ]
    answers = await converse(listener, *packets)
    assert [answer.body for answer in answers] == [b"POST /?%d %03d" % (at, at) for at in range(100)]


# Answers


async def streaming(_: Request, reply: Reply) -> None:
    reply.start(200, {"content-type": "text/event-stream"})
    for piece in (b"one", b"", b"two", b"three"):
        reply.write(piece)
        await asyncio.sleep(0)
    reply.end()


async def test_a_stream_is_chunked_in_11_and_ends_with_the_connection_in_10(listener: Listener) -> None:
    listener.handler = streaming
    new, again = await converse(listener, GET, GET)
    (old,) = await converse(listener, OLD_KEPT, OLD)
    assert new == again
    assert (new.headers["transfer-encoding"], new.body) == ("chunked", b"onetwothree")
    assert ("transfer-encoding" in old.headers, old.headers["connection"], old.body) == (
        False,
        "close",
        b"onetwothree",
    )


async def test_head_gets_the_headers_of_get_and_no_byte_of_a_body(listener: Listener) -> None:
    first, second = await converse(listener, HEAD + GET, methods=("HEAD", "GET"))
    assert (first.headers["content-length"], first.body) == ("9", b"")
    assert second.body == b"GET /a?b=c "
    listener.handler = streaming
    first, second = await converse(listener, HEAD + GET, methods=("HEAD", "GET"))
    assert (first.headers["transfer-encoding"], first.body) == ("chunked", b"")
    assert second.body == b"onetwothree"


async def test_a_reply_that_is_used_after_its_end_changes_nothing(listener: Listener) -> None:
    kept: list[Reply] = []

    async def keeping(request: Request, reply: Reply) -> None:
        for old in kept:
            assert old.ended
            old.start(200, {})
            old.write(b"stale")
            old.respond(200, {}, b"stale")
            old.end()
            old.abort()
        kept.append(reply)
        reply.start(200, {})
        reply.write(request.query)
        reply.end()
        reply.write(b"stale")
        reply.respond(500, {}, b"stale")
        reply.end()
        reply.abort()

    listener.handler = keeping
    packets = [b"GET /?%d HTTP/1.1\r\nhost: x\r\n\r\n" % at for at in range(5)]
    for arrivals in (packets, [b"".join(packets)]):
        answers = await converse(listener, *arrivals)
        assert [answer.body for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]


async def raising(_: Request, __: Reply) -> None:
    raise RuntimeError("of the handler")


async def raising_midway(_: Request, reply: Reply) -> None:
    reply.start(200, {})
    reply.write(b"half")
    raise RuntimeError("of the handler")


async def forgetting(_: Request, __: Reply) -> None:
    """Returns without an answer."""


async def splitting(_: Request, reply: Reply) -> None:
    reply.respond(200, {"x-name": "a\r\nset-cookie: b"}, b"")


@pytest.mark.parametrize("handler", [raising, raising_midway, forgetting, splitting])
async def test_a_handler_that_fails_costs_its_connection_and_no_other(
    listener: Listener, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody takes what was written for a whole answer."""
    listener.handler = handler
    with caplog.at_level(logging.ERROR, "ray.serve"):
        answers = answers_in(await written_to(listener, [GET + GET]))
    assert [(answer.body, answer.complete) for answer in answers] == (
        [(b"half", False)] if handler is raising_midway else []
    )
    assert ("unexpected error in GET /a" in caplog.text) == (handler is not forgetting)
    listener.handler = Echo()
    assert (await converse(listener, GET))[0].status == 200


async def test_the_handler_is_cancelled_when_its_client_leaves(listener: Listener) -> None:
    cancelled = asyncio.Event()

    async def waiting(_: Request, reply: Reply) -> None:
        reply.start(200, {})
        reply.write(b"first")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            reply.write(b"nobody reads this")
            raise

    listener.handler = waiting
    client = connect(listener)
    await client.send(GET)
    await client.leave()
    await asyncio.wait_for(cancelled.wait(), 1)
    assert listener.connections == 0


# Expect


WANTS_CONTINUE = b"POST /e HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-Continue\r\n\r\n"


async def test_a_client_that_waits_for_100_continue_gets_it(listener: Listener) -> None:
    for packets in ([WANTS_CONTINUE, b"body"], [WANTS_CONTINUE + b"body"], *splits(WANTS_CONTINUE + b"body")):
        first, second = await converse(listener, *packets)
        assert (first.status, second.status, second.body) == (100, 200, b"POST /e? body"), packets


@pytest.mark.parametrize("together", [True, False])
async def test_100_continue_comes_after_the_answer_before(listener: Listener, *, together: bool) -> None:
    release = asyncio.Event()
    echo = Echo()

    async def slow(request: Request, reply: Reply) -> None:
        if request.method == "GET":
            await release.wait()
        await echo(request, reply)

    listener.handler = slow
    client = connect(listener)
    await client.send(*([GET + WANTS_CONTINUE] if together else [GET, WANTS_CONTINUE]))
    assert client.written == b""
    release.set()
    await client.until(lambda: b"100 Continue" in client.written)
    await client.send(b"body")
    answers = answers_in(await client.leave())
    assert [answer.status for answer in answers] == [200, 100, 200]
    assert answers[2].body == b"POST /e? body"


async def test_what_is_refused_by_its_head_gets_no_100_continue(listener: Listener) -> None:
    too_large = WANTS_CONTINUE.replace(b"length: 4", b"length: 1001")
    (answer,) = await converse(listener, too_large)
    assert (answer.status, code_of(answer)) == (413, "body_too_large")
    (answer,) = await converse(listener, WANTS_CONTINUE.replace(b"100-Continue", b"200-ok"))
    assert (answer.status, code_of(answer)) == (417, "expectation_failed")


async def test_http10_never_gets_100_continue(listener: Listener) -> None:
    (answer,) = await converse(listener, WANTS_CONTINUE.replace(b"1.1", b"1.0") + b"body")
    assert answer.body == b"POST /e? body"


# Targets and methods


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"OPTIONS * HTTP/1.1", b"OPTIONS *? "),
        (b"OPTIONS /a HTTP/1.1", b"OPTIONS /a? "),
        (b"DELETE /a HTTP/1.1", b"DELETE /a? "),
        (b"TRACE /a HTTP/1.1", b"TRACE /a? "),
        (b"PATCH /%61%2F..//b HTTP/1.1", b"PATCH /%61%2F..//b? "),
        (b"GET /?a=%00&b=?? HTTP/1.1", b"GET /?a=%00&b=?? "),
        (b"GET http://x HTTP/1.1", b"GET /? "),
        (b"GET https://u:p@y:1/z?q HTTP/1.1", b"GET /z?q "),
    ],
)
async def test_targets(listener: Listener, line: bytes, expected: bytes) -> None:
    (answer,) = await converse(listener, line + b"\r\nhost: x\r\n\r\n")
    assert (answer.status, answer.body) == (200, expected)


TLS_HELLO = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(range(64))


def get(*headers: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"host: x", *headers, b"", b""])


def post(*headers: bytes, body: bytes = b"a") -> bytes:
    return get(*headers, line=b"POST / HTTP/1.1") + body


REFUSED = {
    "two lengths of different kinds": (TWO_LENGTHS, 400),
    "transfer-encoding first": (
        post(b"transfer-encoding: chunked", b"content-length: 1", body=b"0\r\n\r\n"),
        400,
    ),
    "two equal lengths": (post(b"content-length: 1", b"content-length: 1"), 400),
    "two different lengths": (post(b"content-length: 1", b"content-length: 2"), 400),
    "list of lengths": (post(b"content-length: 1, 1"), 400),
    "length with a sign": (post(b"content-length: +1"), 400),
    "negative length": (post(b"content-length: -1"), 400),
    "length with a space": (post(b"content-length: 1 1"), 400),
    "hexadecimal length": (post(b"content-length: 0x1"), 400),
    "empty length": (post(b"content-length:"), 400),
    "length beyond 64 bits": (post(b"content-length: 18446744073709551617"), 400),
    "length of 2^64 - 1": (post(b"content-length: 18446744073709551615"), 400),
    "length beyond the limit": (post(b"content-length: 1001"), 413),
    "identity": (post(b"transfer-encoding: identity"), 400),
    "chunked twice": (post(b"transfer-encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "chunked in two headers": (
        post(b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=b"0\r\n\r\n"),
        400,
    ),
    "gzip, chunked": (post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "chunked, gzip": (post(b"transfer-encoding: chunked, gzip", body=b"0\r\n\r\n"), 400),
    "xchunked": (post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunked with a vertical tab": (post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "chunked in 1.0": (
        b"POST / HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "chunk of a huge size": (post(b"transfer-encoding: chunked", body=b"ffffffffffffffffff\r\n"), 400),
    "chunk of a negative size": (post(b"transfer-encoding: chunked", body=b"-1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size with 0x": (post(b"transfer-encoding: chunked", body=b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size with a space before": (
        post(b"transfer-encoding: chunked", body=b" 1\r\na\r\n0\r\n\r\n"),
        400,
    ),
    "chunk size with LF": (post(b"transfer-encoding: chunked", body=b"1\na\r\n0\r\n\r\n"), 400),
    "chunk longer than it says": (post(b"transfer-encoding: chunked", body=b"1\r\nab\r\n0\r\n\r\n"), 400),
    "length among the trailers": (
        post(b"transfer-encoding: chunked", body=b"0\r\ncontent-length: 3\r\n\r\n"),
        400,
    ),
    "chunk without its end": (post(b"transfer-encoding: chunked", body=b"1\r\na0\r\n\r\n"), 400),
    "obs-fold": (get(b"a: b", b" c"), 400),
    "obs-fold before the headers": (b"GET / HTTP/1.1\r\n host: x\r\n\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nhost: x\n\n", 400),
    "bare LF after a header": (b"GET / HTTP/1.1\r\nhost: x\na: b\r\n\r\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nhost: x\r\n\n", 400),
    "bare CR in a header": (get(b"a: b\rc: d"), 400),
    "NUL in a header": (get(b"a: b\0c"), 400),
    "NUL in a header's name": (get(b"a\0: b"), 400),
    "space before the colon": (get(b"a : b"), 400),
    "header without a name": (get(b": b"), 400),
    "header without a colon": (get(b"ab"), 400),
    "space in a header's name": (get(b"a b: c"), 400),
    "control character in a header": (get(b"a: \x01"), 400),
    "two hosts": (get(b"Host: x"), 400),
    "two authorizations": (get(b"authorization: a", b"Authorization: a"), 400),
    "two API keys": (get(b"x-api-key: a", b"x-api-key: b"), 400),
    "two content types": (post(b"content-type: a", b"content-type: a", b"content-length: 1"), 400),
    "two idempotency keys": (get(b"idempotency-key: a", b"idempotency-key: a"), 400),
    "two of our own": (get(b"x-sprat-tier: a", b"X-Sprat-Tier: a"), 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "empty host": (b"GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
    **{
        f"host with {character!r}": (b"GET / HTTP/1.1\r\nhost: x%by\r\n\r\n" % character, 400)
        for character in (b"/", b"?", b"#", b"@", b"\\", b" ", b",", b"\xff", b"%", b'"', b"<")
    },
    "host longer than names are": (b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % (b"x" * 256), 400),
    "HTTP/0.9": (b"GET /\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nhost: x\r\n\r\n", 400),
    "HTTP/11": (b"GET / HTTP/11\r\nhost: x\r\n\r\n", 400),
    "lower-case http": (b"GET / http/1.1\r\nhost: x\r\n\r\n", 400),
    "ICE": (b"SOURCE / ICE/1.0\r\nhost: x\r\n\r\n", 400),
    "RTSP": (b"DESCRIBE / RTSP/1.0\r\nhost: x\r\n\r\n", 400),
    "unknown method": (b"FROB / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "lower-case method": (b"get / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "CONNECT with a path": (b"CONNECT /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "TLS on the plain port": (TLS_HELLO, 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", 400),
    "noise": (bytes(range(256)), 400),
    "a response": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 400),
    "tab for a space": (b"GET\t/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "fragment": (b"GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "fragment in the query": (b"GET /a?b#c HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "fragment of a URL": (b"GET http://x/a#b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "no slash": (b"GET a HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "another scheme": (b"GET ftp://x/ HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "raw bytes in the target": (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "backslash in the target": (b"GET /a\\b HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "URL too long": (b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 200), 414),
    "too many headers": (get(*(b"a%d: b" % number for number in range(20))), 431),
    "header too large": (get(b"a: " + b"b" * 2000), 431),
    "header's name too large": (get(b"a" * 2000 + b": b"), 431),
    "one header many times": (get(*(b"a: %d" % number for number in range(400))), 431),
}
"""Request, and the status of its refusal."""


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_not_strict_is_refused_and_ends_the_connection(listener: Listener, name: str) -> None:
    """In its turn: the request before is answered, nothing after it is seen. In one packet and in pieces."""
    data, status = REFUSED[name]
    for packets in (
        [POST + data + GET],
        [POST, data + GET],
        [POST + data[:-1], data[-1:] + GET],
        [POST, *(bytes([byte]) for byte in data), GET],
    ):
        echo = listener.handler = Echo()
        first, *rest = await converse(listener, *packets)
        assert first.body == b"POST /p? hello world"
        assert [answer.status for answer in rest] == [status], packets
        assert code_of(rest[0])
        assert len(echo.seen) == 1, [echo_of(request) for request in echo.seen]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("with_body", [True, False])
async def test_an_upgrade_is_not_followed(listener: Listener, protocol: bytes, *, with_body: bool) -> None:
    """The request is answered in HTTP/1.1, and the connection ends, as the answer says."""
    headers = [b"connection: upgrade, http2-settings", b"http2-settings: AAMAAABkAARAAAAAAAIAAAAA"]
    headers.append(b"upgrade: " + protocol)
    data = post(*headers, b"content-length: 1") if with_body else get(*headers)
    for packets in ([data + GET], [data, GET], [*(bytes([byte]) for byte in data), GET]):
        echo = listener.handler = Echo()
        (answer,) = await converse(listener, *packets)
        assert (answer.status, answer.headers.get("connection")) == (200, "close")
        assert [echo_of(request) for request in echo.seen] == [b"POST /? a" if with_body else b"GET /? "]


# Sizes


async def test_a_body_up_to_the_limit_comes_through(listener: Listener) -> None:
    body = b"b" * LIMITS.body_bytes
    in_chunks = b"".join(b"1\r\nb\r\n" for _ in body) + b"0\r\n\r\n"
    for data in (
        post(b"content-length: 1000", body=body),
        post(b"transfer-encoding: chunked", body=in_chunks),
    ):
        (answer,) = await converse(listener, data)
        assert answer.body == b"POST /? " + body


async def test_a_body_beyond_the_limit_in_chunks_is_refused(listener: Listener) -> None:
    endless = [b"%x\r\n%b\r\n" % (100, b"b" * 100)] * 30
    (answer,) = await converse(listener, post(b"transfer-encoding: chunked", body=b""), *endless)
    assert (answer.status, code_of(answer)) == (413, "body_too_large")


@pytest.mark.parametrize("begin", [b"GET /", get()[:-2] + b"a: ", get()[:-2], get()[:-2] + b"b\r\n"])
async def test_a_head_has_an_end(listener: Listener, begin: bytes) -> None:
    """Whatever is endless in it."""
    (answer,) = await converse(listener, begin, *[b"a" * 100] * 21)
    assert answer.status in (400, 431)
    client = connect(listener)
    await client.send(begin, b"a" * (LIMITS.head_bytes - 100))
    assert not client.written or begin.endswith(b"b\r\n")
    await client.leave()


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"1;a=", b"b" * 100),
        (b"1\r\na\r\n0\r\na: ", b"b" * 100),
        (b"1\r\na\r\n0\r\n", b"a: b\r\n" * 20),
        (b"1\r\na\r\n0\r\n", b"a" * 100),
    ],
    ids=["extension", "trailer", "trailers", "trailer's name"],
)
async def test_what_is_no_body_has_an_end_too(listener: Listener, begin: bytes, more: bytes) -> None:
    """As large as the headers may be."""
    client = connect(listener)
    await client.send(post(b"transfer-encoding: chunked", body=begin))
    for sent in range(LIMITS.head_bytes // len(more) + 2):
        assert not client.written, f"refused after {sent * len(more)} bytes"
        await client.send(more)
        if client.written:
            break
    (answer,) = answers_in(await client.leave())
    assert answer.status in (413, 431)
    assert listener.handler.seen == []  # type: ignore[attr-defined]


async def test_trailers_are_not_believed(listener: Listener) -> None:
    trailers = b"0\r\nhost: y\r\nauthorization: z\r\nx-sprat-tier: w\r\n\r\n"
    echo = listener.handler = Echo()
    answers = await converse(listener, post(b"transfer-encoding: chunked", body=trailers) + GET)
    assert [answer.status for answer in answers] == [200, 200]
    assert dict(echo.seen[0].headers) == {b"host": b"x", b"transfer-encoding": b"chunked"}
    assert dict(echo.seen[1].headers) == {b"host": b"x"}


async def test_headers_that_may_repeat_are_joined_and_names_have_no_case(listener: Listener) -> None:
    echo = listener.handler = Echo()
    await converse(listener, get(b"X-A: 1", b"x-a:\t 2 ", b"ACCEPT: \xff"))
    assert dict(echo.seen[0].headers) == {b"host": b"x", b"x-a": b"1, 2", b"accept": b"\xff"}
    assert echo.seen[0].header(b"accept") == "ÿ"
    assert echo.seen[0].peer == "192.0.2.1"


# Reading only what has a reader


async def test_a_client_that_does_not_read_gets_no_further_requests_begun(listener: Listener) -> None:
    """Else each of its requests would leave an answer in memory."""
    echo = listener.handler = Echo()
    connection = HttpConnection(listener)
    client = MemoryTransport(connection)
    connection.pause_writing()
    await client.send(GET + GET)
    await client.until(lambda: False)
    assert echo.seen == []
    assert client.reading_paused
    connection.resume_writing()
    await client.send(GET)
    assert len(answers_in(await client.leave())) == 3


async def test_a_client_that_does_not_read_is_cut_whatever_it_pipelined(listener: Listener) -> None:
    async def held_back(_: Request, reply: Reply) -> None:
        reply.start(200, {})
        reply.write(b"a")
        connection.pause_writing()
        reply.end()

    listener.handler = held_back
    connection = HttpConnection(listener)
    client = MemoryTransport(connection)
    await client.send(GET + GET)
    await client.until(lambda: False)
    assert connection.deadline_s <= asyncio.get_running_loop().time() + LIMITS.stalled_s
    connection.expire()
    await client.until(lambda: client.lost)
    assert client.aborted
    assert listener.connections == 0
