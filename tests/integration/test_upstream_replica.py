"""An upstream pool as Ray Serve runs it: its entry in the directory while its provider comes and goes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from ray import serve

from cluster.types import ReplicaPhase, ReplicaState
from deployments import app
from deployments.runtime import Runtime
from tests.configs import config_of, simulated
from tests.gateways import TOKEN
from tests.integration.conftest import Fleet
from tests.providers import MODEL, answer

pytestmark = pytest.mark.integration

KEY_VARIABLE = "HOME"
"""Any that the replicas' processes have: Ray was started before this test."""


class Provider(ThreadingHTTPServer):
    status = HTTPStatus.OK

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    server: Provider

    def do_GET(self) -> None:
        self.reply({"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(answer())

    def reply(self, body: dict[str, Any]) -> None:
        wanted = f"Bearer {os.environ[KEY_VARIABLE]}"
        status = self.server.status if self.headers["authorization"] == wanted else HTTPStatus.UNAUTHORIZED
        raw = orjson.dumps(body)
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextmanager
def deployed(fleet: Fleet, provider: Provider, **section: Any) -> Iterator[Runtime]:
    """The pool `hosted` beside the fleet's."""
    prices = {"prompt_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    upstream = {
        "base_url": provider.url,
        "model": MODEL,
        "prices": prices,
        "api_key_env": KEY_VARIABLE,
        "max_attempts": 1,
        "failures_to_open": 2,
        "cooldown_s": 1,
    }
    pool = {
        "tier": "large",
        "base_model": "hosted",
        "node_class": "big",
        "engine": "upstream",
        "context_tokens": 2048,
        "upstream": upstream | section,
    }
    raw = simulated(base_models__hosted={"source": "upstream"}, pools__hosted=pool)
    runtime = replace(fleet.runtime, config=config_of(raw))
    target = serve.RunTarget(
        target=app.pool_application("hosted", runtime, app.ray_nodes()), name="pool-hosted", route_prefix=None
    )
    serve.run_many([target], wait_for_applications_running=False)
    try:
        yield runtime
    finally:
        serve.delete("pool-hosted")


def entries(runtime: Runtime) -> list[ReplicaState]:
    async def ask() -> list[ReplicaState]:
        scheduler = runtime.scheduler()
        try:
            return list((await scheduler.pool_load("hosted")).replicas)
        finally:
            await scheduler.close()

    return asyncio.run(ask())


def until(runtime: Runtime, wanted: Callable[[ReplicaState], bool], timeout_s: float = 40) -> ReplicaState:
    deadline = time.monotonic() + timeout_s
    while not (found := [each for each in entries(runtime) if wanted(each)]):
        assert time.monotonic() < deadline, entries(runtime)
        time.sleep(0.1)
    return found[0]


def is_ready(state: ReplicaState) -> bool:
    return state.phase is ReplicaPhase.READY


def ask(address: str) -> int:
    body = orjson.dumps({"model": "hosted", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5})
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions", body, {"authorization": f"Bearer {TOKEN}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_leaves_the_directory_while_its_provider_is_down(fleet: Fleet, provider: Provider) -> None:
    with deployed(fleet, provider) as runtime:
        state = until(runtime, is_ready)
        assert ask(state.address) == 200
        assert state.node == "big"

        provider.status = HTTPStatus.INTERNAL_SERVER_ERROR
        assert [ask(state.address) for _ in range(3)] == [502, 502, 503]
        away = until(runtime, lambda each: not is_ready(each))
        assert "unavailable: the upstream answered with status 500" in away.detail
        time.sleep(2.5)  # its model list fails as well: the circuit opens again without a call
        assert not is_ready(entries(runtime)[0])

        provider.status = HTTPStatus.OK
        back = until(runtime, is_ready)
        assert (back.replica_id, back.epoch) == (state.replica_id, state.epoch), "it was not restarted"
        assert ask(back.address) == 200
        until(runtime, lambda each: is_ready(each) and not each.detail)

        provider.status = HTTPStatus.UNAUTHORIZED
        assert ask(back.address) == 503
        refused = until(runtime, lambda each: not is_ready(each))
        assert f"check {KEY_VARIABLE}" in refused.detail
        assert os.environ[KEY_VARIABLE] not in refused.detail


@pytest.mark.parametrize(
    ("variable", "status", "words"),
    [
        ("NO_SUCH_KEY", HTTPStatus.OK, "NO_SUCH_KEY is not set where this replica runs"),
        (KEY_VARIABLE, HTTPStatus.UNAUTHORIZED, f"refused the key (401): check {KEY_VARIABLE}"),
        (KEY_VARIABLE, HTTPStatus.BAD_GATEWAY, "answered with status 502"),
    ],
)
def test_what_is_wrong_is_told_at_the_start(
    fleet: Fleet, provider: Provider, variable: str, status: HTTPStatus, words: str
) -> None:
    provider.status = status
    with deployed(fleet, provider, api_key_env=variable) as runtime:
        failed = until(runtime, lambda each: each.phase is ReplicaPhase.FAILED)
        assert words in failed.detail
        assert os.environ[KEY_VARIABLE] not in failed.detail
