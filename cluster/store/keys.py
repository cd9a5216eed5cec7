"""API keys in SQL: their digests, limits, rotation and end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import and_, func, insert, literal, or_, select, update
from sqlalchemy.engine import Connection, Engine

from cluster.clock import Clock, SystemClock
from cluster.errors import InvalidRequest
from cluster.store.budgets import put_budgets, read_budgets
from cluster.store.checks import check_budget, check_key_name, check_limits, check_tenant
from cluster.store.limits import LIMIT_COLUMNS, columns_of, limits_of
from cluster.store.schema import api_keys, budgets, key_digests, tenants
from cluster.store.statements import insert_into
from cluster.store.transactions import reading, writing
from cluster.tenants import (
    ApiKey,
    Budget,
    KeyLimits,
    digest_of,
    key_owner,
    new_key_id,
    new_key_text,
    tenant_owner,
)

MS_PER_S = 1000


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as its operator sees it. Times in ms since the Unix epoch; `old_text_until_ms` is set while the
    text from before a rotation still works. `budgets` are the key's own."""

    key_id: str
    tenant: str
    name: str
    created_at_ms: int
    revoked_at_ms: int | None
    old_text_until_ms: int | None
    limits: KeyLimits
    budgets: tuple[Budget, ...]


class KeyStore:
    """Calls block: the gateway makes them in a thread and caches the answers. Each may raise
    StoreUnavailable; where a key is named that does not exist, InvalidRequest."""

    def __init__(self, engine: Engine, pepper: bytes, clock: Clock | None = None) -> None:
        self._engine = engine
        self._pepper = pepper
        self._clock = clock or SystemClock()

    def create(
        self, tenant: str, name: str, *, limits: KeyLimits | None = None, budgets: Sequence[Budget] = ()
    ) -> str:
        """Returns the key's text; it cannot be had again. `budgets` become the new key's, whoever owns them.

        Raises InvalidRequest for a name, limit or amount that cannot be kept."""
        limits = limits or KeyLimits()
        key_id = new_key_id()
        own_budgets = [replace(each, owner=key_owner(key_id)) for each in budgets]
        check_tenant(tenant)
        check_key_name(name)
        check_limits(limits)
        for each in own_budgets:
            check_budget(each)
        now_ms = self._clock.now_ms()
        with writing(self._engine) as connection:
            connection.execute(
                insert(api_keys).values(
                    key_id=key_id, tenant=tenant, name=name, created_at_ms=now_ms, **columns_of(limits)
                )
            )
            put_budgets(connection, own_budgets)
            return self._add_text(connection, key_id, now_ms)

    def find(self, digest: str) -> ApiKey | None:
        """With the tenant's limits and the budgets of both. A text that was rotated away is `revoked`."""
        tenant_limits = [tenants.c[name].label(f"tenant_{name}") for name in LIMIT_COLUMNS]
        statement = (
            select(key_digests.c.expires_at_ms, api_keys, *tenant_limits)
            .select_from(key_digests.join(api_keys).outerjoin(tenants, tenants.c.name == api_keys.c.tenant))
            .where(key_digests.c.digest == digest)
        )
        with reading(self._engine) as connection:
            row = connection.execute(statement).mappings().first()
            if row is None:
                return None
            owners = [key_owner(row["key_id"]), tenant_owner(row["tenant"])]
            drawn_on = read_budgets(connection, owners)
        expires_at_ms = row["expires_at_ms"]
        return ApiKey(
            digest=digest,
            key_id=row["key_id"],
            tenant=row["tenant"],
            name=row["name"],
            revoked=row["revoked_at_ms"] is not None
            or (expires_at_ms is not None and expires_at_ms <= self._clock.now_ms()),
            limits=limits_of(row),
            tenant_limits=limits_of(row, "tenant_"),
            budgets=drawn_on,
        )

    def any_unbudgeted(self, *, but_for_soft: bool) -> bool:
        """Whether a valid key draws on no budget at all, or (`but_for_soft`) on no hard one."""
        counts = (
            budgets.c.owner == literal("key:") + api_keys.c.key_id,
            budgets.c.owner == literal("tenant:") + api_keys.c.tenant,
        )
        drawn_on = select(budgets.c.owner).where(or_(*counts), budgets.c.hard | literal(not but_for_soft))
        statement = select(api_keys.c.key_id).where(api_keys.c.revoked_at_ms.is_(None), ~drawn_on.exists())
        with reading(self._engine) as connection:
            return connection.execute(statement.limit(1)).first() is not None

    def list_keys(self) -> tuple[KeyRecord, ...]:
        """All, revoked ones too, by tenant and age."""
        with reading(self._engine) as connection:
            return self._records(connection)

    def record(self, key_id: str) -> KeyRecord:
        with reading(self._engine) as connection:
            return self._record(connection, key_id)

    def record_of(self, key_text: str) -> KeyRecord:
        """Of a key whose text is at hand."""
        found = self.find(digest_of(key_text, self._pepper))
        if found is None:
            raise InvalidRequest("This text belongs to no key.")
        return self.record(found.key_id)

    def rotate(self, key_id: str, overlap_s: float = 0.0) -> str:
        """A new text for the same key: same id, limits, budgets and spend. Older texts stop working after
        `overlap_s`, never later than an earlier rotation said. Raises InvalidRequest for a revoked key."""
        now_ms = self._clock.now_ms()
        end_ms = now_ms + round(overlap_s * MS_PER_S)
        ends_later = or_(key_digests.c.expires_at_ms.is_(None), key_digests.c.expires_at_ms > end_ms)
        with writing(self._engine) as connection:
            if self._locked(connection, key_id).revoked_at_ms is not None:
                raise InvalidRequest(f"Key {key_id!r} is revoked. Make another with `sprat keys create`.")
            connection.execute(
                update(key_digests)
                .where(and_(key_digests.c.key_id == key_id, ends_later))
                .values(expires_at_ms=end_ms)
            )
            return self._add_text(connection, key_id, now_ms)

    def revoke(self, key_id: str) -> None:
        """For good, all its texts. Fine if it is revoked already."""
        with writing(self._engine) as connection:
            if self._locked(connection, key_id).revoked_at_ms is None:
                connection.execute(
                    update(api_keys)
                    .where(api_keys.c.key_id == key_id)
                    .values(revoked_at_ms=self._clock.now_ms())
                )

    def set_limits(self, key_id: str, limits: KeyLimits) -> None:
        """All of them at once. Raises InvalidRequest for a limit that cannot be kept."""
        check_limits(limits)
        with writing(self._engine) as connection:
            self._locked(connection, key_id)
            connection.execute(
                update(api_keys).where(api_keys.c.key_id == key_id).values(**columns_of(limits))
            )

    # Tenants: they exist by their keys, and have a row only for limits of their own.

    def tenant_limits(self) -> dict[str, KeyLimits]:
        """Of the tenants that have any."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(tenants).order_by(tenants.c.name)).mappings()
            return {row["name"]: limits_of(row) for row in rows}

    def set_tenant_limits(self, tenant: str, limits: KeyLimits) -> None:
        """Counted over all keys of the tenant, in addition to each key's own. Raises InvalidRequest."""
        check_tenant(tenant)
        check_limits(limits)
        columns = columns_of(limits)
        with writing(self._engine) as connection:
            statement = insert_into(connection, tenants).values(name=tenant, **columns)
            connection.execute(statement.on_conflict_do_update(index_elements=[tenants.c.name], set_=columns))

    def _add_text(self, connection: Connection, key_id: str, now_ms: int) -> str:
        text = new_key_text()
        digest = digest_of(text, self._pepper)
        connection.execute(insert(key_digests).values(digest=digest, key_id=key_id, created_at_ms=now_ms))
        return text

    def _locked(self, connection: Connection, key_id: str) -> KeyRecord:
        """Two rotations at once come one after the other; else both their texts would stay valid."""
        connection.execute(select(api_keys.c.key_id).filter_by(key_id=key_id).with_for_update())
        return self._record(connection, key_id)

    def _record(self, connection: Connection, key_id: str) -> KeyRecord:
        found = self._records(connection, key_id)
        if not found:
            raise InvalidRequest(f"There is no key {key_id!r}. `sprat keys list` shows all.")
        return found[0]

    def _records(self, connection: Connection, key_id: str | None = None) -> tuple[KeyRecord, ...]:
        old_text_until_ms = (
            select(func.max(key_digests.c.expires_at_ms))
            .where(
                key_digests.c.key_id == api_keys.c.key_id,
                key_digests.c.expires_at_ms > self._clock.now_ms(),
            )
            .scalar_subquery()
        )
        statement = select(api_keys, old_text_until_ms.label("old_text_until_ms")).order_by(
            api_keys.c.tenant, api_keys.c.created_at_ms, api_keys.c.key_id
        )
        if key_id is not None:
            statement = statement.where(api_keys.c.key_id == key_id)
        budgets_of = defaultdict(list)
        for budget in read_budgets(connection, None if key_id is None else [key_owner(key_id)]):
            budgets_of[budget.owner].append(budget)
        return tuple(
            KeyRecord(
                key_id=row["key_id"],
                tenant=row["tenant"],
                name=row["name"],
                created_at_ms=row["created_at_ms"],
                revoked_at_ms=row["revoked_at_ms"],
                old_text_until_ms=row["old_text_until_ms"],
                limits=limits_of(row),
                budgets=tuple(budgets_of[key_owner(row["key_id"])]),
            )
            for row in connection.execute(statement).mappings()
        )
