"""The revisions, oldest first. They repeat the tables as they were then: `schema.py` moves on."""
