"""Statements that SQLAlchemy spells differently for the two databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_rows(
    connection: Connection, table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> int:
    """How many were added: rows in conflict with others are left out. The driver's own form of the statement:
    SQLAlchemy's handling of each parameter costs ten times what the database does with it."""
    mark = "%s" if connection.dialect.name == "postgresql" else "?"
    names, marks = ", ".join(columns), ", ".join([mark] * len(columns))
    statement = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608
    return connection.exec_driver_sql(statement, list(rows)).rowcount


def in_code_points(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    """For ORDER BY: Python's order of strings, whatever the language of the database."""
    return column.collate("C" if connection.dialect.name == "postgresql" else "BINARY")
