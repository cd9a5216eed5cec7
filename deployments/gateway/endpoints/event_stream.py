"""Streams whose events have names (`event: NAME`): responses and Anthropic's messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import EngineFailed
from cluster.types import Usage
from deployments.gateway.endpoints.endpoint import Body
from deployments.gateway.endpoints.sse import WholeEvents, split


@dataclass(frozen=True, slots=True)
class EventNames:
    """Beginnings of events, as bytes. `reports`: hold the usage; `ends`: are the last; `fails`: say that it
    went wrong; `outputs`: hold about one output token each."""

    reports: tuple[bytes, ...]
    ends: tuple[bytes, ...]
    fails: tuple[bytes, ...]
    outputs: tuple[bytes, ...]
    usage_of: Callable[[bytes], Usage]
    """From the data of an event. Raises EngineFailed."""

    @property
    def rare(self) -> tuple[bytes, ...]:
        return (*self.reports, *self.ends, *self.fails)


def named(*names: str) -> tuple[bytes, ...]:
    return tuple(b"event: %s\n" % name.encode() for name in names)


class NamedEventStream:
    """`StreamReader`. Events pass in the pieces in which they came; only those pieces are taken apart that
    may hold a rare event. (The text of an answer may look like one: its line breaks are escaped, so it never
    is at the beginning of an event.)"""

    def __init__(self, names: EventNames, _body: Body, before_end: Callable[[Usage | None], bytes]) -> None:
        self.usage: Usage | None = None
        self.outputs = 0
        self.finished = False
        self._names = names
        self._rare = names.rare
        self._before_end = before_end
        self._whole = WholeEvents()

    def feed(self, chunk: bytes) -> bytes:
        events = self._whole.feed(chunk)
        self.outputs += sum(map(events.count, self._names.outputs))
        if any(name in events for name in self._rare):
            return b"".join(map(self._one, split(events)))
        return events

    def _one(self, event: bytes) -> bytes:
        if event.startswith(self._names.fails):
            raise EngineFailed("The engine reported an error while generating.")
        if event.startswith(self._names.reports):
            self.usage = self._names.usage_of(event.partition(b"\ndata: ")[2])
        if event.startswith(self._names.ends):
            self.finished = True
            return self._before_end(self.usage) + event
        return event
