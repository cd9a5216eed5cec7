"""Who calls: bearer key → tenant, from an in-process cache of HMACs over the SQL store."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict

from cluster.errors import Unauthenticated
from cluster.store import KeyStore
from cluster.tenants import ApiKey, digest_of

CACHE_TTL_S = 10.0
"""A revoked key stops working after at most this long."""

CACHE_ENTRIES = 10_000
MAX_KEY_LENGTH = 256


class Authenticator:
    def __init__(self, keys: KeyStore, pepper: bytes, *, soft_served: bool = False) -> None:
        """`soft_served`: soft budgets have an allowance for times without Redis."""
        self._soft_served = soft_served
        self._keys = keys
        self._pepper = pepper
        self._any_served = (float("-inf"), False)
        self._cache: OrderedDict[bytes, tuple[float, ApiKey | None]] = OrderedDict()
        self._cache_key = secrets.token_bytes(32)

    async def key_of(self, authorization: str | None, x_api_key: str | None = None) -> ApiKey:
        """`x_api_key` is how Anthropic's clients send it. Raises Unauthenticated with OpenAI's code for
        it."""
        scheme, _, text = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            text = x_api_key or ""
        text = text.strip()
        if not text:
            raise Unauthenticated("No API key was given. Send it as `Authorization: Bearer sk-sprat-…`.")
        found = await self._find(text[:MAX_KEY_LENGTH])
        if found is None or found.revoked:
            raise Unauthenticated("This API key is not valid here. `sprat up` prints a fresh one.")
        return found

    async def anybody_served_without_redis(self) -> bool:
        """Whether a key exists whose calls need no budget check. Asked anew every `CACHE_TTL_S`."""
        asked_s, answer = self._any_served
        if time.monotonic() - asked_s > CACHE_TTL_S:
            answer = await asyncio.to_thread(self._keys.any_unbudgeted, but_for_soft=self._soft_served)
            self._any_served = (time.monotonic(), answer)
        return answer

    async def _find(self, text: str) -> ApiKey | None:
        # A full keyed digest, but a cheaper one than the HMAC of the store, which takes 20 times as long.
        mark = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._cache_key).digest()
        now = time.monotonic()
        cached = self._cache.get(mark)
        if cached is not None and now - cached[0] < CACHE_TTL_S:
            return cached[1]
        digest = digest_of(text, self._pepper)
        found = await asyncio.to_thread(self._keys.find, digest)
        if found is not None and not hmac.compare_digest(found.digest, digest):
            found = None
        self._cache[mark] = (now, found)
        self._cache.move_to_end(mark)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)
        return found
