"""The ledger: one row per call that cost something, and the sums by which budgets are checked.

Integer micro-USD. Rows and sums are written in the same transaction, so they agree at every moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal, TypeVar

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.engine import Connection, Engine

from cluster.clock import DAY_MS
from cluster.store.schema import ledger, ledger_sums
from cluster.store.statements import in_code_points, insert_into, insert_rows
from cluster.store.transactions import reading, writing
from cluster.tenants import MAX_MICRO_USD, BudgetWindow, key_owner, tenant_owner, window_name
from cluster.types import Spend

ASKED_AT_ONCE = 500
"""Values in one IN list: both databases bound them."""

SumName = tuple[str, str]
"""Owner (`tenant:NAME`, `key:ID`) and name of a window (`day:20261122`, `month:202611`, `total`)."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What one call was charged. `kind` is `settled` by its gateway, or `expired`: charged by the reaper,
    because the gateway died. `saved_micro_usd` may be negative. Times in ms since the Unix epoch; the
    time of admission decides which windows the call belongs to.

    ValueError for what a database would refuse: one such entry would hold up all that come after it.
    """

    request_id: str
    kind: Literal["settled", "expired"]
    tenant: str
    key_id: str
    tier: str
    pool: str
    model: str
    prompt_tokens: int
    output_tokens: int
    estimated: bool
    cost_micro_usd: int
    saved_micro_usd: int
    engine_ms: int
    admitted_at_ms: int
    settled_at_ms: int

    def __post_init__(self) -> None:
        if self.kind not in {"settled", "expired"}:
            raise ValueError(f"an entry is settled or expired, not {self.kind!r}")
        if type(self.estimated) is not bool:
            raise ValueError(f"estimated is {self.estimated!r}, not true or false")
        for name, text in zip(_TEXTS, _texts_of(self), strict=True):
            if type(text) is not str or "\0" in text:
                raise ValueError(f"{name} is {text!r}, which is no text that can be kept")
            if not text.isascii():
                text.encode()  # half a surrogate pair: UnicodeEncodeError, which is a ValueError
        for name, number in zip(_NUMBERS, _numbers_of(self), strict=True):
            least = -MAX_MICRO_USD if name == "saved_micro_usd" else 0
            if type(number) is not int or not least <= number <= MAX_MICRO_USD:
                raise ValueError(f"{name} is {number!r}, not a whole number from {least} to {MAX_MICRO_USD}")
        try:
            window_name(BudgetWindow.DAY, self.admitted_at_ms)
        except (OverflowError, ValueError, OSError):
            raise ValueError(f"admitted_at_ms is {self.admitted_at_ms}, after the last year") from None

    def sums(self) -> tuple[SumName, ...]:
        """The sums that this call is part of."""
        return _sums_of(self.tenant, self.key_id, self.admitted_at_ms // DAY_MS)


@lru_cache(maxsize=4096)
def _sums_of(tenant: str, key_id: str, day: int) -> tuple[SumName, ...]:
    names = [window_name(window, day * DAY_MS) for window in BudgetWindow]
    return tuple((owner, name) for owner in (tenant_owner(tenant), key_owner(key_id)) for name in names)


_COLUMNS = tuple(each.name for each in fields(LedgerEntry))
_TEXTS = tuple(each.name for each in fields(LedgerEntry) if each.type == "str")
_NUMBERS = tuple(each.name for each in fields(LedgerEntry) if each.type == "int")
_texts_of = attrgetter(*_TEXTS)
_numbers_of = attrgetter(*_NUMBERS)
_values_of = attrgetter(*_COLUMNS)


class Ledger:
    """Calls block; each may raise StoreUnavailable.

    Writers on PostgreSQL cannot deadlock: each takes its locks in three steps (rows it adds, expired rows it
    replaces, sums), and inside a step in one order that is the same for all.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def append(self, entries: Iterable[LedgerEntry]) -> int:
        """One transaction: all or nothing. Returns how many of them changed the ledger.

        The first entry of a request counts, whoever writes it again; but `settled` replaces `expired`: the
        gateway knows what the call used, the reaper assumed the worst."""
        batch = _one_per_request(entries)
        if not batch:
            return 0
        with writing(self._engine) as connection:
            added = _add(connection, batch)
            known = batch.keys() - added
            replaced = _replace_expired(
                connection, [each for each in batch.values() if each.request_id in known]
            )
            changed = [batch[request_id] for request_id in (*added, *replaced)]
            _add_to_sums(connection, plus=changed, minus=replaced.values())
        return len(changed)

    def spent(self, sums: Sequence[SumName]) -> dict[SumName, int]:
        """Micro-USD of each sum that is asked for; 0 where nothing was spent."""
        found = dict.fromkeys(sums, 0)
        columns = ledger_sums.c
        with reading(self._engine) as connection:
            for some in _portions(list(found)):
                # Every owner with every name, a few too many: SQLite has no index for pairs in a list.
                statement = select(columns.owner, columns.window_name, columns.spent_micro_usd).where(
                    columns.owner.in_({owner for owner, _ in some}),
                    columns.window_name.in_({name for _, name in some}),
                )
                for owner, name, spent_micro_usd in connection.execute(statement):
                    if (owner, name) in found:
                        found[owner, name] = spent_micro_usd
        return found

    def find(self, request_ids: Sequence[str]) -> dict[str, LedgerEntry]:
        """Those of them that are in the ledger."""
        found = {}
        with reading(self._engine) as connection:
            for some in _portions(request_ids):
                statement = select(ledger).where(ledger.c.request_id.in_(some))
                for row in connection.execute(statement).mappings():
                    found[row["request_id"]] = LedgerEntry(**row)
        return found

    def totals_of_day(self, day: date) -> Spend:
        """Of the calls that were admitted on a UTC day, over all tenants."""
        midnight = datetime.combine(day, time(), UTC)
        start_ms, end_ms = (int(each.timestamp() * 1000) for each in (midnight, midnight + timedelta(days=1)))
        columns = ledger.c
        statement = (
            select(
                columns.tier,
                func.sum(columns.cost_micro_usd),
                func.sum(columns.saved_micro_usd),
                func.count(),
            )
            .where(columns.admitted_at_ms >= start_ms, columns.admitted_at_ms < end_ms)
            .group_by(columns.tier)
            .order_by(columns.tier)
        )
        with reading(self._engine) as connection:
            rows = connection.execute(statement).all()
        return Spend(
            spent_micro_usd=sum(int(spent) for _, spent, _, _ in rows),
            saved_micro_usd=sum(int(saved) for _, _, saved, _ in rows),
            calls=sum(calls for *_, calls in rows),
            calls_by_tier=tuple((tier, calls) for tier, _, _, calls in rows),
        )


def _one_per_request(entries: Iterable[LedgerEntry]) -> dict[str, LedgerEntry]:
    """In the order of their ids, by the same rule as between batches."""
    kept: dict[str, LedgerEntry] = {}
    for entry in entries:
        before = kept.get(entry.request_id)
        if before is None or (before.kind, entry.kind) == ("expired", "settled"):
            kept[entry.request_id] = entry
    return dict(sorted(kept.items()))


def _add(connection: Connection, batch: dict[str, LedgerEntry]) -> set[str]:
    """The ids that were new. Waits for other writers of the same ids."""
    before = connection.begin_nested()
    added = insert_rows(connection, ledger, _COLUMNS, [_values_of(each) for each in batch.values()])
    if added == len(batch):  # nearly always
        before.commit()
        return set(batch)
    before.rollback()
    statement = insert_into(connection, ledger).on_conflict_do_nothing().returning(ledger.c.request_id)
    return set(connection.scalars(statement, [_row(each) for each in batch.values()]))


def _replace_expired(connection: Connection, entries: Sequence[LedgerEntry]) -> dict[str, LedgerEntry]:
    """By those of them that are settled. Returns request id → the entry that was there."""
    settled = {each.request_id: each for each in entries if each.kind == "settled"}
    replaced: dict[str, LedgerEntry] = {}
    for some in _portions(list(settled)):
        statement = (
            select(ledger)
            .where(ledger.c.request_id.in_(some), ledger.c.kind == "expired")
            .order_by(in_code_points(connection, ledger.c.request_id))
            .with_for_update()
        )
        for row in connection.execute(statement).mappings():
            replaced[row["request_id"]] = LedgerEntry(**row)
    if replaced:
        connection.execute(
            update(ledger).where(ledger.c.request_id == bindparam("id_of_row")),
            [_row(settled[request_id]) | {"id_of_row": request_id} for request_id in replaced],
        )
    return replaced


def _add_to_sums(
    connection: Connection, *, plus: Iterable[LedgerEntry], minus: Iterable[LedgerEntry]
) -> None:
    changes: defaultdict[SumName, list[int]] = defaultdict(lambda: [0, 0])
    for sign, entries in ((1, plus), (-1, minus)):
        for entry in entries:
            for name in entry.sums():
                changes[name][0] += sign * entry.cost_micro_usd
                changes[name][1] += sign
    rows = [
        {"owner": owner, "window_name": name, "spent_micro_usd": spent_micro_usd, "calls": calls}
        for (owner, name), (spent_micro_usd, calls) in sorted(changes.items())
        if spent_micro_usd or calls
    ]
    if not rows:
        return
    statement = insert_into(connection, ledger_sums)
    columns: Any = ledger_sums.c
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[columns.owner, columns.window_name],
            set_={
                "spent_micro_usd": columns.spent_micro_usd + statement.excluded.spent_micro_usd,
                "calls": columns.calls + statement.excluded.calls,
            },
        ),
        rows,
    )


def _row(entry: LedgerEntry) -> dict[str, Any]:
    """As dataclasses.asdict, ten times as fast."""
    return {name: getattr(entry, name) for name in _COLUMNS}


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), ASKED_AT_ONCE):
        yield values[start : start + ASKED_AT_ONCE]
