"""Who calls: bearer key → tenant, from an in-process cache of HMACs over the SQL store."""

from __future__ import annotations

import asyncio
import hmac
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
        self._cache: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def key_of(self, authorization: str | None) -> ApiKey:
        """Raises Unauthenticated with OpenAI's code for it."""
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise Unauthenticated("No API key was given. Send it as `Authorization: Bearer sk-sprat-…`.")
        digest = digest_of(text[:MAX_KEY_LENGTH], self._pepper)
        found = await self._find(digest)
        if found is None or found.revoked or not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated("This API key is not valid here. `sprat up` prints a fresh one.")
        return found

    async def anybody_served_without_redis(self) -> bool:
        """Whether a key exists whose calls need no budget check. Asked anew every `CACHE_TTL_S`."""
        asked_s, answer = self._any_served
        if time.monotonic() - asked_s > CACHE_TTL_S:
            answer = await asyncio.to_thread(self._keys.any_unbudgeted, but_for_soft=self._soft_served)
            self._any_served = (time.monotonic(), answer)
        return answer

    async def _find(self, digest: str) -> ApiKey | None:
        now = time.monotonic()
        cached = self._cache.get(digest)
        if cached is not None and now - cached[0] < CACHE_TTL_S:
            return cached[1]
        found = await asyncio.to_thread(self._keys.find, digest)
        self._cache[digest] = (now, found)
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)
        return found
