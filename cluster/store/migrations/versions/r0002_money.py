"""Key ids, limits, budgets and the ledger; times become milliseconds since the Unix epoch."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    old_keys = _take_old_keys()
    api_keys = op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
        *_limits(),
    )
    key_digests = op.create_table(
        "key_digests",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.key_id"), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger),
    )
    op.create_index("key_digests_by_key", "key_digests", ["key_id"])
    op.create_table("tenants", sa.Column("name", sa.String(64), primary_key=True), *_limits())
    op.create_table(
        "budgets",
        sa.Column("owner", sa.String(80), primary_key=True),
        sa.Column("window", sa.String(16), primary_key=True),
        sa.Column("limit_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("hard", sa.Boolean, nullable=False),
    )
    op.create_table(
        "ledger",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("saved_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("engine_ms", sa.BigInteger, nullable=False),
        sa.Column("admitted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ledger_by_admission", "ledger", ["admitted_at_ms"])
    op.create_table(
        "ledger_sums",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("window_name", sa.Text, primary_key=True),
        sa.Column("spent_micro_usd", sa.BigInteger, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(api_keys, [key for key, _ in old_keys])
    op.bulk_insert(key_digests, [digest for _, digest in old_keys])


def _limits() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("requests_burst", sa.Integer),
        sa.Column("tokens_per_minute", sa.Integer),
        sa.Column("tokens_burst", sa.Integer),
        sa.Column("highest_class", sa.String(16), nullable=False),
    )


def _take_old_keys() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of the new `api_keys` and `key_digests`; the old table goes. Old keys get an id and no limits."""
    old = sa.table(
        "api_keys",
        sa.column("digest", sa.String),
        sa.column("tenant", sa.String),
        sa.column("name", sa.String),
        sa.column("created_at", sa.DateTime(timezone=True)),
        sa.column("revoked_at", sa.DateTime(timezone=True)),
    )
    rows = op.get_bind().execute(sa.select(old)).all()
    op.drop_table("api_keys")
    taken = []
    for row in rows:
        key_id, created_at_ms = secrets.token_hex(6), _as_ms(row.created_at)
        key = {
            "key_id": key_id,
            "tenant": row.tenant,
            "name": row.name,
            "created_at_ms": created_at_ms,
            "revoked_at_ms": None if row.revoked_at is None else _as_ms(row.revoked_at),
            "highest_class": "interactive",
        }
        taken.append((key, {"digest": row.digest, "key_id": key_id, "created_at_ms": created_at_ms}))
    return taken


def _as_ms(moment: datetime) -> int:
    """SQLite gives UTC without saying so."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return int(aware.timestamp() * 1000)
