"""The SQL store: the durable truth. SQLite by default, any SQLAlchemy URL otherwise."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Column, DateTime, MetaData, String, Table, create_engine, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import StartError
from cluster.tenants import ApiKey, digest_of, new_key_text

metadata = MetaData()

api_keys = Table(
    "api_keys",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("revoked_at", DateTime(timezone=True)),
)


class KeyStore:
    """API keys in SQL. Calls block: the gateway makes them in a thread and caches the answers."""

    def __init__(self, engine: Engine, pepper: bytes) -> None:
        self._engine = engine
        self._pepper = pepper

    def create(self, tenant: str, name: str) -> str:
        """Returns the key's text; it cannot be had again."""
        text = new_key_text()
        with self._engine.begin() as connection:
            connection.execute(
                insert(api_keys).values(
                    digest=digest_of(text, self._pepper),
                    tenant=tenant,
                    name=name,
                    created_at=datetime.now(UTC),
                )
            )
        return text

    def find(self, digest: str) -> ApiKey | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.digest == digest)).first()
        if row is None:
            return None
        return ApiKey(row.digest, row.tenant, row.name, revoked=row.revoked_at is not None)


def open_store(url: str) -> Engine:
    """Connect and make the tables. Raises StartError with the reason."""
    try:
        engine = create_engine(url)
        metadata.create_all(engine)
    except SQLAlchemyError as error:
        raise StartError(
            f"the SQL store cannot be opened: {error}. Check that its folder can be written."
        ) from error
    return engine


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"
