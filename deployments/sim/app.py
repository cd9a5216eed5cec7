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

from deployments.sim import embedding, errors
from deployments.sim.body import ChatBody, CompletionBody, parse
from deployments.sim.chat_shape import ChatShape
from deployments.sim.completion_shape import CompletionShape
from deployments.sim.embedding import EmbeddingBody
from deployments.sim.engine import SimEngine
from deployments.sim.generation import Planner
from deployments.sim.message_shape import MessageShape
from deployments.sim.metrics import prometheus_text
from deployments.sim.models_page import models_page
from deployments.sim.other_dialects import CountBody, MessageBody, ResponseBody, as_chat
from deployments.sim.respond import respond
from deployments.sim.response_shape import ResponseShape
from deployments.sim.served_models import ServedModels
from deployments.sim.settings import OutputLength, SimSettings
from deployments.sim.tokenization import DetokenizeBody, TokenizeBody, detokenized, tokenized

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
        body = parse(ChatBody, await request.read())
        generation = planner.chat(body, f"chatcmpl-{_request_id(request)}")
        return await respond(request, generation, ChatShape(generation), engine, settings.fail_after_tokens)

    async def completion(request: web.Request) -> web.StreamResponse:
        body = parse(CompletionBody, await request.read())
        generation = planner.completion(body, f"cmpl-{_request_id(request)}")
        shape = CompletionShape(generation)
        return await respond(request, generation, shape, engine, settings.fail_after_tokens)

    async def response(request: web.Request) -> web.StreamResponse:
        body = parse(ResponseBody, await request.read())
        generation = planner.chat(as_chat(body), f"resp_{_request_id(request)}")
        shape = ResponseShape(generation, body)
        return await respond(request, generation, shape, engine, settings.fail_after_tokens)

    async def message(request: web.Request) -> web.StreamResponse:
        body = parse(MessageBody, await request.read())
        generation = planner.chat(as_chat(body), f"chatcmpl-{_request_id(request)}")
        shape = MessageShape(generation)
        return await respond(request, generation, shape, engine, settings.fail_after_tokens)

    async def count_tokens(request: web.Request) -> web.Response:
        body = parse(CountBody, await request.read())
        planner.model(body.model)
        count = tokenized(TokenizeBody(messages=body.as_messages()), settings.context_tokens)["count"]
        return _json({"input_tokens": count, "context_management": {"original_input_tokens": count}})

    async def embeddings(request: web.Request) -> web.Response:
        body = parse(EmbeddingBody, await request.read())
        model = planner.model(body.model)
        embedding.check(body, model, settings.context_tokens)
        for prompt in body.prompts:
            async with engine.sequence(prompt.tokens) as pace:
                await pace.prefill()
        return _json(embedding.answer(body, model, f"embd-{_request_id(request)}"))

    async def tokenize(request: web.Request) -> web.Response:
        body = parse(TokenizeBody, await request.read())
        planner.model(body.model)
        return _json(tokenized(body, settings.context_tokens))

    async def detokenize(request: web.Request) -> web.Response:
        body = parse(DetokenizeBody, await request.read())
        planner.model(body.model)
        return _json(detokenized(body))

    async def refuse(_: web.Request) -> web.StreamResponse:
        raise errors.out_of_order()

    async def models(_: web.Request) -> web.Response:
        return _json(models_page(served, settings.context_tokens, started_s))

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=prometheus_text(engine))

    generating = {
        "/v1/chat/completions": chat,
        "/v1/completions": completion,
        "/v1/responses": response,
        "/v1/messages": message,
        "/v1/messages/count_tokens": count_tokens,
    }
    work = {"/v1/embeddings": embeddings} if settings.embeds else generating
    for path, handler in work.items():
        app.router.add_post(path, refuse if settings.refuse else handler)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/detokenize", detokenize)
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
        if not hmac.compare_digest(given, wanted):
            return _json(errors.refused_by_http(HTTPStatus.UNAUTHORIZED).body(), HTTPStatus.UNAUTHORIZED)
        try:
            return await handler(request)
        except errors.EngineError as error:
            in_anthropics_words = request.path.startswith("/v1/messages")
            return _json(error.anthropic_body() if in_anthropics_words else error.body(), error.status)
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
