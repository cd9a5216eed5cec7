"""One pool's queue in memory: the twin of `lua/_queue.lua`."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from cluster.scheduler.memory_pool import Ranking, Terms
from cluster.scheduler.scheduler import CLASSES
from cluster.types import Candidate

CLASS_SPAN = 2**50
"""Between the classes in the order of a queue, as in lua/_queue.lua: three classes and their virtual times
stay exact in a double."""

VIRTUAL = 1000
"""Virtual time per token at weight 1."""

PACE_MS = 4_000
PACE_TURNS = 16
"""How long the window of a pace is: for so many turns of the slots, but not shorter."""


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
    weight: int
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


@dataclass(frozen=True, slots=True)
class Pace:
    """How many of a class are granted, in thousandths, in a window of time that slides: `current` since
    `start_ms`, `before` in the window before that."""

    start_ms: int
    length_ms: int
    current: int
    before: int

    @classmethod
    def of_slots(cls, turn_us: int, now_ms: int) -> Pace:
        """As if the class had had all slots so far, and each had come free after `turn_us`."""
        length_ms = max(PACE_MS, turn_us * PACE_TURNS // 1000)
        return cls(now_ms, length_ms, 0, length_ms * 1_000_000 // turn_us)

    def at(self, now_ms: int) -> Pace:
        windows = (now_ms - self.start_ms) // self.length_ms
        if windows == 0:
            return self
        start_ms = self.start_ms + windows * self.length_ms
        return Pace(start_ms, self.length_ms, 0, self.current if windows == 1 else 0)

    def gap_us(self, now_ms: int) -> int:
        """Between two grants. Two windows at most: what is not known is not for ever."""
        now = self.at(now_ms)
        left_ms = now.length_ms - (now_ms - now.start_ms)
        grants = now.current + now.before * left_ms // now.length_ms
        return self.length_ms * 1_000_000 // max(500, grants)


@dataclass(slots=True)
class Queue:
    """The tenants of a class take turns, each tenant's waiters stand in a line. Self-clocked fair queueing
    (Golestani 1994), charged when a slot is granted: a waiter that leaves unserved has cost its tenant
    nothing.

    `lines`: request ids and the number that each drew, in that order. `turns`: tenants with a waiter, by
    class and the virtual time at which their first one would end. `ends_ms`: when each wait is over, the
    earlier of its deadline and the last sign of life of its gateway plus the ticket TTL. Who has a ticket,
    but is no longer in line, waits for its gateway or `reap` to give back its money."""

    lines: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    turns: Ranking = field(default_factory=Ranking)
    tickets: dict[str, Ticket] = field(default_factory=dict)
    ends_ms: dict[str, int] = field(default_factory=dict)
    paces: dict[int, Pace] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _number: int = 0
    _clock: Counter[int] = field(default_factory=Counter)
    _last: Counter[str] = field(default_factory=Counter)
    _weight: dict[str, int] = field(default_factory=dict)
    _class_weight: Counter[int] = field(default_factory=Counter)

    def predicted_wait(
        self, level: int, tenant: str, weight: int, *, turn_us: int, now_ms: int, asleep: bool = False
    ) -> tuple[int, int]:
        """For who would be the last of its tenant: how many are served before it, and the wait in ms that
        follows: more urgent ones by the slots, of which one comes free every `turn_us`; the own class by its
        pace of late, which knows of urgent work that comes later. Nobody is kept out by that pace alone: the
        first of a class waits by the slots, and so do all of a pool that sleeps, whose pace is none."""
        owner = owner_of(level, tenant)
        more_urgent = self.as_urgent(level - 1)
        ahead = self._ahead(level, owner, weight, len(self.lines[owner]))
        gap_us = turn_us
        if not asleep and ahead > more_urgent and level in self.paces:
            gap_us = max(turn_us, self.paces[level].gap_us(now_ms))
        return ahead, -(-(more_urgent * turn_us + (ahead - more_urgent + 1) * gap_us) // 1000)

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

    def join(self, ticket: Ticket, turn_us: int, now_ms: int, *, asleep: bool = False) -> None:
        owner = ticket.owner
        self._number += 1
        self._numbers[ticket.request_id] = self.lines[owner][ticket.request_id] = self._number
        self.tickets[ticket.request_id] = ticket
        self.ends_ms[ticket.request_id] = min(ticket.deadline_ms, now_ms + ticket.ticket_ttl_ms)
        if owner not in self.turns:
            self._last[owner] = max(self._clock[ticket.level], self._last[owner])
            self._weight[owner] = ticket.weight
            if not self._class_weight[ticket.level]:
                self._begin_pace(ticket.level, turn_us, now_ms)
            self._class_weight[ticket.level] += ticket.weight
            self._take_turn(ticket.level, owner)
        if asleep:
            self.paces[ticket.level] = Pace.of_slots(turn_us, now_ms)

    def _begin_pace(self, level: int, turn_us: int, now_ms: int) -> None:
        """A class begins to wait. What its pace was more than two windows ago tells nothing; nor does a time
        in which the pool slept."""
        pace = self.paces.get(level)
        if pace is None or now_ms - pace.start_ms >= 2 * pace.length_ms:
            self.paces[level] = Pace.of_slots(turn_us, now_ms)

    def _take_turn(self, level: int, owner: str) -> None:
        """By its first waiter; without one it leaves the turns."""
        first = next(iter(self.lines[owner]), None)
        if first is not None:
            finish = self._last[owner] + self.tickets[first].virtual_cost
            self.turns.put(owner, level * CLASS_SPAN + finish)
        else:
            self.turns.drop(owner)
            self._class_weight[level] -= self._weight.pop(owner)

    def leave(self, request_id: str) -> Ticket | None:
        """None where it does not wait."""
        if request_id not in self.tickets:
            return None
        self._leave_line(self.tickets[request_id])
        del self.ends_ms[request_id], self._numbers[request_id]
        if not len(self.turns):
            # Nobody is backlogged: who was served before no longer counts.
            for times in (self._clock, self._last, self.paces):
                times.clear()
            self._number = 0
        return self.tickets.pop(request_id)

    def _leave_line(self, ticket: Ticket) -> None:
        if self.lines[ticket.owner].pop(ticket.request_id, None) is not None:
            self._take_turn(ticket.level, ticket.owner)

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
            self._leave_line(ticket)
            turn = 0

    def granted(self, request_id: str, now_ms: int) -> None:
        """The virtual clock of a class is the latest finish time of who was served."""
        ticket = self.tickets[request_id]
        self._last[ticket.owner] += ticket.virtual_cost
        self._clock[ticket.level] = max(self._clock[ticket.level], self._last[ticket.owner])
        pace = self.paces[ticket.level].at(now_ms)
        self.paces[ticket.level] = replace(pace, current=pace.current + 1000)
        self.leave(request_id)

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
