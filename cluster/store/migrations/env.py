"""Run by Alembic on the connection that `cluster.store.revisions` gives it, inside its transaction."""

from __future__ import annotations

from alembic import context

from cluster.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
