"""Budgets in SQL: what a tenant or a key may spend in a window. What was spent is the ledger's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.engine import Connection, Engine

from cluster.errors import InvalidRequest
from cluster.store.checks import check_budget
from cluster.store.schema import api_keys, budgets
from cluster.store.statements import insert_into
from cluster.store.transactions import reading, writing
from cluster.tenants import Budget, BudgetWindow


class BudgetStore:
    """Calls block; each may raise StoreUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, budget: Budget) -> None:
        """Makes or replaces the owner's budget of that window. Raises InvalidRequest: an amount that is not
        positive or too large, an owner of another form, a key that does not exist (a tenant need not)."""
        check_budget(budget)
        kind, _, name = budget.owner.partition(":")
        with writing(self._engine) as connection:
            if kind == "key" and connection.scalar(select(api_keys.c.key_id).filter_by(key_id=name)) is None:
                raise InvalidRequest(f"There is no key {name!r}. `sprat keys list` shows all.")
            put_budgets(connection, [budget])

    def list_budgets(self) -> tuple[Budget, ...]:
        with reading(self._engine) as connection:
            return read_budgets(connection)

    def remove(self, owner: str, window: BudgetWindow) -> None:
        """Raises InvalidRequest where there is none."""
        statement = delete(budgets).where(budgets.c.owner == owner, budgets.c.window == window.value)
        with writing(self._engine) as connection:
            if connection.execute(statement).rowcount == 0:
                raise InvalidRequest(f"{owner} has no {window} budget. `sprat budget list` shows all.")


def put_budgets(connection: Connection, wanted: Sequence[Budget]) -> None:
    """Checked ones, in the caller's transaction."""
    if not wanted:
        return
    statement = insert_into(connection, budgets)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[budgets.c.owner, budgets.c.window],
            set_={"limit_micro_usd": statement.excluded.limit_micro_usd, "hard": statement.excluded.hard},
        ),
        [
            {
                "owner": each.owner,
                "window": each.window.value,
                "limit_micro_usd": each.limit_micro_usd,
                "hard": each.hard,
            }
            for each in wanted
        ],
    )


def read_budgets(connection: Connection, owners: Sequence[str] | None = None) -> tuple[Budget, ...]:
    """Ordered by owner and window. None: of all owners."""
    statement = select(budgets).order_by(budgets.c.owner, budgets.c.window)
    if owners is not None:
        statement = statement.where(budgets.c.owner.in_(owners))
    return tuple(
        Budget(row.owner, BudgetWindow(row.window), row.limit_micro_usd, row.hard)
        for row in connection.execute(statement)
    )
