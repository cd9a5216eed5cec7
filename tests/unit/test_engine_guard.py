"""Nothing but the listed routes, and nothing without the gateway's token, reaches an engine."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.engine_guard import ALLOWED_ROUTES, EngineGuard

TOKEN = "t" * 32
RIGHT = f"Bearer {TOKEN}"


class Engine:
    """An ASGI application that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope.get("path", scope["type"]))
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"tokens"})


async def ask(
    engine: Engine, method: str, path: str, *authorizations: str, kind: str = "http"
) -> tuple[int, bytes]:
    """The status and the body that a client gets."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        pytest.fail("the wall never reads a body")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), *((b"authorization", each.encode()) for each in authorizations)]
    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    await EngineGuard(engine, TOKEN)(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(("method", "path"), sorted(ALLOWED_ROUTES))
async def test_a_listed_route_with_the_token_reaches_the_engine(method: str, path: str) -> None:
    engine = Engine()

    assert await ask(engine, method, path, RIGHT) == (200, b"tokens")
    assert engine.asked == [path]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/messages/render"),
        ("POST", "/invocations"),
        ("POST", "/v1/tokenize"),
        ("POST", "/sleep"),
        ("POST", "/collective_rpc"),
        ("GET", "/docs"),
        ("GET", "/"),
        ("GET", "/v1/chat/completions"),
        ("HEAD", "/health"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
        ("POST", "/V1/chat/completions"),
        ("POST", "/health/../v1/load_lora_adapter"),
    ],
)
async def test_a_route_that_is_not_listed_does_not_exist_even_with_the_token(method: str, path: str) -> None:
    engine = Engine()

    status, body = await ask(engine, method, path, RIGHT)

    assert status == 404
    assert b'"refused"' in body
    assert engine.asked == []


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer " + "x" * 32,),
        ("Bearer " + TOKEN[:-1],),
        (RIGHT + "t",),
        (RIGHT.lower(),),
        (TOKEN,),
        ("Bearer é" + TOKEN,),
        ("Bearer wrong", RIGHT),
    ],
)
async def test_without_the_right_token_every_route_is_closed(given: tuple[str, ...]) -> None:
    engine = Engine()

    for method, path in ALLOWED_ROUTES:
        status, body = await ask(engine, method, path, *given)
        assert status == 401
        assert TOKEN.encode() not in body
    assert engine.asked == []


async def test_a_websocket_never_reaches_the_engine() -> None:
    engine = Engine()

    assert (await ask(engine, "GET", "/v1/chat/completions", RIGHT, kind="websocket"))[0] == 404
    assert engine.asked == []


async def test_the_engine_hears_when_the_server_starts_and_stops() -> None:
    engine = Engine()

    async def nothing(*_arguments: Any) -> Any:
        return {}

    await EngineGuard(engine, TOKEN)({"type": "lifespan"}, nothing, nothing)

    assert engine.asked == ["lifespan"]


@pytest.mark.parametrize("token", ["", "t" * 31])
def test_a_token_that_could_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="at least 32 characters"):
        EngineGuard(Engine(), token)
