"""The simulator's HTTP surface. It is not a model: every answer says so, in its text where that can be,
in `system_fingerprint` and in the header `x-sprat-simulated`.

Host it with `aiohttp.web.AppRunner(make_app(settings), handler_cancellation=True)`: without that a caller
that leaves is noticed only at the next token, not while its request waits.
"""

from __future__ import annotations

import hmac
import secrets
import time
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from deployments.sim import errors
from deployments.sim.body import parse_chat, parse_completion
from deployments.sim.chat_shape import ChatShape
from deployments.sim.completion_shape import CompletionShape
from deployments.sim.engine import SimEngine
from deployments.sim.generation import Planner
from deployments.sim.metrics import prometheus_text
from deployments.sim.models_page import models_page
from deployments.sim.respond import respond
from deployments.sim.served_models import ServedModels
from deployments.sim.settings import OutputLength, SimSettings

__all__ = ["ENGINE", "SERVED", "OutputLength", "SimSettings", "make_app"]

ENGINE = web.AppKey("engine", SimEngine)
"""Counts of running and waiting sequences, for the replica's load report."""

SERVED = web.AppKey("served", ServedModels)
"""Where the replica loads and unloads adapters."""

# A gateway caps bodies far below; this only keeps a stray caller from filling the memory.
MAX_BODY_BYTES = 32 * 1024 * 1024


def make_app(settings: SimSettings) -> web.Application:
    engine = SimEngine(settings.profile)
    served = ServedModels(settings.models)
    planner = Planner(settings, served)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_guard(settings.token)])
    app[ENGINE] = engine
    app[SERVED] = served
    app.on_response_prepare.append(_mark_as_simulated)
    started_s = int(time.time())

    async def chat(request: web.Request) -> web.StreamResponse:
        body = parse_chat(await request.read())
        generation = planner.chat(body, _request_id(request))
        return await respond(request, generation, ChatShape(generation), engine, settings.fail_after_tokens)

    async def completion(request: web.Request) -> web.StreamResponse:
        body = parse_completion(await request.read())
        generation = planner.completion(body, _request_id(request))
        shape = CompletionShape(generation)
        return await respond(request, generation, shape, engine, settings.fail_after_tokens)

    async def refuse(_: web.Request) -> web.StreamResponse:
        raise errors.out_of_order()

    async def models(_: web.Request) -> web.Response:
        return _json(models_page(served, settings.context_tokens, started_s))

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=prometheus_text(engine))

    app.router.add_post("/v1/chat/completions", refuse if settings.refuse else chat)
    app.router.add_post("/v1/completions", refuse if settings.refuse else completion)
    app.router.add_get("/v1/models", models, allow_head=False)
    app.router.add_get("/health", health, allow_head=False)
    app.router.add_get("/metrics", metrics, allow_head=False)
    return app


def _guard(token: str) -> Middleware:
    """Token first, on routes that do not exist as well; then every error gets its body."""
    wanted = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        try:
            if not hmac.compare_digest(given, wanted):
                raise errors.refused_by_http(HTTPStatus.UNAUTHORIZED)
            return await handler(request)
        except errors.EngineError as error:
            return _json(error.body(), error.status)
        except web.HTTPMethodNotAllowed:
            # A route is a method and a path: what is not on the list does not exist.
            return _json(errors.refused_by_http(HTTPStatus.NOT_FOUND).body(), HTTPStatus.NOT_FOUND)
        except web.HTTPError as error:
            status = HTTPStatus(error.status)
            return _json(errors.refused_by_http(status).body(), status)

    return guard


async def _mark_as_simulated(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["x-sprat-simulated"] = "1"


def _request_id(request: web.Request) -> str:
    return request.headers.get("X-Request-Id") or secrets.token_hex(16)


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
