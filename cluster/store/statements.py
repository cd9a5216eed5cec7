"""Statements that SQLAlchemy spells differently for the two databases."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that has `on_conflict_do_nothing` and `on_conflict_do_update`."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def in_code_points(connection: Connection, column: ColumnElement[str]) -> ColumnElement[str]:
    """For ORDER BY: Python's order of strings, whatever the language of the database."""
    return column.collate("C" if connection.dialect.name == "postgresql" else "BINARY")
