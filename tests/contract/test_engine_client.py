"""HTTP towards engines, against a server that answers byte by byte what a test wants."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from cluster.errors import EngineFailed
from deployments import engine_client
from deployments.engine_client import EngineClient
from deployments.free_port import free_port

TOKEN = "t" * 32

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\na: b\r\n\r\n"
)

Script = Callable[[Reader, Writer], Awaitable[None]]


@pytest.fixture(params=[uvloop.EventLoopPolicy, asyncio.DefaultEventLoopPolicy], ids=["uvloop", "asyncio"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


class ScriptedEngine:
    """`script` is what each of its connections does. `requests` are the bodies that came."""

    def __init__(self) -> None:
        self.script: Script = self.answering(OK)
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.address = ""

    async def request(self, reader: Reader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"authorization: Bearer " + TOKEN.encode() in head
        body = await reader.readexactly(int(head.rsplit(b"content-length: ")[1]))
        self.requests.append(body)
        return body

    def answering(self, *answers: bytes, then: str = "") -> Script:
        """One of `answers` for each request of a connection, `then` `close`, `reset`, or more requests."""

        async def script(reader: Reader, writer: Writer) -> None:
            for answer in answers:
                await self.request(reader)
                writer.write(answer)
                await writer.drain()
            if then == "reset":
                writer.transport.abort()
            elif not then:
                await reader.read()

        return script

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):  # the client has left
            pass
        finally:
            self.open -= 1
            writer.close()

    async def until_open(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.open != count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    scripted.address = f"{host}:{port}"
    yield scripted
    server.close()


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    engines = EngineClient(TOKEN, connect_timeout_s=1)
    yield engines
    await engines.close()


async def ask(client: EngineClient, engine: ScriptedEngine, body: bytes = b"{}") -> tuple[int, bytes]:
    """The whole answer, as a stream and not."""
    answer = await asyncio.wait_for(client.post(engine.address, "/v1/x", body), 5)
    try:
        return answer.status, await asyncio.wait_for(answer.read(), 5)
    finally:
        answer.close()


async def relay(client: EngineClient, engine: ScriptedEngine) -> bytes:
    answer = await client.post(engine.address, "/v1/x", b"{}")
    received = bytearray()
    try:
        await asyncio.wait_for(answer.relay(received.extend), 5)
    finally:
        answer.close()
    return bytes(received)


async def test_a_complete_answer_leaves_its_connection_for_the_next(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    engine.script = engine.answering(OK, CHUNKED, OK, CHUNKED)
    assert [await ask(client, engine, b"%d" % at) for at in range(2)] == [(200, b"hello"), (200, b"hello!")]
    assert [await relay(client, engine) for _ in range(2)] == [b"hello", b"hello!"]
    assert (engine.connections, engine.requests) == (1, [b"0", b"1", b"{}", b"{}"])


@pytest.mark.parametrize(
    "data", [OK, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + OK], ids=["length", "chunks", "1xx"]
)
async def test_an_answer_is_the_same_wherever_its_bytes_are_split(
    client: EngineClient, engine: ScriptedEngine, data: bytes
) -> None:
    expected = b"hello!" if data is CHUNKED else b"hello"

    async def in_two(reader: Reader, writer: Writer) -> None:
        for at in [*range(1, len(data)), *range(1, len(data))]:
            await engine.request(reader)
            writer.write(data[:at])
            await asyncio.sleep(0.0005)
            writer.write(data[at:])
        await reader.read()

    engine.script = in_two
    for _ in range(1, len(data)):
        assert await ask(client, engine) == (200, expected)
    for _ in range(1, len(data)):
        assert await relay(client, engine) == expected
    assert engine.connections == 1


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_connection_that_was_closed_while_it_was_idle_is_no_failure(
    client: EngineClient, engine: ScriptedEngine, then: str
) -> None:
    engine.script = engine.answering(OK, then=then)
    for at in range(5):
        assert await ask(client, engine, b"%d" % at) == (200, b"hello")
        await engine.until_open(0)
    assert engine.requests == [b"0", b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("then", ["close", "reset"])
async def test_closed_right_after_the_second_request_it_is_sent_once_more(
    client: EngineClient, engine: ScriptedEngine, then: str
) -> None:
    """The engine's keep-alive may end in the moment in which we send."""

    async def one_answer(reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(OK)
        await engine.request(reader)
        if then == "reset":
            writer.transport.abort()

    engine.script = one_answer
    assert await ask(client, engine, b"0") == (200, b"hello")
    assert await ask(client, engine, b"1") == (200, b"hello")
    assert (engine.connections, engine.requests) == (2, [b"0", b"1", b"1"])


FAILURES = {
    "nothing": b"",
    "half a head": OK[:20],
    "truncated body": OK[:-1],
    "truncated chunk": CHUNKED[:-12],
    "no last chunk": CHUNKED[: CHUNKED.index(b"0\r\n")],
    "body longer than its length": OK + b"x",
    "no framing": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "length and chunks": CHUNKED.replace(b"\r\n", b"\r\ncontent-length: 5\r\n", 1),
    "garbage": b"\x00\xff garbage\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    "SSE without HTTP": b"data: {}\n\n",
    "only 1xx": b"HTTP/1.1 100 Continue\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" + OK,
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_what_is_no_whole_answer_is_a_failure_of_the_engine(
    client: EngineClient, engine: ScriptedEngine, name: str, then: str
) -> None:
    """Never a shorter answer; and the connection is not used again."""
    engine.script = engine.answering(FAILURES[name], then=then)
    for read in (ask, relay):
        with pytest.raises(EngineFailed):
            await read(client, engine)
        await engine.until_open(0)
    engine.script = engine.answering(OK)
    assert await ask(client, engine) == (200, b"hello")


SECOND = b"HTTP/1.1 201 Created\r\ncontent-length: 6\r\n\r\nsecond"


@pytest.mark.parametrize(
    "extra", [SECOND, SECOND[:-1], SECOND[:30], b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n"]
)
@pytest.mark.parametrize("gap_s", [0.0, 0.01])
async def test_a_second_answer_is_never_taken_for_that_of_another_call(
    client: EngineClient, engine: ScriptedEngine, extra: bytes, gap_s: float
) -> None:
    """To the first call it is a failure at most."""

    async def twice(reader: Reader, writer: Writer) -> None:
        while True:
            body = await engine.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + body)
            if gap_s:
                await asyncio.sleep(gap_s)
            writer.write(extra)

    engine.script = twice
    for at in range(6):
        answer = await client.post(engine.address, "/v1/x", b"%d" % at)
        await asyncio.sleep(2 * gap_s)
        try:
            assert (answer.status, await answer.read()) == (200, b"%d" % at)
        except EngineFailed:
            pass
        finally:
            answer.close()


async def test_an_answer_that_is_not_awaited_closes_its_connection(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    """So that the engine aborts what nobody waits for."""
    engine.script = engine.answering(OK[:-1])
    answer = await client.post(engine.address, "/v1/x", b"{}")
    answer.close()
    answer.close()
    await engine.until_open(0)
    engine.script = engine.answering(b"")
    asking = asyncio.create_task(ask(client, engine))
    await engine.until_open(1)
    asking.cancel()
    await engine.until_open(0)
    assert asking.cancelled() or asking.cancelling()


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_errors_have_a_status_and_a_body(
    client: EngineClient, engine: ScriptedEngine, status: int
) -> None:
    engine.script = engine.answering(OK.replace(b"200 OK", b"%d No" % status), OK)
    assert await ask(client, engine) == (status, b"hello")
    assert await ask(client, engine) == (200, b"hello")
    assert engine.connections == 1


async def test_an_engine_that_says_close_is_believed(client: EngineClient, engine: ScriptedEngine) -> None:
    closing = OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    engine.script = engine.answering(closing, closing)
    assert [await ask(client, engine) for _ in range(3)] == [(200, b"hello")] * 3
    assert engine.connections == 3


async def test_slow_headers_are_waited_for_and_an_engine_that_is_not_there_is_not(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        for byte in OK:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        await reader.read()

    engine.script = slow
    assert await ask(client, engine) == (200, b"hello")
    for address in (f"127.0.0.1:{free_port()}", "nowhere.invalid:80", "127.0.0.1:x", "no-port"):
        with pytest.raises(EngineFailed, match="could not be reached"):
            await client.post(address, "/v1/x", b"{}")


async def test_an_answer_that_is_too_large_is_cut_unless_it_is_streamed(
    client: EngineClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "MAX_ANSWER_BYTES", 1_000_000)
    body = b"x" * 3_000_000
    large = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    engine.script = engine.answering(large, large)
    assert len(await relay(client, engine)) == len(body)
    with pytest.raises(EngineFailed, match="too large"):
        await ask(client, engine)


async def test_a_reader_that_raises_ends_the_answer(client: EngineClient, engine: ScriptedEngine) -> None:
    def refusing(_: bytes) -> None:
        raise KeyError("of the reader")

    async def endless(reader: Reader, writer: Writer) -> None:
        await engine.request(reader)
        writer.write(CHUNKED[: CHUNKED.index(b"5;")])
        while True:
            writer.write(b"1\r\na\r\n")
            await writer.drain()
            await asyncio.sleep(0.001)

    engine.script = endless
    answer = await client.post(engine.address, "/v1/x", b"{}")
    with pytest.raises(KeyError):
        await answer.relay(refusing)
    answer.close()
    await engine.until_open(0)


async def test_a_paused_answer_holds_back_the_engine(client: EngineClient, engine: ScriptedEngine) -> None:
    piece = b"x" * 10_000
    written = 0

    async def many(reader: Reader, writer: Writer) -> None:
        nonlocal written
        await engine.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(10_000):
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    engine.script = many
    answer = await client.post(engine.address, "/v1/x", b"{}")
    received = 0

    def count(data: bytes) -> None:
        nonlocal received
        received += len(data)

    relaying = asyncio.create_task(answer.relay(count))
    await asyncio.sleep(0.05)
    answer.pause()
    answer.pause()
    await asyncio.sleep(0.3)
    stopped_at = received
    await asyncio.sleep(0.2)
    assert received == stopped_at < 100_000_000
    assert written < received + 20 * 2**20
    answer.resume()
    answer.resume()
    await asyncio.wait_for(relaying, 20)
    assert received == 100_000_000
    answer.close()


async def test_pauses_after_the_end_and_of_another_answer_do_nothing(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    engine.script = engine.answering(OK, OK, OK)
    first = await client.post(engine.address, "/v1/x", b"{}")
    await first.read()
    first.pause()
    first.close()
    second = await client.post(engine.address, "/v1/x", b"{}")
    first.pause()
    assert await asyncio.wait_for(second.read(), 1) == b"hello"
    second.close()
    assert engine.connections == 1


async def test_100_calls_at_once_each_get_their_own_answer(
    client: EngineClient, engine: ScriptedEngine
) -> None:
    async def echo(reader: Reader, writer: Writer) -> None:
        while True:
            body = await engine.request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    engine.script = echo
    for _ in range(3):
        bodies = [b"%d" % at for at in range(100)]
        answers = await asyncio.gather(*(ask(client, engine, body) for body in bodies))
        assert answers == [(200, body) for body in bodies]
    assert engine.connections <= 100
