"""Idempotency-Key: a retry of the client gets the first outcome, and the model runs once.

The answer is kept for 24 h, encrypted (AES-256-GCM) under a key made from the cluster's pepper, the tenant
and the client's Idempotency-Key; of the latter the store knows only a hash.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.errors import (
    IdempotencyKeyInUse,
    IdempotencyKeyReused,
    IdempotentCallCompleted,
    InvalidRequest,
    SchedulerUnavailable,
)
from cluster.scheduler.idempotency import FirstCall, IdempotencyKeys, Outcome

KEY_FORM = re.compile(r"[\x21-\x7e]{1,128}")
LARGEST_ANSWER_BYTES = 1 << 20
"""A larger one is not kept; its retry hears that the call has completed."""

NONCE_BYTES = 12


def idempotency_key(header: str | None) -> str | None:
    """Raises InvalidRequest for anything but 1 to 128 printable ASCII characters."""
    if header is None:
        return None
    if KEY_FORM.fullmatch(header) is None:
        raise InvalidRequest(
            "The header Idempotency-Key must be 1 to 128 printable ASCII characters without spaces.",
            param="idempotency-key",
        )
    return header


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """Of a call that is not streamed. `body` is None where it was too large to keep."""

    status: int
    headers: dict[str, str]
    body: bytes | None


class IdempotentCall:
    """The first call under a key, until `finish` or `forget`."""

    def __init__(self, store: IdempotencyKeys, pepper: bytes, tenant: str, key: str, request_id: str) -> None:
        self._store = store
        self._tenant = tenant
        self._request_id = request_id
        self._seal_key = hmac.digest(pepper, f"idempotency:{tenant}\0{key}".encode(), "sha256")
        self._key_digest = hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()
        self._open = False

    async def begin(self, path: str, body: bytes, running_ttl_ms: int) -> StoredAnswer | None:
        """None: go ahead. Raises IdempotencyKeyReused, IdempotencyKeyInUse, IdempotentCallCompleted (the
        first call was streamed, or its answer too large to keep), SchedulerUnavailable."""
        digest = hashlib.sha256(b"\0".join((b"POST", path.encode(), body))).hexdigest()
        asking = asyncio.create_task(
            self._store.begin(self._tenant, self._key_digest, digest, self._request_id, running_ttl_ms)
        )
        try:
            first = await asyncio.shield(asking)
        except asyncio.CancelledError:
            await asyncio.shield(self._take_back(asking))
            raise
        match first.outcome:
            case Outcome.NEW:
                self._open = True
                return None
            case Outcome.OTHER:
                raise IdempotencyKeyReused(
                    "This Idempotency-Key was used with another request. Use a new key for a new request.",
                    param="idempotency-key",
                )
            case Outcome.RUNNING:
                raise IdempotencyKeyInUse(
                    "The first request with this Idempotency-Key is still running. Try again later.",
                    param="idempotency-key",
                    retry_after_s=1.0,
                )
            case Outcome.DONE:
                stored = self._unseal(first.sealed)
        if stored.body is None:
            raise IdempotentCallCompleted(
                f"The request with this Idempotency-Key has completed as {first.request_id}; its answer is "
                "not kept (streamed, or too large).",
                param="idempotency-key",
            )
        return stored

    async def finish(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
        if self._open:
            self._open = False
            kept = body if body is not None and len(body) <= LARGEST_ANSWER_BYTES else None
            await self._store.finish(
                self._tenant,
                self._key_digest,
                self._request_id,
                self._seal(StoredAnswer(status, headers, kept)),
            )

    async def forget(self) -> None:
        """It was refused before it ran, or given up: the client may try again under the same key."""
        if self._open:
            self._open = False
            await self._store.forget(self._tenant, self._key_digest, self._request_id)

    async def _take_back(self, asking: asyncio.Task[FirstCall]) -> None:
        """The client left while the store was asked. Only after its answer: on another connection, `forget`
        could overtake the question, and the key would stay in use until its time runs out."""
        with suppress(SchedulerUnavailable):
            await asking
            await self._store.forget(self._tenant, self._key_digest, self._request_id)

    def _seal(self, answer: StoredAnswer) -> str:
        body = None if answer.body is None else base64.b64encode(answer.body).decode()
        plain = orjson.dumps({"status": answer.status, "headers": answer.headers, "body": body})
        nonce = secrets.token_bytes(NONCE_BYTES)
        return base64.b64encode(nonce + AESGCM(self._seal_key).encrypt(nonce, plain, None)).decode()

    def _unseal(self, sealed: str) -> StoredAnswer:
        raw = base64.b64decode(sealed)
        try:
            plain = AESGCM(self._seal_key).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
        except InvalidTag:  # the pepper has changed since
            return StoredAnswer(200, {}, None)
        fields = orjson.loads(plain)
        body = None if fields["body"] is None else base64.b64decode(fields["body"])
        return StoredAnswer(fields["status"], fields["headers"], body)
