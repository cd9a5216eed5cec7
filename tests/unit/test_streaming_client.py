"""The client against a stub that sends exactly what a test tells it to, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import perf_counter

import pytest

from loadtest.call import ErrorKind
from loadtest.sse import SseParser
from loadtest.streaming_client import Endpoint, StreamingClient

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Stub:
    """Answers every request by running the script. `requests` and `connections` count what came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[bytes] = []
        self.connections = 0
        self.url = ""
        self._serving: list[asyncio.Task] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self.script(writer)
                if writer.is_closing():
                    break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def ended(self) -> None:
        """All connections are closed. Cancelling instead would leave sockets to the garbage collector."""
        await asyncio.wait_for(asyncio.gather(*self._serving), 5)


@asynccontextmanager
async def stub_and_client(script: Script, **options) -> AsyncIterator[tuple[Stub, StreamingClient]]:
    stub = Stub(script)
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stub.url = "http://{}:{}".format(*server.sockets[0].getsockname())
    client = StreamingClient(Endpoint.of(stub.url, "key"), **options)
    try:
        yield stub, client
    finally:
        client.close()
        server.close()
        await stub.ended()


def post(stub: Stub) -> bytes:
    return Endpoint.of(stub.url, "key").request("/v1/chat/completions", b"{}")


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def event(value: dict | str) -> bytes:
    return b"data: " + (value if isinstance(value, str) else json.dumps(value)).encode() + b"\n\n"


def delta(**fields) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


ROLE = delta(role="assistant", content="")
WORD = delta(content="a")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 42}})
DONE = event("[DONE]")


def stream(*events: bytes) -> Script:
    """All events at once."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(chunk(each) for each in events) + b"0\r\n\r\n")
        await writer.drain()

    return script


def whole(status: str, body: bytes, extra_header: bytes = b"") -> Script:
    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n%s"
            % (status.encode(), extra_header, len(body), body)
        )
        await writer.drain()

    return script


class TestTimes:
    async def test_small_chunks_100_ms_apart_are_timed_as_they_come(self):
        """The regression test for readers that fill a block before they hand anything out."""
        first_sent_s = 0.0

        async def script(writer: asyncio.StreamWriter) -> None:
            nonlocal first_sent_s
            writer.write(STREAM_HEAD)
            for number in range(5):
                await asyncio.sleep(0.1)
                if number == 0:
                    first_sent_s = perf_counter()
                writer.write(chunk(WORD))
            writer.write(chunk(DONE) + b"0\r\n\r\n")

        async with stub_and_client(script) as (stub, client):
            started_s = perf_counter()
            call = await client.call(post(stub))
        true_ttft_s = first_sent_s - started_s
        assert call.error is None
        assert -0.005 < call.ttft_s - true_ttft_s < 0.050
        assert len(call.itl_s) == 4
        assert sum(call.itl_s) == pytest.approx(0.4, abs=0.1)
        assert sorted(call.itl_s)[2] == pytest.approx(0.1, abs=0.03)
        assert call.e2e_s == pytest.approx(call.ttft_s + sum(call.itl_s))

    async def test_a_chunk_with_only_a_role_or_empty_content_is_not_the_first(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            writer.write(
                STREAM_HEAD + chunk(ROLE) + chunk(delta(content=None)) + chunk(event({"choices": []}))
            )
            await asyncio.sleep(0.15)
            writer.write(chunk(WORD) + chunk(delta()) + chunk(DONE) + b"0\r\n\r\n")

        async with stub_and_client(script) as (stub, client):
            call = await client.call(post(stub))
        assert call.error is None
        assert call.ttft_s >= 0.14
        assert call.itl_s == ()
        assert call.e2e_s == call.ttft_s
        assert call.output_tokens == 1

    async def test_the_end_of_the_last_token_is_not_the_end_of_the_response(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM_HEAD + chunk(WORD))
            await asyncio.sleep(0.1)
            writer.write(chunk(USAGE + DONE) + b"0\r\n\r\n")

        async with stub_and_client(script) as (stub, client):
            call = await client.call(post(stub))
        assert call.e2e_s < 0.09
        assert call.done_s >= 0.09
        assert call.output_tokens == 42

    async def test_an_event_cut_into_single_bytes_is_one_event(self):
        events = ROLE + b": comment\n\n" + WORD + WORD.replace(b"\n", b"\r\n") + DONE

        async def script(writer: asyncio.StreamWriter) -> None:
            raw = STREAM_HEAD + b"".join(chunk(events[at : at + 7]) for at in range(0, len(events), 7))
            for byte in raw + b"0\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)

        async with stub_and_client(script) as (stub, client):
            call = await client.call(post(stub))
        assert call.error is None
        assert call.output_tokens == 2
        assert len(call.itl_s) == 1

    @pytest.mark.parametrize(
        "text",
        [
            b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n',
            b'data: {"choices":[{"delta":{"role":"assistant","content":"a"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"\\""}}]}\n\n',
            b'data: {"choices":[{"delta":{"tool":{"x":1},"content":"a"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n',
            b': hello\ndata:{"choices":[{"delta":{"content":"a"}}]}\n\n',
        ],
    )
    async def test_content_is_seen_however_the_event_is_written(self, text):
        async with stub_and_client(stream(text, ROLE, text, DONE)) as (stub, client):
            call = await client.call(post(stub))
        assert (call.error, call.output_tokens, len(call.itl_s)) == (None, 2, 1)

    async def test_completions_put_their_content_elsewhere(self):
        text = event({"choices": [{"index": 0, "text": "cod"}]})
        async with stub_and_client(stream(text, text, DONE)) as (stub, client):
            call = await client.call(post(stub))
        assert (call.error, call.output_tokens) == (None, 2)

    async def test_a_whole_answer_has_no_ttft(self):
        answer = {"choices": [{"message": {"content": "cod"}}], "usage": {"completion_tokens": 7}}
        async with stub_and_client(whole("200 OK", json.dumps(answer).encode())) as (stub, client):
            call = await client.call(post(stub))
        assert (call.status, call.error, call.ttft_s, call.output_tokens) == (200, None, None, 7)
        assert call.e2e_s == call.done_s > 0


class TestCallUntil:
    async def test_calls_follow_each_other_on_one_connection_until_the_deadline(self):
        async with stub_and_client(stream(WORD, DONE)) as (stub, client):
            calls: list = []
            deadline_s = perf_counter() + 0.2
            last = await client.call_until(post(stub), deadline_s, calls.append)
            ended_s = perf_counter()
        assert deadline_s <= ended_s < deadline_s + 0.15
        assert (stub.connections, len(stub.requests)) == (1, len(calls))
        assert len(calls) > 5
        assert last is calls[-1]
        assert {call.error for call in calls} == {None}
        assert [call.reused_connection for call in calls] == [False] + [True] * (len(calls) - 1)

    async def test_an_error_ends_them(self):
        async with stub_and_client(whole("503 Service Unavailable", b"{}")) as (stub, client):
            calls: list = []
            last = await client.call_until(post(stub), perf_counter() + 5, calls.append)
        assert len(calls) == len(stub.requests) == 1
        assert last.error.kind is ErrorKind.STATUS

    async def test_a_connection_that_the_server_closes_ends_them_without_an_error(self):
        answer = json.dumps({"choices": [{"message": {"content": "cod"}}]}).encode()
        script = whole("200 OK", answer, b"connection: close\r\n")
        async with stub_and_client(script) as (stub, client):
            calls: list = []
            last = await client.call_until(post(stub), perf_counter() + 5, calls.append)
        assert (len(calls), last.error) == (1, None)

    async def test_each_of_them_has_the_whole_timeout(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.15)
            await stream(WORD, DONE)(writer)

        async with stub_and_client(script, timeout_s=0.4) as (stub, client):
            calls: list = []
            await client.call_until(post(stub), perf_counter() + 0.8, calls.append)
            stub.script = hang
            last = await client.call_until(post(stub), 0.0, calls.append)
        assert len(calls) >= 4
        assert {call.error for call in calls[:-1]} == {None}
        assert last.error.kind is ErrorKind.TIMEOUT
        assert last.done_s == pytest.approx(0.4, abs=0.2)

    async def test_two_answers_to_one_request_are_an_error(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            body = json.dumps({"choices": [{"message": {"content": "cod"}}]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body) * 2)
            await writer.drain()

        async with stub_and_client(script) as (stub, client):
            call = await client.call_until(post(stub), perf_counter() + 5, lambda _: None)
        assert call.error.kind is ErrorKind.PROTOCOL


async def hang(writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        await asyncio.sleep(0.6)
        writer.close()


class TestConnections:
    async def test_a_connection_is_used_again(self):
        async with stub_and_client(stream(WORD, DONE)) as (stub, client):
            calls = [await client.call(post(stub)) for _ in range(3)]
        assert [call.reused_connection for call in calls] == [False, True, True]
        assert (stub.connections, len(stub.requests)) == (1, 3)

    async def test_the_server_may_ask_to_close(self):
        answer = json.dumps({"choices": [{"message": {"content": "cod"}}]}).encode()
        script = whole("200 OK", answer, b"connection: close\r\n")
        async with stub_and_client(script) as (stub, client):
            calls = [await client.call(post(stub)) for _ in range(2)]
        assert [call.error for call in calls] == [None, None]
        assert stub.connections == 2

    async def test_a_connection_closed_while_idle_is_replaced(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            await stream(WORD, DONE)(writer)
            writer.close()

        async with stub_and_client(script) as (stub, client):
            first = await client.call(post(stub))
            await asyncio.sleep(0.05)
            second = await client.call(post(stub))
        assert (first.error, second.error) == (None, None)
        assert second.reused_connection is False

    async def test_a_body_without_a_length_ends_with_the_connection(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + WORD + DONE)
            writer.close()

        async with stub_and_client(script) as (stub, client):
            call = await client.call(post(stub))
        assert (call.error, call.output_tokens) == (None, 1)

    async def test_the_request_is_what_was_asked_for(self):
        async with stub_and_client(stream(WORD, DONE)) as (stub, client):
            endpoint = Endpoint.of(stub.url + "/team/", "sesame")
            await client.call(endpoint.request("/v1/completions", b'{"x":1}'))
        assert stub.requests[0].startswith(b"POST /team/v1/completions HTTP/1.1\r\n")
        assert b"\r\nauthorization: Bearer sesame\r\n" in stub.requests[0]
        assert stub.requests[0].endswith(b'\r\n\r\n{"x":1}')

    @pytest.mark.parametrize("url", ["https://host", "host:80", "ftp://host", "http://"])
    def test_other_urls_are_refused(self, url):
        with pytest.raises(ValueError, match="use http://"):
            Endpoint.of(url, "key")


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def break_off(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + chunk(WORD))
    await writer.drain()
    writer.close()


async def say_nonsense(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 smtp.example ready\r\n")
    await writer.drain()


class TestErrorsAreValues:
    @pytest.mark.parametrize(
        ("script", "status", "kind", "message"),
        [
            (
                whole("429 Too Many Requests", b'{"error":{"message":"slow\\n down"}}'),
                429,
                "status",
                "slow down",
            ),
            (whole("500 Internal Server Error", b"<html>oops"), 500, "status", "<html>oops"),
            (whole("200 OK", b"no json"), 200, "protocol", "not JSON"),
            (whole("200 OK", b"[1]"), 200, "protocol", "no object"),
            (whole("200 OK", b'{"choices":[]}'), 200, "empty", "without content"),
            (stream(ROLE, DONE), 200, "empty", "without content"),
            (stream(WORD), 200, "broken", "without [DONE]"),
            (stream(WORD, event({"error": {"message": "died"}}), DONE), 200, "stream", "died"),
            (stream(WORD, event("{"), DONE), 200, "protocol", "not JSON"),
            (break_off, 200, "broken", "closed"),
            (hang_up, 0, "broken", "closed"),
            (say_nonsense, 0, "protocol", "not HTTP"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_what_went_wrong_is_told(self, script, status, kind, message):
        async with stub_and_client(script) as (stub, client):
            call = await client.call(post(stub))
        assert (call.status, call.error.kind) == (status, ErrorKind(kind))
        assert message in call.error.message
        assert call.e2e_s is None
        assert call.done_s > 0

    async def test_the_call_after_an_error_status_uses_the_same_connection(self):
        async with stub_and_client(whole("503 Service Unavailable", b"{}")) as (stub, client):
            calls = [await client.call(post(stub)) for _ in range(2)]
        assert [call.status for call in calls] == [503, 503]
        assert stub.connections == 1

    async def test_the_call_after_a_broken_one_connects_anew(self):
        async with stub_and_client(break_off) as (stub, client):
            await client.call(post(stub))
            stub.script = stream(WORD, DONE)
            call = await client.call(post(stub))
        assert (call.error, stub.connections) == (None, 2)

    async def test_nobody_listens(self):
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        server.close()
        await server.wait_closed()
        endpoint = Endpoint.of(url, "key")
        call = await StreamingClient(endpoint).call(endpoint.request("/", b""))
        assert (call.status, call.error.kind) == (0, ErrorKind.CONNECT)

    async def test_an_answer_that_does_not_end_times_out(self):
        async def script(writer: asyncio.StreamWriter) -> None:
            writer.write(STREAM_HEAD + chunk(WORD))
            await asyncio.sleep(1)

        async with stub_and_client(script, timeout_s=0.5) as (stub, client):
            call = await client.call(post(stub))
        assert call.error.kind is ErrorKind.TIMEOUT
        assert call.ttft_s is not None

    async def test_a_cancelled_call_leaves_no_answer_behind_for_the_next(self):
        async def slow(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.1)
            await stream(WORD, WORD, WORD, DONE)(writer)

        async with stub_and_client(slow) as (stub, client):
            running = asyncio.create_task(client.call(post(stub)))
            await asyncio.sleep(0.02)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            stub.script = stream(WORD, DONE)
            call = await client.call(post(stub))
        assert (call.error, call.output_tokens) == (None, 1)


class TestSse:
    @pytest.mark.parametrize("step", [1, 2, 3, 5, 1000])
    def test_events_survive_any_cut(self, step):
        raw = b": hello\n\nevent: x\ndata: one\n\ndata:two\ndata: lines\r\n\r\n\n\ndata: [DONE]\n\n"
        parser = SseParser()
        found = [each for at in range(0, len(raw), step) for each in parser.feed(raw[at : at + step])]
        assert found == [b"one", b"two\nlines", b"[DONE]"]
