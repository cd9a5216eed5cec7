"""HTTP: routes, key check, errors in OpenAI's shape. aiohttp on both sides for now: the seams of
GATEWAY.md (own port, direct HTTP to the engine, bytes through) without its fastest form.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import orjson
from aiohttp import web

from cluster.errors import (
    BodyTimeout,
    BodyTooLarge,
    EngineFailed,
    EngineTimeout,
    InvalidRequest,
    MethodNotAllowed,
    SchedulerUnavailable,
    SpratError,
    UnknownModel,
    UnknownRoute,
    UnsupportedEncoding,
)
from cluster.router.features import features_of
from cluster.router.router import Router
from cluster.scheduler.idempotency import IdempotencyKeys
from cluster.tenants import ApiKey, cache_salt
from cluster.types import PriorityClass
from deployments.gateway import sse
from deployments.gateway.auth import Authenticator
from deployments.gateway.body import chat_body, completion_body
from deployments.gateway.call import Call, CallContext
from deployments.gateway.idempotency import IdempotentCall, idempotency_key, replayed
from deployments.gateway.journal import JournalFull

logger = logging.getLogger("ray.serve")

OPEN_ROUTES = frozenset({"/livez", "/readyz"})
API_KEY: web.RequestKey[ApiKey] = web.RequestKey("sprat_key", ApiKey)

CLOSING_TIMEOUT_S = 5.0
"""How long a client that reads slowly may take for the last bytes."""

BODY_TIMEOUT_S = 30.0
"""How long a client may take to send its body."""

CLIENT_HAS_GONE = 499

HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]{0,255}")

STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class GatewayServer:
    """The aiohttp application of one gateway replica."""

    def __init__(
        self,
        context: CallContext,
        router: Router,
        authenticator: Authenticator,
        idempotency_keys: IdempotencyKeys,
        pepper: bytes,
        *,
        max_body_bytes: int,
        request_timeout_s: float,
    ) -> None:
        self._context = context
        self._router = router
        self._authenticator = authenticator
        self._idempotency_keys = idempotency_keys
        self._pepper = pepper
        self._request_timeout_s = request_timeout_s
        self._started_s = int(time.time())
        self.application = web.Application(
            client_max_size=max_body_bytes, middlewares=[_errors_in_openai_shape, self._authenticate]
        )
        self.application.on_response_prepare.append(_say_who_serves)
        self.application.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name}", self._model),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
            ]
        )

    # Completions.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat_body)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, completion_body)

    async def _complete(
        self, request: web.Request, parse: Callable[[bytes], dict[str, Any]]
    ) -> web.StreamResponse:
        raw = await _read(request)
        call = self._call(request, parse(raw))
        key_text = idempotency_key(request.headers.get("idempotency-key"))
        if key_text is None:
            return await self._run(request, call)
        first = IdempotentCall(
            self._idempotency_keys, self._pepper, call.key.tenant, key_text, call.request_id
        )
        stored = await first.begin(request.path, raw, int(self._request_timeout_s * 1000) + 60_000)
        if stored is not None:
            return replayed(stored)
        return await self._run_once(request, call, first)

    def _call(self, request: web.Request, body: dict[str, Any]) -> Call:
        if not self._context.settling.has_room():
            raise JournalFull(
                "This gateway cannot book calls now: its journal is full. Try again later.", retry_after_s=10
            )
        key = request[API_KEY]
        features = features_of(body, header_tier=request.headers.get("x-sprat-tier"))
        return Call(
            context=self._context,
            key=key,
            path=request.path,
            body=body,
            features=features,
            decision=self._router.route(features),
            cache_salt=cache_salt(key.tenant, self._pepper),
            wanted_class=wanted_class(request.headers.get("x-sprat-class")),
            deadline_ms=wanted_deadline_ms(request.headers.get("x-sprat-deadline-ms")),
        )

    async def _run(self, request: web.Request, call: Call) -> web.StreamResponse:
        try:
            return await (self._stream(request, call) if call.features.stream else self._answer(call))
        except SpratError as error:
            error.headers = call.headers()
            raise
        finally:
            call.settle()

    async def _run_once(self, request: web.Request, call: Call, first: IdempotentCall) -> web.StreamResponse:
        """Keeps the outcome of a call that reached an engine, errors too; a call that did not may be
        retried."""
        try:
            response = await self._run(request, call)
        except SpratError as error:
            with suppress(SchedulerUnavailable):
                kept = first.forget() if call.grant is None else _keep(first, _error(error))
                await asyncio.shield(kept)
            raise
        except BaseException:  # the client has gone: nobody knows the outcome, so there is none
            with suppress(SchedulerUnavailable):
                await asyncio.shield(first.forget())
            raise
        with suppress(SchedulerUnavailable):  # the answer is there; a retry would run again
            await asyncio.shield(_keep(first, response))
        return response

    async def _answer(self, call: Call) -> web.Response:
        try:
            async with asyncio.timeout(self._request_timeout_s):
                raw = await call.answer()
        except TimeoutError:
            raise self._timed_out() from None
        headers = call.headers() | call.money_headers()
        return web.Response(body=raw, headers=headers, content_type="application/json")

    async def _stream(self, request: web.Request, call: Call) -> web.StreamResponse:
        """Our headers leave with the first event: until then an error is a status, and another replica
        may answer. After it, an error is the last event."""
        response: web.StreamResponse | None = None
        failure: SpratError | None = None
        try:
            async with asyncio.timeout(self._request_timeout_s), aclosing(call.events()) as events:
                async for event in events:
                    if response is None:
                        response = web.StreamResponse(headers=call.headers() | STREAM_HEADERS)
                        await response.prepare(request)
                    await response.write(event)
        except TimeoutError:
            failure = self._timed_out()
        except SpratError as error:
            failure = error
        if response is None:
            raise failure or EngineFailed("The engine sent an empty stream.")
        # The engine is done: the slot is free, whatever the client does with the rest of its answer.
        call.settle()
        try:
            async with asyncio.timeout(CLOSING_TIMEOUT_S):
                if failure is not None:
                    await response.write(sse.event(failure.to_openai()))
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    def _timed_out(self) -> EngineTimeout:
        return EngineTimeout(f"No complete answer within {self._request_timeout_s:g} s.")

    # Everything else.

    async def _models(self, _request: web.Request) -> web.Response:
        entries = [self._model_entry(name) for name in self._router.names()]
        return _json({"object": "list", "data": entries})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._router.names():
            raise UnknownModel(f"The model {name!r} does not exist here.", param="model")
        return _json(self._model_entry(name))

    def _model_entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started_s, "owned_by": "sprat"}

    async def _livez(self, _request: web.Request) -> web.Response:
        return _json({"state": "alive"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        """From what this gateway knows already: a store that hangs must not hang its readiness. While Redis
        is away it is ready as long as any key may still be served."""
        admission = self._context.admission
        known = {"decisions_without_redis": admission.decisions_without_redis}
        if not admission.snapshot.any_ready:
            return _json({"state": "no replica is ready"} | known, status=503)
        if not admission.store_is_away:
            return _json({"state": "ready"} | known)
        if await self._authenticator.anybody_served_without_redis():
            return _json({"state": "degraded", "reason": "Redis does not answer"} | known)
        return _json({"state": "Redis does not answer, and every key has a budget"} | known, status=503)

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Before any dispatch, on the parsed path alone (THREATS.md row 1)."""
        if HOST.fullmatch(request.headers.get("host", "")) is None:
            raise InvalidRequest("The Host header is not a host name.")
        if request.path not in OPEN_ROUTES:
            request[API_KEY] = await self._authenticator.key_of(request.headers.get("authorization"))
        return await handler(request)


async def _say_who_serves(_request: web.Request, response: web.StreamResponse) -> None:
    """In place of aiohttp's own name and version."""
    response.headers["server"] = "sprat"


async def _keep(first: IdempotentCall, response: web.StreamResponse) -> None:
    body = response.body if isinstance(response, web.Response) else None
    headers = {
        str(name).lower(): value
        for name, value in response.headers.items()
        if name.lower().startswith(("x-sprat-", "retry-after"))
    }
    await first.finish(response.status, headers, body if isinstance(body, bytes) else None)


def wanted_class(header: str | None) -> PriorityClass | None:
    """Of `x-sprat-class`. Raises InvalidRequest."""
    if header is None:
        return None
    try:
        return PriorityClass(header.strip().lower())
    except ValueError:
        raise InvalidRequest(
            f"The header x-sprat-class must be one of {', '.join(PriorityClass)}.", param="x-sprat-class"
        ) from None


def wanted_deadline_ms(header: str | None) -> int | None:
    """Of `x-sprat-deadline-ms`: ms from now by which the call must have been started. Raises
    InvalidRequest."""
    if header is None:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,8}", header.strip()) is None:
        raise InvalidRequest(
            "The header x-sprat-deadline-ms must be a whole number of milliseconds from 1 to 999999999.",
            param="x-sprat-deadline-ms",
        )
    return int(header)


async def _read(request: web.Request) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedEncoding("Send the body as it is, without Content-Encoding.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise BodyTooLarge(f"The body is larger than {request.client_max_size} bytes.") from error
    except TimeoutError as error:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from error
    except web.RequestPayloadError as error:
        raise InvalidRequest("The body is not complete.") from error


@web.middleware
async def _errors_in_openai_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SpratError as error:
        return _error(error)
    except web.HTTPNotFound:
        return _error(UnknownRoute(f"{request.method} {request.path[:200]} does not exist here."))
    except web.HTTPMethodNotAllowed as wrong:
        return _error(
            MethodNotAllowed(f"{request.path[:200]} takes {', '.join(sorted(wrong.allowed_methods))}.")
        )
    except web.HTTPException:
        raise
    except asyncio.CancelledError:
        raise
    except ConnectionError:
        if request.transport is not None and not request.transport.is_closing():
            raise
        return web.Response(status=CLIENT_HAS_GONE)  # to nobody; raised, it would be a traceback in the log
    except Exception:
        logger.exception("unexpected error in %s %s", request.method, request.path)
        if request.transport is not None and request.writer.output_size > 0:
            # Bytes are out: a second answer would be read as part of the first.
            request.transport.abort()
            raise
        return _error(SpratError("Internal error. The gateway's log has the details."))


def _error(error: SpratError) -> web.Response:
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return _json(error.to_openai(), status=error.status, headers=headers)


def _json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, headers=headers, content_type="application/json"
    )
