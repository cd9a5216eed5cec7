"""One pool's queue in memory: the twin of `lua/_queue.lua`."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from cluster.scheduler.memory_pool import EWMA_SHARE, Ranking, Terms
from cluster.scheduler.scheduler import CLASS_SPAN, CLASSES
from cluster.types import Candidate

VIRTUAL = 1000
"""Virtual time per token at weight 1."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """All that a grant needs. `level` is the class, 0 the most urgent. `ahead`: how many were to be served
    before it when the wait began. `holders` had the adapter then. `sent`: an engine may have run an earlier
    step of the call."""

    request_id: str
    step: int
    candidate: Candidate
    gateway: str
    level: int
    tenant: str
    weight: int
    tokens: int
    ahead: int
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

    @property
    def owner(self) -> str:
        return owner_of(self.level, self.tenant)

    @property
    def virtual_cost(self) -> int:
        return -(-max(1, self.tokens) * VIRTUAL // self.weight)

    def level_at(self, now_ms: int) -> int:
        """Classes are strict, but a waiter rises by one for every `ageing_ms`."""
        return max(0, self.level - (now_ms - self.since_ms) // self.ageing_ms)


def owner_of(level: int, tenant: str) -> str:
    """A tenant in its class. Sorts as in Redis, which breaks ties of two turns."""
    return f"{level}|{len(tenant.encode())}|{tenant}|"


@dataclass(slots=True)
class Queue:
    """The tenants of a class take turns, each tenant's waiters stand in a line. Self-clocked fair queueing
    (Golestani 1994), charged when a slot is granted: a waiter that leaves unserved has cost its tenant
    nothing.

    `lines`: request ids and the number that each drew, in that order. `turns`: tenants with a waiter, by
    class and the virtual time at which their first one would end. `ends_ms`: when each wait is over, the
    earlier of its deadline and the last sign of life of its gateway plus the ticket TTL. Who has a ticket,
    but is no longer in line, waits for its gateway or `reap` to give back its money. `place_us`: how long a
    wait took for each place."""

    lines: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    turns: Ranking = field(default_factory=Ranking)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    ends_ms: dict[str, int] = field(default_factory=dict)
    place_us: dict[int, int] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _number: int = 0
    _clock: Counter[int] = field(default_factory=Counter)
    _last: Counter[str] = field(default_factory=Counter)
    _weight: dict[str, int] = field(default_factory=dict)
    _class_weight: Counter[int] = field(default_factory=Counter)

    def predicted_wait_ms(
        self, level: int, tenant: str, weight: int, *, slots: int, service_us: int
    ) -> tuple[int, int]:
        """For who would be the last of its tenant: how many are served before it, and the wait that follows
        from the time that a place has taken of late, which knows of urgent work that comes later; without
        such, from the slots."""
        owner = owner_of(level, tenant)
        ahead = self._ahead(level, owner, weight, len(self.lines[owner]))
        if ahead > 0 and level in self.place_us:
            return ahead, -(-(ahead + 1) * self.place_us[level] // 1000)
        return ahead, -(-(ahead + 1) * service_us // (1000 * max(1, slots)))

    def position(self, request_id: str) -> int:
        """How many are served before it. Also of one whose wait is over, until it is ended."""
        ticket = self.tickets[request_id]
        number = self._numbers[request_id]
        own = sum(other < number for other in self.lines[ticket.owner].values())
        return self._ahead(ticket.level, ticket.owner, ticket.weight, own)

    def _ahead(self, level: int, owner: str, weight: int, own: int) -> int:
        """The more urgent ones, and of the other tenants of the class as many as their weights let pass
        meanwhile."""
        more_urgent = self.as_urgent(level - 1)
        others = self.waiting(level) - len(self.lines[owner])
        their_weight = self._class_weight[level] - self._weight.get(owner, 0)
        return more_urgent + own + min(others, -(-(own + 1) * their_weight // weight))

    def join(self, ticket: Ticket, now_ms: int) -> None:
        owner = ticket.owner
        self._number += 1
        self._numbers[ticket.request_id] = self.lines[owner][ticket.request_id] = self._number
        self.tickets[ticket.request_id] = ticket
        self.ends_ms[ticket.request_id] = min(ticket.deadline_ms, now_ms + ticket.ticket_ttl_ms)
        if owner not in self.turns:
            self._last[owner] = max(self._clock[ticket.level], self._last[owner])
            self._weight[owner] = ticket.weight
            self._class_weight[ticket.level] += ticket.weight
            self._take_turn(ticket.level, owner)

    def _take_turn(self, level: int, owner: str) -> None:
        """By its first waiter; without one it leaves the turns."""
        first = next(iter(self.lines[owner]), None)
        if first is not None:
            finish = self._last[owner] + self.tickets[first].virtual_cost
            self.turns.put(owner, level * CLASS_SPAN + finish)
        else:
            self.turns.drop(owner)
            self._class_weight[level] -= self._weight.pop(owner)

    def leave(self, request_id: str, now_ms: int) -> Ticket | None:
        """Unserved. None where it does not wait."""
        if request_id not in self.tickets:
            return None
        return self._leave(request_id, now_ms, served=False)

    def _leave(self, request_id: str, now_ms: int, *, served: bool) -> Ticket:
        self._leave_line(self.tickets[request_id], now_ms, served=served)
        del self.ends_ms[request_id], self._numbers[request_id]
        if not len(self.turns):
            # Nobody is backlogged: who was served before no longer counts.
            for times in (self._clock, self._last, self.place_us):
                times.clear()
            self._number = 0
        return self.tickets.pop(request_id)

    def _leave_line(self, ticket: Ticket, now_ms: int, *, served: bool) -> None:
        if self.lines[ticket.owner].pop(ticket.request_id, None) is not None:
            self._learn_place_time(ticket, now_ms, served=served)
            self._take_turn(ticket.level, ticket.owner)

    def _learn_place_time(self, ticket: Ticket, now_ms: int, *, served: bool) -> None:
        """A wait that was given up counts where it was longer than foretold."""
        took_us = (now_ms - ticket.since_ms) * 1000 // (ticket.ahead + 1)
        known_us = self.place_us.get(ticket.level, took_us)
        if served or took_us > known_us:
            self.place_us[ticket.level] = known_us + (took_us - known_us) // EWMA_SHARE

    def next(self, now_ms: int, passed: Counter[str] | None = None) -> Ticket | None:
        """Who is served next: among the next of each class the most urgent one, then the longest wait. One
        whose wait is over leaves its line: it never starts. `passed`: per tenant, how many to leave out."""
        best: Ticket | None = None
        for level in range(len(CLASSES)):
            ticket = self._next_of_class(level, now_ms, passed or Counter())
            if ticket is not None and (
                best is None
                or (ticket.level_at(now_ms), ticket.since_ms) < (best.level_at(now_ms), best.since_ms)
            ):
                best = ticket
        return best

    def _next_of_class(self, level: int, now_ms: int, passed: Counter[str]) -> Ticket | None:
        """The first of the tenant whose turn it is."""
        turn = 0
        while True:
            found = self.turns.at(self.turns.below(level * CLASS_SPAN) + turn)
            if found is None or found[0] >= (level + 1) * CLASS_SPAN:
                return None
            line = list(self.lines[found[1]])
            if passed[found[1]] >= len(line):
                turn += 1
                continue
            ticket = self.tickets[line[passed[found[1]]]]
            if self.ends_ms[ticket.request_id] > now_ms:
                return ticket
            self._leave_line(ticket, now_ms, served=False)
            turn = 0

    def granted(self, request_id: str, now_ms: int) -> None:
        """The virtual clock of a class is the latest finish time of who was served."""
        ticket = self.tickets[request_id]
        self._last[ticket.owner] += ticket.virtual_cost
        self._clock[ticket.level] = max(self._clock[ticket.level], self._last[ticket.owner])
        self._leave(request_id, now_ms, served=True)

    def renew(self, request_id: str, ticket_ttl_ms: int, now_ms: int) -> None:
        end_ms = min(self.tickets[request_id].deadline_ms, now_ms + ticket_ttl_ms)
        self.ends_ms[request_id] = max(self.ends_ms[request_id], end_ms)

    def is_in_line(self, request_id: str) -> bool:
        ticket = self.tickets.get(request_id)
        return ticket is not None and request_id in self.lines[ticket.owner]

    def as_urgent(self, level: int) -> int:
        """Who waits in this class and the more urgent ones."""
        return sum(self.waiting(each) for each in range(level + 1))

    def waiting(self, level: int) -> int:
        return sum(len(line) for owner, line in self.lines.items() if owner.startswith(f"{level}|"))
