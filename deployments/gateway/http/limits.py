"""What a connection may ask of the gateway (THREATS.md row 14)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Sizes in bytes, times in seconds."""

    body_bytes: int
    held_body_bytes: int = 256 * 2**20
    """Of all bodies that are on their way in, on all connections: senders need no key yet."""

    hosts: frozenset[bytes] = frozenset()
    """What the Host header may say, in lower case; empty: anything."""

    head_bytes: int = 32 * 1024
    headers: int = 100
    url_bytes: int = 4 * 1024
    pipelined: int = 16
    """Requests of one connection that wait for the answer to the one before. Reading pauses at the first;
    what came with the same packet counts."""

    connections: int = 20_000
    connections_per_address: int = 16_384
    head_s: float = 10.0
    """From the first byte of a request to the end of its headers."""

    body_s: float = 30.0
    idle_s: float = 75.0
    """Between two requests, and before the first. Above the 60 s of usual load balancers, so that it is
    them who close."""

    stalled_s: float = 60.0
    """A client that takes nothing of its answer for this long is gone."""

    write_buffer_bytes: int = 256 * 1024
    """Of an answer that the client has not taken yet; beyond it the engine is held back."""
