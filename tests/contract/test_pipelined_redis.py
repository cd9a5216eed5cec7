"""The pipelining Redis client: on a real Valkey, and against a server that answers byte by byte what a test
wants.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError, NoScriptError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import ConfigError
from cluster.scheduler.pipelined_redis import PipelinedRedis
from tests.certificates import self_signed
from tests.own_valkey import OwnValkey, own_valkey

pytestmark = pytest.mark.contract

ECHO = "return {ARGV[1], ARGV[2] or false}"
PICKY = "if ARGV[1] == 'bad' then return redis.error_reply('BAD') end return ARGV[1]"
Script = Callable[[Reader, Writer], Awaitable[None]]


@pytest.fixture
def valkey() -> Iterator[OwnValkey]:
    with own_valkey() as server:
        yield server


def client_of(url: str, timeout_s: float = 5.0) -> PipelinedRedis:
    return PipelinedRedis(url, connect_timeout_s=2, operation_timeout_s=timeout_s)


@pytest.fixture
async def client(valkey: OwnValkey) -> AsyncIterator[PipelinedRedis]:
    pipelined = client_of(valkey.url)
    yield pipelined
    await pipelined.aclose()


class ScriptedRedis:
    """`script` is what each of its connections does."""

    def __init__(self) -> None:
        self.connections = 0
        self.received = b""
        self.writes = 0
        self.url = ""

        async def silent(reader: Reader, _: Writer) -> None:
            await reader.read()

        self.script: Script = silent

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self.script(reader, writer)
        writer.close()

    def answering(self, *answers: bytes) -> Script:
        """One of them for whatever comes next, then the end of the connection."""

        async def script(reader: Reader, writer: Writer) -> None:
            for answer in answers:
                self.received += await reader.read(2**16)
                self.writes += 1
                writer.write(answer)

        return script


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedRedis]:
    redis = ScriptedRedis()
    server = await asyncio.start_server(redis.serve, "127.0.0.1")
    redis.url = "redis://{}:{}".format(*server.sockets[0].getsockname())
    yield redis
    server.close()


async def test_each_caller_gets_its_own_reply(valkey: OwnValkey, client: PipelinedRedis) -> None:
    with pytest.raises(NoScriptError):
        await client.evalsha("0" * 40, 0)
    sha = valkey.command("SCRIPT", "LOAD", ECHO)
    before = int(valkey.command("INFO", "stats")["total_reads_processed"])
    replies = await asyncio.gather(*(client.evalsha(sha, 0, at, "x" * (at % 500)) for at in range(1000)))
    assert replies == [[f"{at}", "x" * (at % 500)] for at in range(1000)]
    assert await client.eval(ECHO, 1, "key", "é\r\n$1", 2) == ["é\r\n$1", "2"]
    reads = int(valkey.command("INFO", "stats")["total_reads_processed"]) - before
    assert reads < 100, "1000 commands of one turn leave in one write"


async def test_errors_of_the_server_are_those_of_their_callers_alone(
    valkey: OwnValkey, client: PipelinedRedis
) -> None:
    sha = valkey.command("SCRIPT", "LOAD", PICKY)
    asked = ["0", "bad", "2", "bad", "4"]
    replies = await asyncio.gather(*(client.evalsha(sha, 0, each) for each in asked), return_exceptions=True)
    assert [reply if isinstance(reply, str) else type(reply) for reply in replies] == [
        *("0", ResponseError, "2", ResponseError, "4")
    ]
    batch = await client.evalsha_each(sha, [((), (each,)) for each in asked])
    assert [str(reply) for reply in batch] == ["0", "ERR BAD", "2", "ERR BAD", "4"]
    with pytest.raises(ResponseError):
        await client.eval("syntax error", 0)
    assert await client.evalsha(sha, 0, "fine") == "fine"


async def test_a_batch_keeps_its_order_among_others_and_may_be_empty(
    valkey: OwnValkey, client: PipelinedRedis
) -> None:
    sha = valkey.command("SCRIPT", "LOAD", ECHO)
    empty, batch, single = await asyncio.gather(
        client.evalsha_each(sha, []),
        client.evalsha_each(sha, [(("key",), (at,)) for at in range(50)]),
        client.evalsha(sha, 0, "single"),
    )
    assert empty == []
    assert batch == [[f"{at}", None] for at in range(50)]
    assert single == ["single", None]
    missing = await client.evalsha_each("0" * 40, [((), ())])
    assert isinstance(missing[0], NoScriptError)


async def test_who_is_cancelled_takes_no_reply_with_them(valkey: OwnValkey, client: PipelinedRedis) -> None:
    sha = valkey.command("SCRIPT", "LOAD", ECHO)
    await client.evalsha(sha, 0, "connected")
    for turns in range(4):
        calls = [asyncio.create_task(client.evalsha(sha, 0, at)) for at in range(100)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for call in calls[::3]:
            call.cancel()
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for at, reply in enumerate(replies):
            assert reply == [f"{at}", None] or isinstance(reply, asyncio.CancelledError)


async def test_a_hung_server_fails_all_callers_in_time_and_mixes_no_replies_later(
    valkey: OwnValkey,
) -> None:
    client = client_of(valkey.url, timeout_s=0.3)
    sha = valkey.command("SCRIPT", "LOAD", ECHO)
    await client.evalsha(sha, 0, "connected")
    valkey.hang()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    failed = await asyncio.gather(*(client.evalsha(sha, 0, at) for at in range(50)), return_exceptions=True)
    assert {type(each) for each in failed} == {RedisTimeoutError}
    assert 0.3 <= loop.time() - began_s < 2
    valkey.go_on()
    replies = await asyncio.gather(*(client.evalsha(sha, 0, f"new {at}") for at in range(50)))
    assert replies == [[f"new {at}", None] for at in range(50)]
    await client.aclose()


async def test_a_server_that_was_replaced_is_found_again(valkey: OwnValkey, client: PipelinedRedis) -> None:
    assert await client.eval(ECHO, 0, "1") == ["1", None]
    valkey.kill()
    with pytest.raises(RedisConnectionError):
        await client.eval(ECHO, 0, "2")
    valkey.start()
    replies = await asyncio.gather(*(client.eval(ECHO, 0, at) for at in range(20)))
    assert replies == [[f"{at}", None] for at in range(20)]


async def test_nobody_ever_gets_the_reply_of_another(valkey: OwnValkey) -> None:
    """With callers that leave and connections that are killed at random."""
    client = client_of(valkey.url)
    sha = valkey.command("SCRIPT", "LOAD", ECHO)
    pick = random.Random(5)
    answered = 0

    async def caller(name: str) -> None:
        nonlocal answered
        for at in range(60):
            asking = asyncio.create_task(client.evalsha(sha, 0, f"{name}-{at}"))
            if pick.random() < 0.3:
                await asyncio.sleep(pick.random() * 0.002)
                asking.cancel()
            try:
                reply = await asking
            except (asyncio.CancelledError, RedisConnectionError):
                continue
            assert reply == [f"{name}-{at}", None]
            answered += 1

    async def killer() -> None:
        for _ in range(15):
            await asyncio.sleep(0.01)
            await asyncio.to_thread(valkey.command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    await asyncio.gather(killer(), *(caller(f"caller{number}") for number in range(30)))
    assert answered > 500
    await client.aclose()


# A server of our own


async def test_a_connection_that_is_lost_is_mended_once(scripted: ScriptedRedis) -> None:
    scripted.script = scripted.answering(b"+one\r\n")
    client = client_of(scripted.url)
    assert await client.eval("", 0) == "one"
    await asyncio.sleep(0.02)
    assert await client.eval("", 0) == "one"
    scripted.script = scripted.answering(b"")
    with pytest.raises(RedisConnectionError):
        await client.eval("", 0)
    assert scripted.connections == 3
    await client.aclose()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00", b"$x\r\n", b":\r\n", b"+a\r\n+b\r\n"]
)
async def test_garbage_is_no_reply(scripted: ScriptedRedis, answer: bytes) -> None:
    """Nor is more than was asked for; the connection is not used again."""
    scripted.script = scripted.answering(answer, b"+stale\r\n")
    client = client_of(scripted.url)
    with suppress(RedisConnectionError):
        assert await client.eval("", 0) == "a"
    scripted.script = scripted.answering(b"+fresh\r\n")
    assert await client.eval("", 0) == "fresh"
    assert scripted.connections == 2
    await client.aclose()


async def test_replies_split_anywhere_reach_their_callers(scripted: ScriptedRedis) -> None:
    replies = b"*2\r\n$1\r\na\r\n$-1\r\n:12\r\n-NOSCRIPT none\r\n$5\r\nab\r\nc\r\n"

    async def dripping(reader: Reader, writer: Writer) -> None:
        await reader.read(2**16)
        for byte in replies:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await reader.read()

    scripted.script = dripping
    client = client_of(scripted.url)
    found = await asyncio.gather(*(client.eval("", 0) for _ in range(4)), return_exceptions=True)
    assert found[:2] == [["a", None], 12]
    assert (type(found[2]), found[3]) == (NoScriptError, "ab\r\nc")
    await client.aclose()


async def test_a_server_that_accepts_and_says_nothing(scripted: ScriptedRedis) -> None:
    client = client_of(scripted.url, timeout_s=0.2)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(RedisTimeoutError):
        await client.eval("", 0)
    assert loop.time() - began_s < 1
    await client.aclose()


@pytest.mark.parametrize("answers", [[], [b"+connected\r\n"]], ids=["first", "later"])
async def test_closing_ends_those_who_wait_and_connects_no_more(
    scripted: ScriptedRedis, answers: list[bytes]
) -> None:
    async def then_silent(reader: Reader, writer: Writer) -> None:
        await scripted.answering(*answers)(reader, writer)
        await asyncio.sleep(5)

    scripted.script = then_silent
    client = client_of(scripted.url)
    for _ in answers:
        assert await client.eval("", 0) == "connected"
    waiting = [asyncio.create_task(client.eval("", 0)) for _ in range(3)]
    await asyncio.sleep(0.05)
    await client.aclose()
    failed = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
    assert {type(each) for each in failed} == {RedisConnectionError}
    with pytest.raises(RedisConnectionError, match="closed"):
        await client.eval("", 0)
    await asyncio.sleep(0.05)
    assert scripted.connections == 1


async def test_closing_while_connecting_is_no_cancellation_of_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hanging(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", hanging)
    client = client_of("redis://127.0.0.1:1")
    waiting = asyncio.create_task(client.eval("", 0))
    await asyncio.sleep(0.02)
    await client.aclose()
    with pytest.raises(RedisConnectionError, match="closed"):
        await asyncio.wait_for(waiting, 1)


# URLs


@pytest.mark.parametrize(
    ("userinfo", "path", "expected"),
    [
        ("", "", []),
        (":p%40ss@", "", [b"AUTH\r\n$4\r\np@ss"]),
        ("user:pass@", "/3", [b"AUTH\r\n$4\r\nuser\r\n$4\r\npass", b"SELECT\r\n$1\r\n3"]),
        ("", "/0", []),
    ],
)
async def test_urls(scripted: ScriptedRedis, userinfo: str, path: str, expected: list[bytes]) -> None:
    scripted.script = scripted.answering(*[b"+OK\r\n"] * len(expected), b"+done\r\n")
    client = client_of(scripted.url.replace("://", f"://{userinfo}") + path)
    assert await client.eval("x", 0) == "done"
    assert all(each in scripted.received for each in expected)
    assert (b"AUTH" in scripted.received, b"SELECT" in scripted.received) == (
        any(b"AUTH" in each for each in expected),
        any(b"SELECT" in each for each in expected),
    )
    await client.aclose()


@pytest.mark.parametrize("answer", [b"-WRONGPASS no\r\n", b"-NOAUTH no\r\n"])
async def test_a_refused_greeting_names_the_reason(scripted: ScriptedRedis, answer: bytes) -> None:
    scripted.script = scripted.answering(answer)
    client = client_of(scripted.url.replace("://", "://:secret@"))
    with pytest.raises(AuthenticationError) as refused:
        await client.eval("x", 0)
    assert "secret" not in str(refused.value)
    await client.aclose()


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", ""])
def test_urls_of_another_kind_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://"):
        client_of(url)


async def test_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    redis = ScriptedRedis()
    redis.script = redis.answering(b"+safe\r\n")
    server = await asyncio.start_server(redis.serve, "127.0.0.1", ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = client_of(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}")
    assert await trusting.eval("x", 0) == "safe"
    stranger = client_of(f"rediss://127.0.0.1:{port}")
    with pytest.raises(RedisConnectionError):
        await stranger.eval("x", 0)
    await trusting.aclose()
    server.close()
