"""From a request to its answer: key check, routes, idempotency, errors in the dialect of the route."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import orjson

from cluster.errors import (
    EngineFailed,
    EngineTimeout,
    InvalidRequest,
    MethodNotAllowed,
    SchedulerUnavailable,
    SpratError,
    UnsupportedEncoding,
)
from cluster.scheduler.idempotency import IdempotencyKeys
from cluster.tenants import ApiKey, cache_salt
from cluster.types import PriorityClass
from deployments.gateway.auth import Authenticator
from deployments.gateway.call import Call, CallContext
from deployments.gateway.cascade import without_drafts
from deployments.gateway.current_router import CurrentRouter
from deployments.gateway.endpoints import sse
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.endpoints.endpoint import Endpoint, openai_error
from deployments.gateway.http.asgi import Application, answer_by
from deployments.gateway.http.message import Reply, Request
from deployments.gateway.http.rules import Refused
from deployments.gateway.http.wire_reply import error_of
from deployments.gateway.idempotency import IdempotentCall, idempotency_key
from deployments.gateway.journal import JournalFull
from deployments.gateway.pages import OPEN_ROUTES
from deployments.gateway.schema_rate import SchemaRate
from deployments.gateway.time_limit import TimeLimit

logger = logging.getLogger("ray.serve")

JSON = {"content-type": "application/json"}
REPLAYED = {"x-sprat-idempotent-replay": "true"}
LONGER_THAN_THE_CALL_MS = 60_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What an idempotent call keeps. `body` is None when it was streamed."""

    status: int
    headers: dict[str, str]
    body: bytes | None


class GatewayServer:
    """One per gateway replica. `handle` answers every request that came in whole."""

    def __init__(
        self,
        context: CallContext,
        current: CurrentRouter,
        authenticator: Authenticator,
        idempotency_keys: IdempotencyKeys,
        pages: Application,
        *,
        pepper: bytes,
        request_timeout_s: float,
    ) -> None:
        """`pages` answers whatever is no call."""
        self._context = context
        self._current = current
        self._authenticator = authenticator
        self._idempotency_keys = idempotency_keys
        self._pepper = pepper
        self._pages = pages
        self._schema_rate = SchemaRate()
        self._request_timeout_s = request_timeout_s
        self._time_limit = TimeLimit(request_timeout_s, asyncio.get_running_loop())

    async def handle(self, request: Request, reply: Reply) -> None:
        endpoint = ENDPOINTS.get(request.path)
        try:
            # Before any dispatch, on the parsed path alone (THREATS.md row 1).
            key = None if request.path in OPEN_ROUTES else await self._key_of(request)
            if endpoint is None or key is None:
                await answer_by(self._pages, request, reply)
            else:
                await self._complete(request, reply, key, endpoint)
        except SpratError as error:
            _respond(reply, _refused(error, endpoint))
        except Exception:
            logger.exception("unexpected error in %s %s", request.method, request.path[:200])
            internal = SpratError("Internal error. The gateway's log has the details.")
            _respond(reply, _refused(internal, endpoint))

    async def _key_of(self, request: Request) -> ApiKey:
        return await self._authenticator.key_of(
            request.header(b"authorization"), request.header(b"x-api-key")
        )

    async def _complete(self, request: Request, reply: Reply, key: ApiKey, endpoint: Endpoint) -> None:
        if request.method != "POST":
            raise MethodNotAllowed(f"{endpoint.path} takes POST.")
        if request.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedEncoding("Send the body as it is, without Content-Encoding.")
        call = self._call(request, key, endpoint)
        key_text = idempotency_key(request.header(b"idempotency-key"))
        if key_text is None:
            await self._run(call, reply)
            return
        first = IdempotentCall(self._idempotency_keys, self._pepper, key.tenant, key_text, call.request_id)
        running_ttl_ms = int(self._request_timeout_s * 1000) + LONGER_THAN_THE_CALL_MS
        stored = await first.begin(request.path, request.body, running_ttl_ms)
        if stored is not None:
            _respond(reply, Answer(stored.status, JSON | stored.headers | REPLAYED, stored.body))
            return
        await self._run_once(call, reply, first)

    def _call(self, request: Request, key: ApiKey, endpoint: Endpoint) -> Call:
        if not self._context.settling.has_room():
            raise JournalFull(
                "This gateway cannot book calls now: its journal is full. Try again later.", retry_after_s=10
            )
        body = endpoint.parse(request.body)
        features = endpoint.features(body, request.header(b"x-sprat-tier"))
        if features.schema_digest:
            self._schema_rate.check(key.key_id, features.schema_digest, time.monotonic())
        return Call(
            context=self._context,
            key=key,
            endpoint=endpoint,
            body=body,
            features=features,
            decision=without_drafts(self._current.router.route(features, random.random()), endpoint, body),  # noqa: S311
            cache_salt=cache_salt(key.tenant, self._pepper),
            wanted_class=wanted_class(request.header(b"x-sprat-class")),
            deadline_ms=wanted_deadline_ms(request.header(b"x-sprat-deadline-ms")),
        )

    async def _run(self, call: Call, reply: Reply) -> None:
        try:
            _respond(reply, await self._outcome(call, reply))
        finally:
            call.settle()

    async def _run_once(self, call: Call, reply: Reply, first: IdempotentCall) -> None:
        """Keeps the outcome of a call that reached an engine, errors too; a call that did not may be
        retried."""
        try:
            answer = await self._outcome(call, reply)
        except SpratError as error:
            with suppress(SchedulerUnavailable):
                kept = first.forget() if call.grant is None else _keep(first, _refused(error, call.endpoint))
                await asyncio.shield(kept)
            raise
        except BaseException:  # the client has gone: nobody knows the outcome, so there is none
            with suppress(SchedulerUnavailable):
                await asyncio.shield(first.forget())
            raise
        finally:
            call.settle()
        with suppress(SchedulerUnavailable):  # the answer is there; a retry would run again
            await asyncio.shield(_keep(first, answer))
        _respond(reply, answer)

    async def _outcome(self, call: Call, reply: Reply) -> Answer:
        try:
            return await (self._stream(call, reply) if call.features.stream else self._answer(call))
        except SpratError as error:
            error.headers = call.headers()
            raise

    async def _answer(self, call: Call) -> Answer:
        try:
            with self._time_limit.of_call():
                raw = await call.answer()
        except TimeoutError:
            raise self._timed_out() from None
        return Answer(200, JSON | call.headers() | call.money_headers(), raw)

    async def _stream(self, call: Call, reply: Reply) -> Answer:
        """An error after the first event is the last event."""
        failure: SpratError | None = None
        try:
            with self._time_limit.of_call():
                await call.stream(reply)
        except TimeoutError:
            failure = self._timed_out()
        except SpratError as error:
            failure = error
        # The engine is done: the slot is free, whatever the client does with the rest of its answer.
        call.settle()
        if not reply.started:
            raise failure or EngineFailed("The engine sent an empty stream.")
        if failure is not None:
            reply.write(_error_event(failure, call.endpoint))
        reply.end()
        return Answer(200, call.headers(), None)

    def _timed_out(self) -> EngineTimeout:
        return EngineTimeout(f"No complete answer within {self._request_timeout_s:g} s.")


def _respond(reply: Reply, answer: Answer) -> None:
    if answer.body is not None:
        if reply.started:
            reply.abort()  # a second answer would be read as part of the first
        else:
            reply.respond(answer.status, answer.headers, answer.body)


def _refused(error: SpratError, endpoint: Endpoint | None) -> Answer:
    headers = JSON | error.headers
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = "POST"
    return Answer(error.status, headers, _error_body(error, endpoint))


def refused_by_http(refused: Refused) -> bytes:
    """Body of the answer to a request that broke a rule of HTTP, in the dialect of its route."""
    return _error_body(error_of(refused), ENDPOINTS.get(refused.path))


def _error_body(error: SpratError, endpoint: Endpoint | None) -> bytes:
    dialect = openai_error if endpoint is None else endpoint.error_body
    return orjson.dumps(dialect(error))


def _error_event(error: SpratError, endpoint: Endpoint) -> bytes:
    if endpoint.error_event is not None:
        return endpoint.error_event(error)
    return sse.data(endpoint.error_body(error))


async def _keep(first: IdempotentCall, answer: Answer) -> None:
    headers = {
        name: value for name, value in answer.headers.items() if name.startswith(("x-sprat-", "retry-after"))
    }
    await first.finish(answer.status, headers, answer.body)


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
