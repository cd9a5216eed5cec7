"""The SQL store: the durable truth. SQLite by default, PostgreSQL by URL."""

from cluster.store.budgets import BudgetStore
from cluster.store.database import open_store, sqlite_url, url_problem
from cluster.store.keys import KeyRecord, KeyStore

__all__ = [
    "BudgetStore",
    "KeyRecord",
    "KeyStore",
    "open_store",
    "sqlite_url",
    "url_problem",
]
