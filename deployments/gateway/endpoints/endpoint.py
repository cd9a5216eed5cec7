"""What the gateway must know of a route that reaches an engine. One more route is one more module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.errors import SpratError
from cluster.router.verifiers.draft import Draft, Expected
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


class Drafts(Protocol):
    """Drafts of a cascade in the dialect of a route. `read` and `read_events` raise EngineFailed."""

    def can_be_judged(self, body: Body, *, logprobs: bool, drafts: int) -> bool:
        """Whether the client wants one answer, since several cannot be judged as one, and the dialect has
        `drafts` answers at once, with the logprobs of their tokens."""

    def engine_body(
        self, body: Body, candidate: Candidate, cache_salt: str, *, logprobs: bool, drafts: int
    ) -> bytes:
        """As `Endpoint.engine_body`, for `drafts` answers at once, with the logprobs of their tokens."""

    def expected(self, body: Body) -> Expected:
        """What the client asked for."""

    def read(self, raw: bytes) -> Draft:
        """Of a whole answer."""

    def read_events(self, events: bytes) -> Draft:
        """Of a stream, or of its beginning."""

    def shown(self, body: Body, raw: bytes, chosen: int) -> bytes:
        """What the client gets of a whole answer: the chosen draft, without what only we asked for."""

    def shown_events(self, body: Body, events: bytes, chosen: int) -> bytes:
        """The same of whole events of a stream."""


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

    drafts: Drafts | None = None
    """None: a cascade goes to its last target at once."""
