"""The seam to SQLAlchemy: what it raises leaves as StoreUnavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import StoreUnavailable

WRITES = "sprat_writes"
"""Execution option of a connection whose transaction writes (`database.py` acts on it)."""


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads. Raises StoreUnavailable."""
    with _translated(), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction: committed at the end of the block, rolled back by an exception.

    Raises StoreUnavailable; then nothing was written, or, if the connection broke in the very commit,
    it is not known whether it was."""
    with _translated(), beginning_to_write(engine) as connection:
        yield connection


@contextmanager
def beginning_to_write(engine: Engine) -> Iterator[Connection]:
    """`writing` with SQLAlchemy's own errors, for those who know what they mean."""
    with engine.connect() as connection, connection.execution_options(**{WRITES: True}).begin():
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreUnavailable(
            "The SQL store does not answer. Try again in a moment.", retry_after_s=1.0
        ) from error
