"""One pool's queue in memory: the twin of `lua/_queue.lua`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cluster.scheduler.memory_pool import Ranking, Terms
from cluster.scheduler.scheduler import CLASS_SPAN, CLASSES
from cluster.types import Candidate

VIRTUAL = 1000
"""Virtual time per token at weight 1."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """All that a grant needs. `level` is the class, 0 the most urgent. `holders` had the adapter when the
    wait began. `sent`: an engine may have run an earlier step of the call."""

    request_id: str
    step: int
    candidate: Candidate
    gateway: str
    level: int
    tenant: str
    tokens: int
    since_ms: int
    deadline_ms: int
    ticket_ttl_ms: int
    ageing_ms: int
    lease_ttl_ms: int
    excluded: tuple[str, ...]
    holders: tuple[str, ...]
    terms: Terms
    look_at: int
    sent: bool

    def level_at(self, now_ms: int) -> int:
        """Classes are strict, but a waiter rises by one for every `ageing_ms`."""
        return max(0, self.level - (now_ms - self.since_ms) // self.ageing_ms)


@dataclass(slots=True)
class Queue:
    """Self-clocked fair queueing (Golestani 1994) in each class. `order`: waiters by class and virtual finish
    time. `ends_ms`: when each wait is over, the earlier of its deadline and the last sign of life of its
    gateway plus the ticket TTL. Who has a ticket, but is no longer in the order, waits for its gateway or
    `reap` to give back its money."""

    order: Ranking = field(default_factory=Ranking)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    ends_ms: dict[str, int] = field(default_factory=dict)
    _clock: Counter[int] = field(default_factory=Counter)
    _last: Counter[tuple[int, str]] = field(default_factory=Counter)

    def finish_time(self, level: int, tenant: str, weight: int, tokens: int) -> int:
        start = max(self._clock[level], self._last[level, tenant])
        return start - (-max(1, tokens) * VIRTUAL // weight)

    def predicted_wait_ms(self, level: int, finish: int, slots: int, service_us: int) -> int:
        """From how many are served before a ticket of this class and finish time."""
        ahead = self.order.below(level * CLASS_SPAN + finish)
        return -(-(ahead + 1) * service_us // (1000 * max(1, slots)))

    def join(self, ticket: Ticket, finish: int, now_ms: int) -> None:
        self._last[ticket.level, ticket.tenant] = finish
        self.order.put(ticket.request_id, ticket.level * CLASS_SPAN + finish)
        self.tickets[ticket.request_id] = ticket
        self.ends_ms[ticket.request_id] = min(ticket.deadline_ms, now_ms + ticket.ticket_ttl_ms)

    def leave(self, request_id: str) -> Ticket | None:
        self.order.drop(request_id)
        self.ends_ms.pop(request_id, None)
        if not len(self.order):
            # Nobody is backlogged: who was served before no longer counts.
            self._clock.clear()
            self._last.clear()
        return self.tickets.pop(request_id, None)

    def next(self, now_ms: int, passed: Counter[int] | None = None) -> Ticket | None:
        """Who is served next: among the first of each class the most urgent one, then the longest wait. One
        whose wait is over leaves the order: it never starts. `passed`: per class, how many to leave out."""
        best: Ticket | None = None
        for level in range(len(CLASSES)):
            ticket = self._first_of(level, now_ms, passed[level] if passed else 0)
            if ticket is not None and (
                best is None
                or (ticket.level_at(now_ms), ticket.since_ms) < (best.level_at(now_ms), best.since_ms)
            ):
                best = ticket
        return best

    def _first_of(self, level: int, now_ms: int, offset: int) -> Ticket | None:
        place = self.order.below(level * CLASS_SPAN) + offset
        while (found := self.order.at(place)) is not None and found[0] < (level + 1) * CLASS_SPAN:
            request_id = found[1]
            if self.ends_ms[request_id] > now_ms:
                return self.tickets[request_id]
            self.order.drop(request_id)
        return None

    def granted(self, request_id: str) -> None:
        """The virtual clock of a class is the finish time of who was served last."""
        ticket = self.tickets[request_id]
        self._clock[ticket.level] = self.order.score(request_id) - ticket.level * CLASS_SPAN
        self.leave(request_id)

    def renew(self, request_id: str, ticket_ttl_ms: int, now_ms: int) -> None:
        end_ms = min(self.tickets[request_id].deadline_ms, now_ms + ticket_ttl_ms)
        self.ends_ms[request_id] = max(self.ends_ms[request_id], end_ms)

    def position(self, request_id: str) -> int:
        """0: the next. Also of one whose wait is over, until it is ended."""
        return self.order.rank(request_id) if request_id in self.order else 0

    def as_urgent(self, level: int) -> int:
        """Who waits in this class and the more urgent ones."""
        return self.order.below((level + 1) * CLASS_SPAN)

    def waiting(self, level: int) -> int:
        return self.order.below((level + 1) * CLASS_SPAN) - self.order.below(level * CLASS_SPAN)
