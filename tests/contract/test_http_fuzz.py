"""Hostile bytes against a whole gateway: whatever comes, it lives, logs no error, leaves nothing behind, and
its engines see only what the gateway itself wrote.

Short in the normal run; `make prove-fuzz` runs longer and writes its counts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from cluster.errors import SchedulerUnavailable
from deployments.free_port import bound_socket
from tests.builders import ready_replica
from tests.fault_matrix import fault
from tests.gateways import TOKEN, GatewayUnderTest, running_gateway
from tests.raw_http import answers_in

pytestmark = pytest.mark.contract

SECONDS = float(os.environ.get("SPRAT_FUZZ_SECONDS", "5"))
SEED = int(os.environ.get("SPRAT_FUZZ_SEED", "0")) or time.time_ns()
CLIENTS = 8
QUIET_S = 0.05
"""A server that writes nothing for so long waits for its client."""

SETTLED_S = 10.0

ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "tiny",
    "choices": [
        {"index": 0, "finish_reason": "stop", "text": "hi", "message": {"role": "assistant", "content": "hi"}}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}

OF_THE_GATEWAY = {"host", "authorization", "content-type", "content-length"}
MODELS = {"tiny", "huge", "intent@1", "intent@2"}

REFUSED_FIELDS = (
    *(
        "prompt_embeds",
        "chat_template",
        "chat_template_kwargs",
        "lora_request",
        "kv_transfer_params",
        "vllm_xargs",
    ),
    *(
        "mm_processor_kwargs",
        "request_id",
        "api_base",
        "base_url",
        "echo",
        "prompt_logprobs",
        "best_of",
        "use_beam_search",
    ),
)
"""Rows 2 to 4, 8, 10 and 15 of the threat model: never an engine's to see."""

FORGED = (
    *(
        b"x-sprat-replica: evil",
        b"x-sprat-tenant: evil",
        b"x-request-timeout-seconds: 1e9",
        b"x-forwarded-for: 1.1.1.1",
    ),
    *(
        b"x-request-id: evil",
        b"serve_multiplexed_model_id: evil",
        b"x-session-id: evil",
        b"x-serve-router-a: evil",
    ),
    *(
        b"forwarded: for=evil",
        b"te: trailers",
        b"proxy-authorization: Bearer evil",
        b"cookie: evil",
        b"x-api-key: evil",
    ),
)
WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\0",
        b" ",
        b":",
        b"{",
        b"}",
        b'"',
        b"[",
        b"\xff",
        b"1e400",
        b"NaN",
        b"-1",
        b"null",
        b"\\ud800",
    ),
    *(
        b"0\r\n\r\n",
        b"chunked",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"HTTP/1.0",
        b"#",
    ),
    *(b"expect: 100-continue\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n", b"[" * 3000, b'{"a":' * 500),
)
PATHS = (
    *(
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
    ),
    *(
        "/v1/embeddings",
        "/v1/tokenize",
        "/tokenize",
        "/v1/models",
        "/v1/models/small",
        "/v1/feedback",
        "/livez",
    ),
    *("/readyz", "/openapi.json", "/metrics", "/", "/%2e%2e/", "/v1/chat/completions/", "//v1/models", "*"),
)


class WatchedEngine:
    """Answers at once, and keeps what was wrong with the requests that it saw."""

    def __init__(self) -> None:
        self.calls = 0
        self.wrong: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        body = orjson.loads(await request.read())
        strange = {name.lower() for name in request.headers} - OF_THE_GATEWAY
        refused = {name for name in body if name in REFUSED_FIELDS or not name.isidentifier()}
        if (
            strange
            or refused
            or request.method != "POST"
            or request.headers["authorization"] != f"Bearer {TOKEN}"
            or body["model"] not in MODELS
            or b"evil" in orjson.dumps({name: body.get(name) for name in ("cache_salt", "priority")})
        ):
            self.wrong.append(f"{request.method} {request.path} {dict(request.headers)} {body}")
        if body.get("stream"):
            stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await stream.prepare(request)
            await stream.write(b"data: " + orjson.dumps(ANSWER) + b"\n\ndata: [DONE]\n\n")
            return stream
        return web.json_response(ANSWER)


@asynccontextmanager
async def watched_gateway(
    valkey_url: str, folder: Path
) -> AsyncIterator[tuple[GatewayUnderTest, WatchedEngine]]:
    watched = WatchedEngine()
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", watched.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    sock = bound_socket("127.0.0.1")
    address = "{}:{}".format(*sock.getsockname())
    await web.SockSite(runner, sock).start()
    async with running_gateway(valkey_url, folder) as gateway:
        beating = asyncio.create_task(_beat(gateway, address))
        try:
            await gateway.until_ready()
            yield gateway, watched
        finally:
            beating.cancel()
    await runner.cleanup()


async def _beat(gateway: GatewayUnderTest, address: str) -> None:
    while True:
        for pool in ("specialist", "reserve"):
            state = ready_replica(replica_id=f"{pool}-1", pool=pool, address=address, max_concurrency=64)
            with suppress(SchedulerUnavailable):
                await gateway.scheduler.heartbeat(state)
        await asyncio.sleep(0.5)


class Attacker:
    """Requests out of good ones, more or less changed."""

    def __init__(self, key: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._key = key.encode()

    def packets(self) -> list[bytes]:
        chance = self._random.random()
        if chance < 0.05:
            data = self._random.randbytes(self._random.randint(1, 400))
        else:
            data = b"".join(self._request() for _ in range(self._random.choice((1, 1, 1, 2, 5))))
        if chance > 0.4:
            data = self._mutated(data, self._random.randint(1, 4))
        cuts = sorted(self._random.randint(0, len(data)) for _ in range(self._random.choice((0, 0, 1, 5))))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def leaves_early(self) -> bool:
        return self._random.random() < 0.2

    def _request(self) -> bytes:
        pick = self._random
        body = orjson.dumps(self._body())
        if pick.random() < 0.3:
            body = self._mutated(body, 1)
        method = pick.choice(
            (b"POST", b"POST", b"POST", b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"TRACE")
        )
        path = pick.choice(PATHS[:3] if pick.random() < 0.6 else PATHS).encode()
        headers = [b"host: x", b"content-type: application/json"]
        headers += pick.sample(FORGED, pick.randint(0, 3))
        if pick.random() < 0.9:
            headers.append(b"authorization: Bearer " + self._key)
        if pick.random() < 0.7:
            headers.append(b"content-length: %d" % len(body))
        else:
            headers.append(b"transfer-encoding: chunked")
            middle = pick.randint(0, len(body))
            parts = [part for part in (body[:middle], body[middle:]) if part]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        pick.shuffle(headers)
        return method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body

    def _body(self) -> dict[str, Any]:
        pick = self._random
        body: dict[str, Any] = {"model": pick.choice(("auto", "small", "large", "tiny", "evil"))}
        body |= pick.choice(
            (
                {"messages": [{"role": "user", "content": "hi there, how are you?"}], "max_tokens": 4},
                {"prompt": "hi there", "max_tokens": 4},
                {"input": "hi there", "max_output_tokens": 4},
            )
        )
        if pick.random() < 0.2:
            body["stream"] = True
        if pick.random() < 0.3:
            body[
                pick.choice((*REFUSED_FIELDS, "cache_salt", "priority", "n", "logit_bias", "stop", "evil"))
            ] = "evil"
        return body

    def _mutated(self, data: bytes, changes: int) -> bytes:
        changed = bytearray(data)
        for _ in range(changes):
            at = self._random.randint(0, len(changed))
            end = min(len(changed), at + self._random.randint(1, 30))
            match self._random.randint(0, 4):
                case 0:
                    changed[at:at] = self._random.choice(WORDS)
                case 1:
                    del changed[at:end]
                case 2:
                    changed[at:at] = changed[at:end]
                case 3:
                    changed[at:end] = self._random.choice(WORDS)
                case _:
                    changed[at:end] = self._random.randbytes(end - at)
        return bytes(changed)


async def attack(port: int, attacker: Attacker) -> Counter[str]:
    """One connection. What came back is HTTP, and no answer is our own failure."""
    packets = attacker.packets()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    with suppress(ConnectionError):
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await asyncio.sleep(0)
        if attacker.leaves_early():
            writer.transport.abort()
            return Counter(connections=1, left_early=1)
        with suppress(TimeoutError):
            while data := await asyncio.wait_for(reader.read(2**16), QUIET_S):
                received += data
    writer.transport.abort()
    # Of a HEAD only the server knows, as it may have been made of the bytes by chance.
    answers = [] if b"HEAD" in b"".join(packets) else answers_in(bytes(received))
    statuses = [answer.status for answer in answers]
    assert 500 not in statuses, (packets, bytes(received))
    return Counter(["connections", *(f"status_{status}" for status in statuses)])


@fault(
    "hostile bytes",
    "the gateway lives, no error in its log, nothing left behind, engines see only its own requests",
)
async def test_hostile_bytes(
    redis_scheduler: object,
    valkey_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    measured: Callable[..., None],
) -> None:
    counts: Counter[str] = Counter()
    async with watched_gateway(valkey_url, tmp_path) as (gateway, engine):
        listener = gateway.gateway.listener
        port = gateway.config.gateway.port
        assert (await gateway.ask({}))[0] == 200
        tasks_before = len(asyncio.all_tasks())
        ends_at = time.monotonic() + SECONDS

        async def client(number: int) -> None:
            attacker = Attacker(gateway.key, SEED + number)
            while time.monotonic() < ends_at:
                counts.update(await attack(port, attacker))

        async def neighbour() -> None:
            """Somebody else's calls."""
            while time.monotonic() < ends_at:
                assert (await gateway.ask({}))[0] == 200
                counts["good_calls"] += 1
                await asyncio.sleep(0.02)

        with caplog.at_level(logging.WARNING):
            async with asyncio.TaskGroup() as group:
                group.create_task(neighbour())
                for number in range(CLIENTS):
                    group.create_task(client(number))
        assert (await gateway.ask({}))[0] == 200
        await gateway.until_settled()
        await gateway.until_no_lease(SETTLED_S)
        async with asyncio.timeout(SETTLED_S):
            # The session of the test keeps one for itself.
            while listener.connections > 1 or len(asyncio.all_tasks()) > tasks_before + 2:
                await asyncio.sleep(0.05)
        assert engine.wrong == []
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == [], f"seed {SEED}"
    assert "Traceback" not in caplog.text
    assert counts["status_200"]
    assert counts["status_400"]
    measured(seed=SEED, engine_calls=engine.calls, **dict(sorted(counts.items())))
