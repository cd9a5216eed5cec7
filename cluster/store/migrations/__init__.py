"""Alembic's folder: one file per revision of the schema. A revision that was released is never changed."""
