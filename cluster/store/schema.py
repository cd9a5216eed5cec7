"""The tables as they are now. `migrations/` brings a database here; a test compares the two.

Amounts are integer micro-USD, times are integer milliseconds since the Unix epoch: both databases keep them
exactly, and neither has a time zone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()


def _limits() -> tuple[Column[int], Column[int], Column[int], Column[int], Column[str]]:
    """Of a key or a tenant; NULL is no limit (`cluster.store.limits` reads and writes them)."""
    return (
        Column("requests_per_minute", Integer),
        Column("requests_burst", Integer),
        Column("tokens_per_minute", Integer),
        Column("tokens_burst", Integer),
        Column("highest_class", String(16), nullable=False),
    )


api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    *_limits(),
)

# Apart from api_keys, because a key that is being rotated has two texts.
key_digests = Table(
    "key_digests",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key_id", String(32), ForeignKey("api_keys.key_id"), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Index("key_digests_by_key", "key_id"),
)

# Only tenants with limits of their own have a row.
tenants = Table("tenants", metadata, Column("name", String(64), primary_key=True), *_limits())

# No foreign key: an owner may be a tenant, who needs no row anywhere.
budgets = Table(
    "budgets",
    metadata,
    Column("owner", String(80), primary_key=True),
    Column("window", String(16), primary_key=True),
    Column("limit_micro_usd", BigInteger, nullable=False),
    Column("hard", Boolean, nullable=False),
)

# Text without a length: one value too long would hold up the journal of a node for ever.
ledger = Table(
    "ledger",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_micro_usd", BigInteger, nullable=False),
    Column("saved_micro_usd", BigInteger, nullable=False),
    Column("engine_ms", BigInteger, nullable=False),
    Column("admitted_at_ms", BigInteger, nullable=False),
    Column("settled_at_ms", BigInteger, nullable=False),
    Index("ledger_by_admission", "admitted_at_ms"),
)

# Kept in the transactions that write the ledger, so that a budget is read without adding up its calls.
ledger_sums = Table(
    "ledger_sums",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("window_name", Text, primary_key=True),
    Column("spent_micro_usd", BigInteger, nullable=False),
    Column("calls", BigInteger, nullable=False),
)

# `details`: JSON, what is only read one call at a time. Old rows are deleted, so time has an index.
decisions = Table(
    "decisions",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("policy", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("probability", Double, nullable=False),
    Column("details", Text, nullable=False),
    Index("decisions_by_time", "at_ms"),
)

# No foreign key: a verdict may be there before the decision, which another transaction writes.
outcomes = Table(
    "outcomes",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("source", String(16), primary_key=True),
    Column("score", Double, nullable=False),
    Column("label", Text),
    Column("at_ms", BigInteger, nullable=False),
    Index("outcomes_by_time", "at_ms"),
)

# `target_modules` and `gate` are JSON: read with their row, never searched. `copies`: how many replicas shall
# hold it; NULL: as many as the demand asks for. `supersedes` is the version that a rollback goes back to.
adapter_versions = Table(
    "adapter_versions",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("base_model", String(64), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("target_modules", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("source", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("recipe", Text, nullable=False),
    Column("dataset_hash", Text, nullable=False),
    Column("gate", Text, nullable=False),
    Column("copies", Integer),
    Column("supersedes", Integer),
)

# Who changed what, and when. No foreign key: what happened stays written.
adapter_history = Table(
    "adapter_history",
    metadata,
    Column("revision", BigInteger, primary_key=True),
    Column("adapter_id", String(80), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("state_before", String(16)),
    Column("state_after", String(16), nullable=False),
    Column("note", Text, nullable=False),
)

# One row at most: counts the changes of the registry, and is what its writers lock.
adapter_revision = Table(
    "adapter_revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
