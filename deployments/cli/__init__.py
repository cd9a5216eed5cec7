"""The `sprat` command: one file per verb."""
