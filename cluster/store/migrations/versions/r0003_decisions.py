"""The log of routing decisions, and what came of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("probability", sa.Double, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
    )
    op.create_index("decisions_by_time", "decisions", ["at_ms"])
    op.create_table(
        "outcomes",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("source", sa.String(16), primary_key=True),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("outcomes_by_time", "outcomes", ["at_ms"])
