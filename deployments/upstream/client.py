"""HTTP to one upstream: its address and key, pacing, attempts, circuit breaker.

The address is the operator's alone. Redirects are not followed, no cookie is kept, no header of a client is
sent, answers are asked for uncompressed, and TLS is verified against the system's authorities (SSL_CERT_FILE
names others). An attempt is repeated only while the upstream has not begun to answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from cluster.config.upstream import UpstreamConfig, UpstreamRoute
from cluster.errors import StartError
from deployments.upstream.breaker import Circuit, CircuitBreaker
from deployments.upstream.failure import UnreadableError, UpstreamFailure
from deployments.upstream.pacing import Charge, Pacer
from deployments.upstream.rate_headers import rate_headers
from deployments.upstream.refusals import Meaning, Refusal, refusal_of

logger = logging.getLogger("ray.serve")

MAX_ANSWER_BYTES = 32 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
CHECK_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.25
PAUSE_S = 1.0
"""After a 429 that does not say when to come back."""

BUSY = "This model is asked too often at the moment. Try again later."
FAILED = "This model's provider failed. Try again later."
AWAY = "This model's provider is not available at the moment. Try again later."

PUBLIC_PATHS: dict[UpstreamRoute, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "messages": "/messages",
    "embeddings": "/embeddings",
}

_LOST = (aiohttp.ClientError, OSError, TimeoutError)
"""What a lost connection raises. Their texts are not shown: some hold the request with its headers."""


@dataclass(slots=True)
class UpstreamAnswer:
    """One answer of 200 that has begun. Reading raises UpstreamFailure."""

    response: aiohttp.ClientResponse
    charge: Charge | None
    _client: UpstreamClient

    async def pieces(self) -> AsyncIterator[bytes]:
        """As they come."""
        try:
            async for piece in self.response.content.iter_any():
                yield piece
        except _LOST as error:
            raise self.broken(type(error).__name__) from None

    async def whole(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise self.broken("its answer is too large")
            parts.append(piece)
        return b"".join(parts)

    def broken(self, why: str) -> UpstreamFailure:
        """It cannot be read to its end, or not understood."""
        return self._client.failed(f"the upstream's answer broke off: {why}")

    def ended(self, tokens: int | None) -> None:
        """It was whole. `tokens`: prompt and output, where they are known."""
        self._client.breaker.succeeded()
        if tokens is not None:
            self._client.pacer.correct(self.charge, tokens)


class UpstreamClient:
    """One per replica; to be opened in its event loop and closed."""

    def __init__(
        self, upstream: UpstreamConfig, api_key: str | None, *, pool: str, replicas: int = 1
    ) -> None:
        """`replicas` share the account's limits. `pool` is for the log."""
        self._pool = pool
        self._upstream = upstream
        self._base_url = upstream.base_url.rstrip("/")
        self._key = api_key or ""
        self._hidden = (self._key, urlsplit(upstream.base_url).netloc, upstream.model)
        self.pacer = Pacer(upstream.requests_per_minute, upstream.tokens_per_minute, share_of=replicas)
        self.breaker = CircuitBreaker(upstream.failures_to_open, upstream.cooldown_s)
        self._session = aiohttp.ClientSession(
            headers=_headers(self._key),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=upstream.connect_timeout_s, sock_read=upstream.silence_timeout_s
            ),
        )

    async def close(self) -> None:
        await self._session.close()

    async def check(self) -> str:
        """Whether it answers, takes the key and knows the model: a warning for the operator, or "". Raises
        StartError."""
        try:
            status, raw = await self._models()
        except _LOST as error:
            raise StartError(
                f"the upstream cannot be reached ({type(error).__name__}). "
                "Check upstream.base_url and the network."
            ) from None
        except UnreadableError as error:
            raise StartError(
                f"the upstream's list of models is no good: {error}. Check upstream.base_url."
            ) from None
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            return "the upstream has no /models: neither key nor model could be checked"
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return ""  # it is there
        if status != HTTPStatus.OK:
            raise StartError(f"{self._refusal(status, raw).message}. It was asked for its models.")
        names = _model_names(raw)
        if names and self._upstream.model not in names:
            return f"the upstream does not list the model {self._upstream.model!r}: check upstream.model"
        return ""

    async def recover(self) -> None:
        """Before a call tries it again: whether it answers at all. Costs nothing there."""
        try:
            status, raw = await self._models()
        except (*_LOST, UnreadableError) as error:
            self.breaker.failed(f"the upstream cannot be reached ({type(error).__name__})")
            return
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or status >= 500:
            self.breaker.failed(self._refusal(status, raw).message)

    @asynccontextmanager
    async def ask(
        self, route: UpstreamRoute, body: dict[str, Any], tokens: int
    ) -> AsyncIterator[UpstreamAnswer]:
        """Raises UpstreamFailure. `tokens`: at most, for the limits. To leave before the answer's end closes
        its connection, which makes the upstream abort the generation."""
        sent = orjson.dumps(body)
        response, charge = await self._begun(route, sent, tokens)
        try:
            yield UpstreamAnswer(response, charge, self)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    def failed(self, why: str) -> UpstreamFailure:
        """Counted by the breaker."""
        was_closed = self.breaker.circuit is not Circuit.OPEN
        self.breaker.failed(why)
        if was_closed:
            logger.warning("pool %s: %s", self._pool, why)
        return UpstreamFailure(HTTPStatus.BAD_GATEWAY, FAILED, code="upstream_failed")

    # One call.

    async def _begun(
        self, route: UpstreamRoute, sent: bytes, tokens: int
    ) -> tuple[aiohttp.ClientResponse, Charge | None]:
        """The first answer of 200, after as many attempts as it takes and the configuration allows."""
        patience_s = self._upstream.longest_wait_s
        for attempt in range(1, self._upstream.max_attempts + 1):
            patience_s -= await self._paced(tokens, patience_s)
            if (retry_after_s := self.breaker.admit()) > 0:
                raise UpstreamFailure(
                    HTTPStatus.SERVICE_UNAVAILABLE, AWAY, code="upstream_away", retry_after_s=retry_after_s
                )
            charge = self.pacer.take(tokens)
            try:
                outcome = await self._attempt(route, sent)
            except BaseException:
                self.breaker.abandoned()  # the client left
                raise
            if isinstance(outcome, aiohttp.ClientResponse):
                return outcome, charge
            self.pacer.correct(charge, 0)
            if isinstance(outcome, UpstreamFailure):
                raise outcome
            jitter = random.uniform(0.5, 1)  # noqa: S311 (no secret)
            backoff_s = FIRST_BACKOFF_S * 2 ** (attempt - 1) * jitter
            wait_s = max(outcome.wait_s, backoff_s)
            if wait_s > patience_s or attempt == self._upstream.max_attempts:
                raise outcome.failure
            await asyncio.sleep(wait_s)
            patience_s -= wait_s
        raise AssertionError("max_attempts is at least 1")

    async def _paced(self, tokens: int, patience_s: float) -> float:
        """Waits until the limits allow the call; the seconds that took."""
        waited_s = 0.0
        while (wait_s := self.pacer.wait_s(tokens)) > 0:
            if waited_s + wait_s > patience_s:
                raise _busy(wait_s)
            await asyncio.sleep(wait_s)
            waited_s += wait_s
        return waited_s

    async def _attempt(
        self, route: UpstreamRoute, sent: bytes
    ) -> aiohttp.ClientResponse | _Again | UpstreamFailure:
        headers = {"content-type": "application/json"}
        if route == "messages":
            headers |= {"anthropic-version": "2023-06-01"} | ({"x-api-key": self._key} if self._key else {})
        try:
            response = await self._session.post(
                self._base_url + PUBLIC_PATHS[route], data=sent, headers=headers, allow_redirects=False
            )
        except TimeoutError:
            return self.failed("the upstream does not answer in time")  # nor would it the next time
        except _LOST as error:
            return _Again(self.failed(f"the upstream cannot be reached ({type(error).__name__})"))
        limits = rate_headers(response.headers, datetime.now(UTC))
        self.pacer.learn(limits)
        if response.status == HTTPStatus.OK:
            if response.headers.get("content-encoding", "identity") != "identity":
                response.close()
                return self.failed("the upstream compresses its answers unasked")
            self.breaker.began()
            return response
        try:
            raw = await _bounded(response, MAX_ERROR_BYTES)
        except (*_LOST, UnreadableError):
            raw = b""
        finally:
            response.close()
        return await self._refused(self._refusal(response.status, raw), limits.retry_after_s)

    async def _refused(self, refusal: Refusal, retry_after_s: float | None) -> _Again | UpstreamFailure:
        meaning = refusal.meaning
        if meaning is Meaning.FORBIDDEN:
            logger.warning("pool %s: %s", self._pool, refusal.message)
            meaning = Meaning.KEY_REFUSED if await self._is_key_refused() else Meaning.INVALID
            refusal = Refusal(
                meaning, refusal.message if meaning is Meaning.KEY_REFUSED else "it is not allowed"
            )
        if meaning is Meaning.INVALID:
            self.breaker.succeeded()
            return UpstreamFailure(
                HTTPStatus.BAD_REQUEST, refusal.message, code=refusal.code or "refused_by_upstream"
            )
        if meaning is Meaning.BUSY:
            self.breaker.succeeded()
            self.pacer.pause(PAUSE_S if retry_after_s is None else retry_after_s)
            wait_s = self.pacer.wait_s(0)
            return _Again(_busy(wait_s), wait_s)
        if meaning is Meaning.KEY_REFUSED:
            logger.error("pool %s: %s", self._pool, refusal.message)
            self.breaker.trip(refusal.message)
            return UpstreamFailure(
                HTTPStatus.SERVICE_UNAVAILABLE,
                AWAY,
                code="upstream_away",
                retry_after_s=self._upstream.cooldown_s,
            )
        failure = self.failed(refusal.message)
        return _Again(failure, retry_after_s or 0.0) if meaning is Meaning.BROKEN else failure

    async def _is_key_refused(self) -> bool:
        """A provider may forbid a single call (its content) with the same status as a key."""
        try:
            status, _ = await self._models()
        except (*_LOST, UnreadableError):
            return False
        return status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)

    async def _models(self) -> tuple[int, bytes]:
        async with (
            asyncio.timeout(CHECK_TIMEOUT_S),
            self._session.get(self._base_url + "/models", allow_redirects=False) as response,
        ):
            return response.status, await _bounded(response, MAX_ANSWER_BYTES)

    def _refusal(self, status: int, raw: bytes) -> Refusal:
        return refusal_of(status, raw, api_key_env=self._upstream.api_key_env, hidden=self._hidden)


@dataclass(frozen=True, slots=True)
class _Again:
    """An attempt that may be repeated, not before `wait_s`, and what its call fails with otherwise."""

    failure: UpstreamFailure
    wait_s: float = 0.0


def _busy(retry_after_s: float) -> UpstreamFailure:
    return UpstreamFailure(
        HTTPStatus.TOO_MANY_REQUESTS, BUSY, code="upstream_busy", retry_after_s=retry_after_s
    )


def _headers(key: str) -> dict[str, str]:
    headers = {"accept-encoding": "identity", "user-agent": "sprat"}
    return headers | ({"authorization": f"Bearer {key}"} if key else {})


async def _bounded(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    raw = bytearray()
    async for piece in response.content.iter_any():
        raw += piece
        if len(raw) > most_bytes:
            raise UnreadableError("it is too large")
    return bytes(raw)


def _model_names(raw: bytes) -> frozenset[str]:
    try:
        models = orjson.loads(raw)["data"]
        return frozenset(each["id"] for each in models)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return frozenset()
