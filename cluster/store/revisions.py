"""Brings a database to the newest revision of `migrations/`, whoever else does so at the same moment."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection, Engine

from cluster.errors import StartError
from cluster.store.schema import metadata
from cluster.store.transactions import beginning_to_write

MIGRATIONS = Path(__file__).parent / "migrations"

FIRST_REVISION = "0001"
FIRST_COLUMNS = frozenset({"digest", "tenant", "name", "created_at", "revoked_at"})
"""Of `api_keys`, the only table of a store that was made before there were revisions."""

LOCK_ID = 0x7370726174
"""Any number that is the same for all of us: `sprat` in ASCII."""

LOCK_TIMEOUT_S = 60
RETRY_S = 0.05

_one_at_a_time = threading.Lock()
"""Alembic keeps the running migration in global variables."""


def bring_up_to_date(engine: Engine) -> None:
    """One transaction under a lock of the database, so that half a migration is never seen.

    Raises StartError where the database is newer than this code or another program's; SQLAlchemyError."""
    with _one_at_a_time:
        scripts = ScriptDirectory(str(MIGRATIONS))
        with engine.connect() as connection:
            if _revision(connection) == scripts.get_current_head():
                return
        if engine.dialect.name == "sqlite":
            _use_write_ahead_log(engine)
        with beginning_to_write(engine) as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL statement_timeout = {LOCK_TIMEOUT_S * 1000}")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_ID})")
            _upgrade(connection, scripts)


def _upgrade(connection: Connection, scripts: ScriptDirectory) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    found = _revision(connection)
    if found is None:
        if tables := set(inspect(connection).get_table_names()) & metadata.tables.keys():
            _check_it_is_our_first(connection, tables)
            command.stamp(config, FIRST_REVISION)
    elif found not in {each.revision for each in scripts.walk_revisions()}:
        raise StartError(
            f"the SQL store was made by a newer sprat, or by another program: its revision {found!r} is not "
            "known here. Install the newer sprat, or use another store."
        )
    command.upgrade(config, "head")


def _check_it_is_our_first(connection: Connection, tables: set[str]) -> None:
    columns: set[str] = set()
    if tables == {"api_keys"}:
        columns = {column["name"] for column in inspect(connection).get_columns("api_keys")}
    if columns != FIRST_COLUMNS:
        raise StartError(
            f"the SQL store has tables that are not sprat's: {', '.join(sorted(tables))}. "
            "Give sprat a database of its own."
        )


def _revision(connection: Connection) -> str | None:
    """None: an empty database, or one from before there were revisions."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def _use_write_ahead_log(engine: Engine) -> None:
    """Readers and the writer do not wait for each other. The file remembers it, so once is enough.

    While others use the file SQLite refuses at once instead of waiting. Any other reason is reported by the
    transaction that follows."""
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    busy = True
    while busy and time.monotonic() < deadline_s:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            busy = False
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            time.sleep(RETRY_S)
        finally:
            connection.close()
