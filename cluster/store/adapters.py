"""The adapter registry in SQL: immutable versions, which one is live, what shall be where, who changed it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.engine import Connection, Engine, RowMapping

from cluster.adapters.errors import AdapterRefused, ForbiddenMove, UnknownAdapter
from cluster.adapters.life import AdapterLife, check_move
from cluster.adapters.version import (
    MAX_NUMBER,
    AdapterContent,
    AdapterVersion,
    Lineage,
    check_base_model,
    check_name,
    shown,
    split_id,
)
from cluster.clock import Clock, SystemClock
from cluster.store.schema import adapter_history, adapter_revision, adapter_versions
from cluster.store.statements import insert_into
from cluster.store.transactions import reading, writing

MAX_COPIES = 1_000

_ONLY_ROW = 1


@dataclass(frozen=True, slots=True)
class Added:
    """`is_new` False: these files were registered before, under this very version."""

    version: AdapterVersion
    is_new: bool


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """One row of the history. `state_before` None: it was registered; equal states: see `note`."""

    revision: int
    adapter_id: str
    at_ms: int
    who: str
    state_before: AdapterLife | None
    state_after: AdapterLife
    note: str


class Adapters:
    """Calls block; each may raise StoreUnavailable, and UnknownAdapter where a version is named.

    Writers come one after the other, by a lock on one row: the second sees what the first has done."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self._engine = engine
        self._clock = clock or SystemClock()

    # What gateways and controllers poll.

    def revision(self) -> int:
        """Grows with every change, and with nothing else."""
        with reading(self._engine) as connection:
            return _revision(connection)

    def usable(self) -> list[AdapterVersion]:
        """All that are not retired, by name and number."""
        return self._read(_in_order().where(adapter_versions.c.state != AdapterLife.RETIRED))

    def copies(self) -> dict[str, int]:
        """Version → how many replicas an operator wants to hold it. Without a wish demand decides."""
        statement = select(
            adapter_versions.c.name, adapter_versions.c.number, adapter_versions.c.copies
        ).where(adapter_versions.c.copies.is_not(None), adapter_versions.c.state != AdapterLife.RETIRED)
        with reading(self._engine) as connection:
            return {f"{row.name}@{row.number}": row.copies for row in connection.execute(statement)}

    # For operators.

    def versions(self, name: str | None = None) -> list[AdapterVersion]:
        """Retired ones too. None: of all names."""
        statement = _in_order()
        return self._read(statement if name is None else statement.where(adapter_versions.c.name == name))

    def find(self, adapter: str) -> AdapterVersion:
        """`name@n`, or the live version of `name`."""
        with reading(self._engine) as connection:
            return _version(_found(connection, adapter))

    def history(self, name: str) -> list[AdapterChange]:
        """Of all versions of a name, the oldest change first."""
        statement = (
            select(adapter_history)
            .where(adapter_history.c.adapter_id.startswith(f"{name}@", autoescape=True))
            .order_by(adapter_history.c.revision, adapter_history.c.adapter_id)
        )
        with reading(self._engine) as connection:
            return [_change(row) for row in connection.execute(statement).mappings()]

    # Changes. `who` is written into the history.

    def add(
        self,
        name: str,
        *,
        base_model: str,
        content: AdapterContent,
        source: str,
        who: str,
        lineage: Lineage | None = None,
    ) -> Added:
        """The next version of `name`, as `built`. The same files for the same base again are the version that
        they were, unless it is retired. Raises AdapterRefused: no name, another base than the versions before
        (what a name can answer must not depend on which version is live)."""
        check_name(name)
        check_base_model(base_model)
        with self._changing() as change:
            rows = _rows_of(change.connection, name)
            for row in rows:
                if row["base_model"] != base_model:
                    raise AdapterRefused(
                        f"{name} has versions for base model {row['base_model']!r}; one for {base_model!r} "
                        "needs another name."
                    )
                if row["content_hash"] == content.content_hash and row["state"] != AdapterLife.RETIRED:
                    return Added(_version(row), is_new=False)
            number = rows[-1]["number"] + 1 if rows else 1
            if number > MAX_NUMBER:
                raise AdapterRefused(f"{name} has {MAX_NUMBER} versions, which is all. Use another name.")
            version = AdapterVersion(
                adapter_id=f"{name}@{number}",
                base_model=base_model,
                **asdict(content),
                source=source,
                state=AdapterLife.BUILT,
                created_at_ms=self._clock.now_ms(),
                lineage=lineage or Lineage(),
            )
            change.connection.execute(insert(adapter_versions).values(_columns(version)))
            change.note(version.adapter_id, who, None, AdapterLife.BUILT, f"from {source}")
            return Added(version, is_new=True)

    def move(self, adapter_id: str, state: AdapterLife, *, who: str, note: str = "") -> AdapterVersion:
        """One step of its life. To `live`: the version that was live goes back to `built` in the same
        transaction. Fine if it is there already. Raises ForbiddenMove."""
        with self._changing() as change:
            row = _locked(change.connection, adapter_id)
            before = AdapterLife(row["state"])
            if before is state:
                return _version(row)
            check_move(adapter_id, before, state)
            if state is AdapterLife.LIVE:
                self._supersede(change, row, who)
            elif state is AdapterLife.RETIRED:
                _unlink(change.connection, row)
            change.move(row, state, who, note)
            return replace(_version(row), state=state)

    def rollback(self, name: str, *, who: str, note: str = "") -> AdapterVersion:
        """The version that was live before is live again; the one that is goes back to `built`. Raises
        ForbiddenMove where there is none to go back to."""
        with self._changing() as change:
            live = _found(change.connection, name)
            if live["supersedes"] is None:
                raise ForbiddenMove(
                    f"{_id(live)} is the first live version of {name}: there is none to go back to. Promote "
                    "another with `sprat adapters promote`, or end this one with `sprat adapters retire`."
                )
            earlier = _locked(change.connection, f"{name}@{live['supersedes']}")
            change.move(live, AdapterLife.BUILT, who, note or f"rolled back to {_id(earlier)}")
            change.move(earlier, AdapterLife.LIVE, who, note or f"rolled back from {_id(live)}")
            return replace(_version(earlier), state=AdapterLife.LIVE)

    def set_copies(self, adapter_id: str, copies: int | None, *, who: str) -> None:
        """A wish that controllers obey as far as slots allow. 0: nowhere unless asked for; None: no wish.
        Raises AdapterRefused for a number that is none, ForbiddenMove for a retired version."""
        if copies is not None and not 0 <= copies <= MAX_COPIES:
            raise AdapterRefused(f"An adapter can have 0 to {MAX_COPIES} copies, not {copies}.")
        with self._changing() as change:
            row = _locked(change.connection, adapter_id)
            if row["state"] == AdapterLife.RETIRED:
                raise ForbiddenMove(f"{adapter_id} is retired and is held nowhere.")
            if row["copies"] == copies:
                return
            _set(change.connection, row, copies=copies)
            state = AdapterLife(row["state"])
            wish = "as demanded" if copies is None else copies
            change.note(adapter_id, who, state, state, f"copies: {wish}")

    def _supersede(self, change: _Change, row: RowMapping, who: str) -> None:
        """Whoever is live makes room for `row` and becomes what a rollback goes back to."""
        live = _live(change.connection, row["name"])
        if live is None:
            return
        change.move(live, AdapterLife.BUILT, who, f"superseded by {_id(row)}")
        # Whoever would go back to `row` now goes back past it: a rollback never comes to a version twice.
        _unlink(change.connection, row)
        _set(change.connection, row, supersedes=live["number"])

    @contextmanager
    def _changing(self) -> Iterator[_Change]:
        with writing(self._engine) as connection:
            statement = insert_into(connection, adapter_revision).values(id=_ONLY_ROW, revision=0)
            connection.execute(statement.on_conflict_do_nothing())
            connection.execute(select(adapter_revision.c.revision).with_for_update())
            yield _Change(connection, _revision(connection) + 1, self._clock.now_ms())

    def _read(self, statement: Select[Any]) -> list[AdapterVersion]:
        with reading(self._engine) as connection:
            return [_version(row) for row in connection.execute(statement).mappings()]


@dataclass(frozen=True, slots=True)
class _Change:
    """A transaction that holds the lock; what it notes belongs to one revision."""

    connection: Connection
    revision: int
    at_ms: int

    def move(self, row: RowMapping, state: AdapterLife, who: str, note: str) -> None:
        _set(self.connection, row, state=state)
        self.note(_id(row), who, AdapterLife(row["state"]), state, note)

    def note(
        self, adapter_id: str, who: str, before: AdapterLife | None, after: AdapterLife, note: str
    ) -> None:
        self.connection.execute(
            insert(adapter_history).values(
                revision=self.revision,
                adapter_id=adapter_id,
                at_ms=self.at_ms,
                who=who,
                state_before=before,
                state_after=after,
                note=note,
            )
        )
        self.connection.execute(update(adapter_revision).values(revision=self.revision))


def _revision(connection: Connection) -> int:
    found: int | None = connection.scalar(select(func.max(adapter_revision.c.revision)))
    return found or 0


def _in_order() -> Select[Any]:
    return select(adapter_versions).order_by(adapter_versions.c.name, adapter_versions.c.number)


def _rows_of(connection: Connection, name: str) -> Sequence[RowMapping]:
    return connection.execute(_in_order().where(adapter_versions.c.name == name)).mappings().all()


def _live(connection: Connection, name: str) -> RowMapping | None:
    statement = _in_order().where(
        adapter_versions.c.name == name, adapter_versions.c.state == AdapterLife.LIVE
    )
    return connection.execute(statement).mappings().first()


def _locked(connection: Connection, adapter_id: str) -> RowMapping:
    """One version by its full id, in a transaction that holds the registry's lock."""
    name, number = split_id(adapter_id)
    statement = _in_order().where(adapter_versions.c.name == name, adapter_versions.c.number == number)
    row = connection.execute(statement).mappings().first()
    if row is None:
        raise UnknownAdapter(f"There is no adapter {adapter_id}. `sprat adapters list` shows all.")
    return row


def _found(connection: Connection, adapter: str) -> RowMapping:
    if "@" in adapter:
        return _locked(connection, adapter)
    check_name(adapter)
    row = _live(connection, adapter)
    if row is None:
        raise UnknownAdapter(
            f"No version of adapter {shown(adapter)} is live. `sprat adapters list` shows all, "
            "`sprat adapters promote NAME@N` makes one live."
        )
    return row


def _unlink(connection: Connection, row: RowMapping) -> None:
    """A rollback that would come to `row` goes one further."""
    connection.execute(
        update(adapter_versions)
        .where(adapter_versions.c.name == row["name"], adapter_versions.c.supersedes == row["number"])
        .values(supersedes=row["supersedes"])
    )


def _set(connection: Connection, row: RowMapping, **columns: Any) -> None:
    connection.execute(
        update(adapter_versions)
        .where(adapter_versions.c.name == row["name"], adapter_versions.c.number == row["number"])
        .values(**columns)
    )


def _id(row: RowMapping) -> str:
    return f"{row['name']}@{row['number']}"


def _columns(version: AdapterVersion) -> dict[str, Any]:
    return {
        "name": version.name,
        "number": version.number,
        "base_model": version.base_model,
        "rank": version.rank,
        "target_modules": json.dumps(version.target_modules),
        "size_bytes": version.size_bytes,
        "content_hash": version.content_hash,
        "source": version.source,
        "state": version.state,
        "created_at_ms": version.created_at_ms,
        "recipe": version.lineage.recipe,
        "dataset_hash": version.lineage.dataset_hash,
        "gate": json.dumps(dict(version.lineage.gate)),
    }


def _version(row: RowMapping) -> AdapterVersion:
    return AdapterVersion(
        adapter_id=_id(row),
        base_model=row["base_model"],
        rank=row["rank"],
        target_modules=tuple(json.loads(row["target_modules"])),
        size_bytes=row["size_bytes"],
        content_hash=row["content_hash"],
        source=row["source"],
        state=AdapterLife(row["state"]),
        created_at_ms=row["created_at_ms"],
        lineage=Lineage(row["recipe"], row["dataset_hash"], json.loads(row["gate"])),
    )


def _change(row: RowMapping) -> AdapterChange:
    before = row["state_before"]
    return AdapterChange(
        revision=row["revision"],
        adapter_id=row["adapter_id"],
        at_ms=row["at_ms"],
        who=row["who"],
        state_before=None if before is None else AdapterLife(before),
        state_after=AdapterLife(row["state_after"]),
        note=row["note"],
    )
