"""Drafts of a cascade on routes that give one answer per call: the engine is asked what the client asked, and
the client gets what the engine said.

Nothing is added for verifiers there, so those that need logprobs or several drafts cannot judge them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import EngineFailed
from cluster.router.verifiers.draft import Draft, Expected
from cluster.types import Candidate
from deployments.gateway.endpoints.drafts import UNREADABLE
from deployments.gateway.endpoints.endpoint import Body
from deployments.gateway.endpoints.sse import split

Json = Mapping[str, Any]

DATA = b"\ndata: "


@dataclass(frozen=True, slots=True)
class PlainDrafts:
    """`Drafts` of a dialect. `draft_of` reads a whole answer, `draft_of_events` the data of events; both may
    raise what is in UNREADABLE."""

    body_for_engine: Callable[[Body, Candidate, str], bytes]
    expected_of: Callable[[Body], Expected]
    draft_of: Callable[[Json], Draft]
    draft_of_events: Callable[[Sequence[Json]], Draft]

    def can_be_judged(self, body: Body, *, logprobs: bool, drafts: int) -> bool:  # noqa: ARG002 (protocol)
        return not logprobs and drafts == 1

    def engine_body(
        self,
        body: Body,
        candidate: Candidate,
        cache_salt: str,
        *,
        logprobs: bool,  # noqa: ARG002 (protocol)
        drafts: int,  # noqa: ARG002
    ) -> bytes:
        return self.body_for_engine(body, candidate, cache_salt)

    def expected(self, body: Body) -> Expected:
        return self.expected_of(body)

    def read(self, raw: bytes) -> Draft:
        try:
            return self.draft_of(orjson.loads(raw))
        except UNREADABLE as error:
            raise EngineFailed("The engine sent a draft that cannot be read.") from error

    def read_events(self, events: bytes) -> Draft:
        try:
            return self.draft_of_events([*_data_of(events)])
        except UNREADABLE as error:
            raise EngineFailed("The engine sent a draft that cannot be read.") from error

    def shown(self, body: Body, raw: bytes, chosen: int) -> bytes:  # noqa: ARG002 (protocol)
        return raw

    def shown_events(self, body: Body, events: bytes, chosen: int) -> bytes:  # noqa: ARG002 (protocol)
        return events


def _data_of(events: bytes) -> Iterable[Json]:
    for event in split(events):
        if event.startswith(b"event: "):
            yield orjson.loads(event.partition(DATA)[2])
