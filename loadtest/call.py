"""What is known of one call after it ended, well or badly."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ErrorKind(StrEnum):
    CONNECT = "connect"
    """No connection."""

    STATUS = "status"
    """An answer with a status other than 200."""

    STREAM = "stream"
    """An error event after the status 200 was sent."""

    BROKEN = "broken"
    """The connection or the stream ended before the answer did."""

    EMPTY = "empty"
    """A complete answer without any content."""

    PROTOCOL = "protocol"
    """Not HTTP, or not JSON where it has to be."""

    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class CallError:
    kind: ErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Call:
    """Times count from the moment the request is written to an open connection.

    `ttft_s`: to the first chunk with non-empty content; None for a whole answer. `itl_s`: every gap
    between chunks with content. `e2e_s`: to the last such chunk, or to the end of a whole answer.
    `done_s`: to the end of the response, or to the error. `output_tokens` as the server's usage says, else
    the count of content chunks. `status` is 0 where none came.
    """

    status: int
    done_s: float
    e2e_s: float | None = None
    ttft_s: float | None = None
    itl_s: tuple[float, ...] = ()
    output_tokens: int = 0
    reused_connection: bool = False
    error: CallError | None = None
