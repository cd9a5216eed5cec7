"""The SQL store as a verb sees it: with the cluster up or down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click

from cluster.errors import InvalidRequest
from cluster.ledger import Ledger
from cluster.store import BudgetStore, KeyStore, open_store
from cluster.store.adapters import Adapters
from cluster.store.decisions import DecisionLog
from deployments.state_folder import StateFolder
from deployments.store_location import current_store_url


@dataclass(frozen=True, slots=True)
class OpenedStore:
    keys: KeyStore
    budgets: BudgetStore
    ledger: Ledger
    decisions: DecisionLog
    adapters: Adapters


@contextmanager
def opened_store(state: StateFolder) -> Iterator[OpenedStore]:
    """Made if there is none yet. What the store refuses of the caller's words is a usage error."""
    state.make()
    engine = open_store(current_store_url(state))
    try:
        yield OpenedStore(
            KeyStore(engine, state.secrets().pepper),
            BudgetStore(engine),
            Ledger(engine),
            DecisionLog(engine),
            Adapters(engine),
        )
    except InvalidRequest as error:
        raise click.UsageError(error.message) from error
    finally:
        engine.dispose()
