"""A request, and where its answer goes: what the gateway knows of HTTP, whatever carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cluster.record import record


@record
@dataclass(frozen=True, slots=True)
class Request:
    """Complete, its body included. `headers` have lower-case names; those that may come once came once.
    `path` is as it was sent, without the query."""

    method: str
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    peer: str
    """Address of the other end of the connection; empty for a unix socket."""

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class Source(Protocol):
    """Where a streamed answer comes from, and can be held back."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Reply(Protocol):
    """The one answer to one request. After its end it writes nothing any more, also when its connection has
    gone on to the next request."""

    started: bool
    """Bytes may be out: a second answer would be read as part of the first."""

    ended: bool

    def respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """The whole answer."""

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers. They leave with the first bytes of the body."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def abort(self) -> None:
        """Break off, so that nobody takes what is out for the whole."""

    def take_from(self, source: Source) -> None:
        """Whom to hold back while the client does not read."""


Handler = Callable[[Request, Reply], Awaitable[None]]
