"""From a URL to an engine on a database at the newest revision.

A URL may hold a password: no message of this module repeats one.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from cluster.errors import StartError
from cluster.store.revisions import bring_up_to_date
from cluster.store.transactions import WRITES

FORMS = "sqlite:////ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/DATABASE"

OLDEST_SQLITE = (3, 35)
"""The first with RETURNING."""

BUSY_TIMEOUT_S = 10.0
"""How long one writer of SQLite waits for the others."""

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 15_000
IDLE_TRANSACTION_TIMEOUT_MS = 30_000
"""A writer that stopped in the middle of a transaction holds its rows for this long at most."""

POOL_TIMEOUT_S = 10.0


def sqlite_url(path: Path) -> str:
    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def url_problem(url: str) -> str | None:
    """What is wrong with a store's URL, without repeating it; None: nothing."""
    try:
        _parse(url)
    except StartError as error:
        return error.message
    return None


def open_store(url: str) -> Engine:
    """Connects, and brings the database to the newest revision (an empty one gets all tables).

    Raises StartError with the reason: a URL of another form, no connection, a database that a newer sprat or
    another program made."""
    parsed = _parse(url)
    engine = _sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _postgresql(parsed)
    try:
        bring_up_to_date(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        look_at = "that its folder exists and can be written" if _is_sqlite(engine) else "its server and URL"
        raise StartError(
            f"the SQL store cannot be opened: {_reason(error, parsed)}. Check {look_at}."
        ) from error
    except StartError:
        engine.dispose()
        raise
    return engine


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StartError(f"the URL of the SQL store cannot be read. Its form is {FORMS}.") from None
    if parsed.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise StartError(f"the SQL store cannot be {parsed.drivername!r}. Use {FORMS}.")
    # Gateways run in folders of their own and in processes of their own.
    if not Path(parsed.database or "").is_absolute():
        raise StartError("the SQL store needs the absolute path of its SQLite file: sqlite:////folder/file.")
    return parsed


def _reason(error: SQLAlchemyError, url: URL) -> str:
    """The driver's own words: SQLAlchemy would add the statement."""
    text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split()).rstrip(".")
    return text.replace(url.password, "***") if url.password else text


def _sqlite(url: URL) -> Engine:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        raise StartError(
            f"this Python has SQLite {sqlite3.sqlite_version}, the store needs {wanted}. "
            "Use a newer Python or a PostgreSQL."
        )
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S}, pool_timeout=POOL_TIMEOUT_S, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver's guess
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")  # what is committed survives a power cut

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails at once where another has written between.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    bounds = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        # A server that vanished is noticed within 30 s.
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    engine = create_engine(
        url,
        connect_args={name: value for name, value in bounds.items() if name not in url.query},
        # The ledger looks at what others committed while it waited for them.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TRANSACTION_TIMEOUT_MS}")
        connection.commit()

    return engine


def _is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"
