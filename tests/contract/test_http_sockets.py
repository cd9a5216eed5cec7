"""The gateway's HTTP on real sockets: clients that do not read, do not write, or stay too long; TLS; drain.
On the event loop of production: asyncio's own, used by most other tests, resets TLS connections with unread
bytes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from cluster.config import GatewayConfig
from cluster.errors import StartError
from deployments.free_port import bound_socket
from deployments.gateway.http import listener as listener_module
from deployments.gateway.http.limits import HttpLimits
from deployments.gateway.http.listener import Listener
from deployments.gateway.http.message import Handler, Reply, Request
from deployments.gateway.http.tls import tls_context
from tests.certificates import self_signed
from tests.contract.test_http_listener import GET, OLD, POST, code_of, post
from tests.fault_matrix import fault
from tests.raw_http import Answer, Echo, answers_in

SHORT = HttpLimits(
    body_bytes=100_000,
    head_s=0.3,
    body_s=0.3,
    idle_s=0.3,
    stalled_s=0.4,
    connections=20,
    connections_per_address=15,
)
SLOW_READERS = int(os.environ.get("SPRAT_SLOW_READERS", "20"))
PATIENT = HttpLimits(body_bytes=2**20)


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


@pytest.fixture(autouse=True)
def sweeps_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "SWEEP_S", 0.05)


class Running:
    def __init__(self, listener: Listener, port: int) -> None:
        self.listener = listener
        self.port = port

    async def connect(self, **options: Any) -> tuple[Reader, Writer]:
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def ask(self, data: bytes, **options: Any) -> list[Answer]:
        """Until the server closes."""
        reader, writer = await self.connect(**options)
        writer.write(data)
        answers = answers_in(await asyncio.wait_for(reader.read(), 10))
        writer.close()
        return answers

    async def until_connections(self, count: int, within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while self.listener.connections != count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(
    handler: Handler | None = None, limits: HttpLimits = PATIENT, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Running]:
    sock = bound_socket("127.0.0.1")
    listener = Listener(sock, handler or Echo(), limits, tls)
    await listener.start()
    try:
        yield Running(listener, sock.getsockname()[1])
    finally:
        await listener.close()


class Endless:
    """A source of pieces as fast as they are taken."""

    def __init__(self, reply: Reply, piece: bytes, pieces: int) -> None:
        self._reply = reply
        self._piece = piece
        self.left = pieces
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.pauses = 0

    def pause(self) -> None:
        self.pauses += 1
        self._may_write.clear()

    def resume(self) -> None:
        self._may_write.set()

    async def run(self) -> None:
        self._reply.start(200, {})
        self._reply.take_from(self)
        while self.left:
            await self._may_write.wait()
            self.left -= 1
            self._reply.write(self._piece)
            await asyncio.sleep(0)
        self._reply.end()


# Time


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (GET, 200),
        (b"GET", 408),
        (GET[:-2], 408),
        (POST[:-1], 408),
        (post(b"transfer-encoding: chunked"), 408),
    ],
)
async def test_a_client_that_stays_too_long_is_answered_and_closed(sent: bytes, status: int | None) -> None:
    async with listening(limits=SHORT) as running:
        answers = await running.ask(sent)
        assert [answer.status for answer in answers] == ([] if status is None else [status])
        await running.until_connections(0)


@pytest.mark.parametrize("head", [b"", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"])
async def test_one_byte_at_a_time_does_not_buy_time(head: bytes) -> None:
    async with listening(limits=SHORT) as running:
        reader, writer = await running.connect()
        writer.write(head)
        answer = asyncio.create_task(reader.read())
        for byte in b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100:
            if answer.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
        (timeout,) = answers_in(await asyncio.wait_for(answer, 1))
        assert (timeout.status, code_of(timeout)) == (408, "request_timeout")
        writer.close()


async def test_an_answer_may_take_longer_than_a_request() -> None:
    async def slow(_: Request, reply: Reply) -> None:
        await asyncio.sleep(3 * SHORT.idle_s)
        reply.respond(200, {}, b"late")

    async with listening(slow, SHORT) as running:
        (answer,) = await running.ask(GET)
        assert answer.body == b"late"


# Clients that do not read


@fault(
    "clients that do not read", "their sources are held back, memory stays small, they are cut in their time"
)
@pytest.mark.parametrize("head", [b"", b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"], ids=["alone", "after-head"])
async def test_a_client_that_does_not_read_holds_back_its_source_and_is_cut(
    head: bytes, measured: Callable[..., None]
) -> None:
    """100 MB for each: the process does not hold them."""
    sources: list[Endless] = []
    piece = b"x" * 10_000

    async def streaming(request: Request, reply: Reply) -> None:
        source = Endless(reply, piece, 2 if request.method == "HEAD" else 10_000)
        sources.append(source)
        await source.run()

    limits = replace(PATIENT, stalled_s=1.0, write_buffer_bytes=64 * 1024)
    async with listening(streaming, limits) as running:
        clients = [await running.connect(limit=1024) for _ in range(SLOW_READERS)]
        gc.collect()
        before = psutil.Process().memory_info().rss
        for _, writer in clients:
            writer.write(head + GET)
        async with asyncio.timeout(60):
            while sum(source.pauses > 0 for source in sources) < len(clients):
                await asyncio.sleep(0.01)
        grown = psutil.Process().memory_info().rss - before
        assert grown < SLOW_READERS * 2**20 + 10 * 2**20
        assert all(source.left for source in sources if source.pauses)
        await running.until_connections(0, within_s=30)
        measured(clients=SLOW_READERS, mib_per_client=round(grown / 2**20 / SLOW_READERS, 2))
        for _, writer in clients:
            writer.transport.abort()


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    async def streaming(_: Request, reply: Reply) -> None:
        await Endless(reply, b"x" * 10_000, 300).run()

    async with listening(streaming, replace(PATIENT, stalled_s=5.0)) as running:
        reader, writer = await running.connect(limit=4096)
        writer.write(GET[:-2] + b"connection: close\r\n\r\n")
        received = bytearray()
        while data := await reader.read(64 * 1024):
            received += data
            await asyncio.sleep(0.002)
        (answer,) = answers_in(bytes(received))
        assert (len(answer.body), answer.complete) == (3_000_000, True)
        writer.close()


async def test_answers_do_not_pile_up_before_a_client_that_only_writes() -> None:
    """Whatever it asks for: each answer is larger than its question."""
    seen = 0

    async def large(_: Request, reply: Reply) -> None:
        nonlocal seen
        seen += 1
        reply.respond(200, {}, b"x" * 50_000)

    limits = replace(PATIENT, stalled_s=1.0, write_buffer_bytes=64 * 1024)
    async with listening(large, limits) as running:
        _, writer = await running.connect(limit=1024)
        sending = asyncio.create_task(_send_for_ever(writer, GET * 10))
        await asyncio.sleep(0.5)
        assert 0 < seen * 50_000 < 20 * 2**20
        await running.until_connections(0)
        with pytest.raises(ConnectionError):
            await sending
        writer.transport.abort()


async def _send_for_ever(writer: Writer, data: bytes) -> None:
    while True:
        writer.write(data)
        await writer.drain()


# Refusals that arrive


@pytest.mark.parametrize("headers", [b"content-length: 50000000", b"transfer-encoding: chunked"])
async def test_a_client_that_still_sends_gets_its_413(headers: bytes) -> None:
    """Closed with unread bytes, a connection is reset, and its answer is lost."""
    async with listening() as running:
        reader, writer = await running.connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n")
        for _ in range(400):
            writer.write(b"%x\r\n%b\r\n" % (10_000, b"b" * 10_000))
            await asyncio.sleep(0)
        (answer,) = answers_in(await asyncio.wait_for(reader.read(), 5))
        assert (answer.status, code_of(answer)) == (413, "body_too_large")
        writer.close()
        await running.until_connections(0)


async def test_there_is_a_cap_of_connections_per_address() -> None:
    async with listening(limits=replace(SHORT, idle_s=30, connections_per_address=3)) as running:
        kept = [await running.connect() for _ in range(3)]
        (answer,) = await running.ask(b"")
        assert (answer.status, code_of(answer)) == (503, "too_many_connections")
        kept.pop()[1].transport.abort()
        await running.until_connections(2)
        assert (await running.ask(OLD))[0].status == 200
        for _, writer in kept:
            writer.transport.abort()


# Leaving


async def test_half_closed_is_gone() -> None:
    """A client that will send no more counts as one that has left: the engine is not kept busy for it."""
    cancelled = asyncio.Event()

    async def waiting(_: Request, __: Reply) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with listening(waiting) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        writer.write_eof()
        await asyncio.wait_for(cancelled.wait(), 2)
        assert await reader.read() == b""
        writer.close()
        await running.until_connections(0)


async def test_drain() -> None:
    """Idle connections close at once, answers complete and say that they are the last."""
    release = asyncio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        await release.wait()
        reply.respond(200, {}, request.query)

    async with listening(slow) as running:
        idle, _ = await running.connect()
        busy, writer = await running.connect()
        pipelining, second = await running.connect()
        begun, third = await running.connect()
        writer.write(GET)
        second.write(GET)
        third.write(POST[:-3])
        await asyncio.sleep(0.1)
        second.write(GET * 10_000)
        await asyncio.sleep(0.1)
        running.listener.stop_accepting()
        assert not running.listener.is_listening
        assert await asyncio.wait_for(idle.read(), 1) == b""
        release.set()
        third.write(POST[-3:])
        for reader in (busy, pipelining, begun):
            (answer,) = answers_in(await asyncio.wait_for(reader.read(), 5))
            assert (answer.status, answer.headers["connection"], answer.complete) == (200, "close", True)
        with pytest.raises(ConnectionError):
            await running.connect()
        for each in (writer, second, third):
            each.close()


async def test_close_cuts_and_waits_for_its_handlers() -> None:
    ended = asyncio.Event()

    async def waiting(_: Request, __: Reply) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with listening(waiting) as running:
        reader, writer = await running.connect()
        writer.write(GET)
        await asyncio.sleep(0.1)
        await running.listener.close()
        assert ended.is_set()
        assert await reader.read() == b""
        writer.close()
        await running.until_connections(0)


async def test_the_sweeper_survives_a_connection_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it no connection has an end."""
    async with listening(limits=SHORT) as running:
        reader, _ = await running.connect()
        await running.until_connections(1)
        (connection,) = running.listener._connections
        monkeypatch.setattr(type(connection), "expire", _broken_once(type(connection).expire))
        assert await asyncio.wait_for(reader.read(), 3) == b""


def _broken_once(expire: Callable[[Any], None]) -> Callable[[Any], None]:
    calls = 0

    def broken(connection: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the transport is closed")
        expire(connection)

    return broken


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """And its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = tls_context(_config(*certificate))
    assert context is not None
    return context


def _config(certificate: Path, key: Path) -> GatewayConfig:
    return GatewayConfig.model_validate({"tls": {"certificate": str(certificate), "key": str(key)}})


async def test_tls(server_tls: ssl.SSLContext, certificate: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with listening(tls=server_tls) as running:
        reader, writer = await running.connect(ssl=trusting)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        writer.write(POST * 3 + GET[:-2] + b"connection: close\r\n\r\n")
        answers = answers_in(await asyncio.wait_for(reader.read(), 5))
        assert [answer.body for answer in answers] == [*[b"POST /p? hello world"] * 3, b"GET /a?b=c "]
        writer.close()
        await running.until_connections(0)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):  # plain HTTP on the TLS port
            assert await running.ask(GET) == []
            raise ConnectionResetError
        old = ssl.create_default_context(cafile=str(certificate[0]))
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError):
            await running.connect(ssl=old)
        assert (await running.ask(OLD, ssl=trusting))[0].status == 200


async def test_a_client_over_tls_that_still_sends_gets_its_413(
    server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    async with listening(tls=server_tls) as running:
        reader, writer = await running.connect(ssl=trusting)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n" + b"b" * 1_000_000)
        (answer,) = answers_in(await asyncio.wait_for(reader.read(), 5))
        assert answer.status == 413
        writer.transport.abort()


async def test_a_handshake_that_does_not_come_has_an_end(server_tls: ssl.SSLContext) -> None:
    """Such connections are not yet the listener's to count."""
    async with listening(limits=SHORT, tls=server_tls) as running:
        reader, writer = await running.connect()
        writer.write(b"\x16\x03\x01")
        with pytest.raises(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 3) == b""
            raise ConnectionResetError
        writer.close()


def test_tls_files_that_cannot_be_used(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    for wrong in (_config(certificate[0], tmp_path / "none"), _config(certificate[1], certificate[1])):
        with pytest.raises(StartError, match=r"gateway\.tls"):
            tls_context(wrong)


async def test_a_unix_socket_has_no_peer(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    echo = Echo()
    listener = Listener(sock, echo, PATIENT)
    await listener.start()
    reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
    writer.write(OLD)
    assert answers_in(await reader.read())[0].status == 200
    assert echo.seen[0].peer == ""
    writer.close()
    await listener.close()


async def test_bodies_on_their_way_in_are_bounded_over_all_connections() -> None:
    """Senders need no key to send, so many of them could fill the memory."""
    async with listening(limits=replace(PATIENT, body_bytes=2**20, held_body_bytes=2**20)) as running:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        first_reader, first = await asyncio.open_connection("127.0.0.1", running.port)
        first.write(head + b"a" * 700_000)
        await asyncio.sleep(0.2)
        second_reader, second = await asyncio.open_connection("127.0.0.1", running.port)
        second.write(head + b"b" * 700_000)
        assert (await second_reader.readline()).split()[1] == b"503"
        second.close()

        first.write(b"a" * 300_000)
        assert (await first_reader.readline()).split()[1] == b"200"
        first.close()
