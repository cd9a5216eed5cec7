"""API keys. Only HMACs are kept; the key text exists once, when it is printed (THREATS.md row 16)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

KEY_PREFIX = "sk-sprat-"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key. `digest` is the hex HMAC-SHA256 of its text under the cluster's pepper."""

    digest: str
    tenant: str
    name: str
    revoked: bool = False


def new_key_text() -> str:
    """256 bits from the operating system."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key_text: str, pepper: bytes) -> str:
    return hmac.digest(pepper, key_text.encode("utf-8", "surrogatepass"), "sha256").hex()


def cache_salt(tenant: str, pepper: bytes) -> str:
    """Separates tenants in an engine's prefix cache: its timing tells nothing across tenants (row 11)."""
    return hmac.new(pepper, b"cache-salt:" + tenant.encode(), hashlib.sha256).hexdigest()[:32]
