"""Where the SQL store of a cluster is. The answer may hold a password: kept with mode 600, never shown."""

from __future__ import annotations

import os

from cluster.store import sqlite_url
from deployments.state_folder import StateFolder

STORE_VARIABLE = "SPRAT_STORE_URL"


def store_url(state: StateFolder, configured: str = "") -> str:
    """`store.url` of the YAML, else SPRAT_STORE_URL, else a SQLite file in the state folder."""
    return configured or os.environ.get(STORE_VARIABLE) or sqlite_url(state.store_file)


def current_store_url(state: StateFolder) -> str:
    """That of the running cluster, for commands beside it. Where none runs its YAML is not known here, so a
    `store.url` in it has to be given as SPRAT_STORE_URL."""
    running = state.read_supervisor() or {}
    return str(running.get("store_url") or store_url(state))
