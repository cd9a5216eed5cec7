"""What the gateway must know of a route that reaches an engine. One more route is one more module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import SpratError
from cluster.types import Candidate, RequestFeatures, Usage

Body = Mapping[str, Any]


class StreamReader(Protocol):
    """Reads one streamed answer on its way to the client."""

    usage: Usage | None
    """As the engine reported it, once it did."""

    outputs: int
    """Output tokens seen so far. Cheap, and may be off by what an engine packs into one event: only for
    calls whose usage never arrives."""

    finished: bool
    """The engine said that this was all."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets of it: whole events, unchanged but for what is ours to hide or to add. Raises
        EngineFailed when the engine reports an error, or sends what cannot be read."""


class Streams(Protocol):
    def __call__(self, body: Body, before_end: Callable[[Usage | None], bytes]) -> StreamReader:
        """`before_end` gives what goes to the client right before the last event: the comment with cost
        and saving."""


def openai_error(error: SpratError) -> dict[str, Any]:
    return error.to_openai()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`parse` raises InvalidRequest; `usage_of` reads a whole answer and raises EngineFailed; `error_body`
    is the dialect of errors, whole answers and last events alike. `stream` is None where nothing is
    streamed."""

    path: str
    fields: Mapping[str, Callable[[Any, str], None]]
    """What a body may hold, each with its check; `required` of them must be there. For the description of
    the API: `parse` uses the same tables."""

    required: tuple[str, ...]
    parse: Callable[[bytes], dict[str, Any]]
    features: Callable[[Body, str | None], RequestFeatures]
    """From the checked body and the header `x-sprat-tier`."""

    engine_body: Callable[[Body, Candidate, str], bytes]
    """From the checked body, the candidate that was chosen and the tenant's cache salt."""

    usage_of: Callable[[bytes], Usage]
    stream: Streams | None = None
    error_body: Callable[[SpratError], dict[str, Any]] = openai_error
    error_event: Callable[[SpratError], bytes] | None = None
    """The last event of a stream that failed; None: `data: ` and `error_body`."""
