"""Statements that SQLAlchemy spells differently for the two databases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

ROWS_PER_INSERT = 500
"""With the 15 columns of the ledger far below the parameters that either database takes at once."""


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_rows(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> int:
    """How many were added: rows in conflict with others are left out.

    The driver's own form of the statement, as SQLAlchemy's handling of each parameter costs ten times what
    the database does with it; and many rows in one, as SQLite gives the interpreter away for each statement,
    which makes every other thread pay for it."""
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    names, marks = ", ".join(columns), ", ".join([mark] * len(columns))
    added = 0
    for start in range(0, len(rows), ROWS_PER_INSERT):
        some = rows[start : start + ROWS_PER_INSERT]
        values = ", ".join([f"({marks})"] * len(some))
        statement = f"INSERT INTO {table.name} ({names}) VALUES {values} ON CONFLICT DO NOTHING"  # noqa: S608
        added += connection.exec_driver_sql(statement, tuple(chain.from_iterable(some))).rowcount
    return added


def in_code_points(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    """For ORDER BY: Python's order of strings, whatever the language of the database."""
    return column.collate("C" if connection.dialect.name == "postgresql" else "BINARY")
