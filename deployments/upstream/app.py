"""An engine's HTTP surface before an upstream: gateway token, its routes, answers as they come.

Host it with `aiohttp.web.AppRunner(make_app(…), handler_cancellation=True)`: a caller that leaves cancels its
call, which closes the upstream's connection.
"""

from __future__ import annotations

import asyncio
import hmac
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cluster.config.upstream import UpstreamConfig, UpstreamRoute
from cluster.errors import InvalidRequest
from deployments.upstream.answers import AnswerStream, answer_stream, whole_answer
from deployments.upstream.client import FAILED, UpstreamAnswer, UpstreamClient
from deployments.upstream.failure import UnreadableError, UpstreamFailure
from deployments.upstream.request_body import PATHS, upstream_body
from deployments.upstream.usage import features_of, tokens_at_most

MAX_BODY_BYTES = 32 * 2**20
NOT_OFFERED = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")
"""What engines of ours have and no public API: only the upstream knows its tokenizer."""


def make_app(upstream: UpstreamConfig, client: UpstreamClient, *, model: str, token: str) -> web.Application:
    """`model`: its name here. `token`: the gateways'."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_guard(token)])

    async def forward(request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(upstream.timeout_s):
                return await _forward(request, PATHS[request.path])
        except TimeoutError:
            raise client.failed("a call took longer than upstream.timeout_s") from None

    async def _forward(request: web.Request, route: UpstreamRoute) -> web.StreamResponse:
        body = await _body_of(request)
        try:
            features = features_of(route, body)
            sent = upstream_body(route, body, upstream)
        except (KeyError, TypeError, AttributeError):  # no gateway of ours sends such a body
            raise InvalidRequest("The body is malformed.") from None
        async with client.ask(route, sent, tokens_at_most(features, body)) as answer:
            try:
                if body.get("stream"):
                    stream = answer_stream(route, model, features.prompt_tokens_estimate)
                    return await _relayed(request, answer, stream)
                raw, tokens = whole_answer(
                    route, await answer.whole(), model, features.prompt_tokens_estimate
                )
            except UnreadableError as error:
                raise answer.broken(str(error)) from None
            answer.ended(tokens)
            return web.Response(body=raw, content_type="application/json")

    async def not_offered(request: web.Request) -> web.Response:
        raise UpstreamFailure(
            HTTPStatus.BAD_REQUEST, f"This model is not offered on {request.path}.", code="route_not_offered"
        )

    async def models(_: web.Request) -> web.Response:
        return _json({"object": "list", "data": [{"id": model, "object": "model"}]})

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    for path, route in PATHS.items():
        app.router.add_post(path, forward if route in upstream.routes else not_offered)
    for path in NOT_OFFERED:
        app.router.add_post(path, not_offered)
    app.router.add_get("/v1/models", models, allow_head=False)
    app.router.add_get("/health", health, allow_head=False)
    return app


async def _relayed(request: web.Request, answer: UpstreamAnswer, stream: AnswerStream) -> web.StreamResponse:
    """Our status leaves with the first event: until then a failure is one for the gateway, which may ask
    another replica. Later the connection breaks, as that of any engine that dies."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    try:
        async for piece in answer.pieces():
            await _write(request, response, stream.feed(piece))
            if stream.is_finished:
                break  # some keep the connection open after it
        await _write(request, response, stream.end())
    except (UnreadableError, UpstreamFailure, TimeoutError, asyncio.CancelledError):
        if response.prepared and request.transport is not None:
            request.transport.close()
        raise
    answer.ended(stream.total_tokens)
    await response.write_eof()
    return response


async def _write(request: web.Request, response: web.StreamResponse, events: bytes) -> None:
    if events:
        if not response.prepared:
            await response.prepare(request)
        await response.write(events)


async def _body_of(request: web.Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise InvalidRequest("The body is not a JSON object.")
    return body


def _guard(token: str) -> Middleware:
    """Token first, on routes that do not exist as well; then every failure gets its body."""
    if len(token) < 32:
        raise ValueError("the gateway token must have at least 32 characters")
    wanted = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, wanted):
            return _refused(UpstreamFailure(HTTPStatus.UNAUTHORIZED, "refused", code="unauthorized"))
        try:
            return await handler(request)
        except UpstreamFailure as failure:
            return _refused(failure)
        except InvalidRequest as error:
            return _json(error.to_openai(), HTTPStatus.BAD_REQUEST)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed):
            return _refused(UpstreamFailure(HTTPStatus.NOT_FOUND, "refused", code="unknown_url"))
        except web.HTTPRequestEntityTooLarge:
            return _refused(
                UpstreamFailure(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, FAILED, code="body_too_large")
            )

    return guard


def _refused(failure: UpstreamFailure) -> web.Response:
    response = _json(failure.body(), HTTPStatus(failure.status))
    if failure.retry_after_s is not None:
        response.headers["retry-after"] = str(max(1, round(failure.retry_after_s)))
    return response


def _json(value: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
