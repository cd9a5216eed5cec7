"""A cluster as its users see it: an address and a key. Nothing of sprat is imported here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import version

import pytest


@dataclass(frozen=True)
class Cluster:
    """Its tier `small` answers quickly, `large` takes long over a long answer."""

    root: str
    """What the anthropic SDK calls base URL; OpenAI's clients want `endpoint`."""

    api_key: str

    slow_key: str
    """May send one request, and the next one some seconds later."""

    embedding_model: str | None

    @property
    def endpoint(self) -> str:
        return f"{self.root}/v1"


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster(
        root=os.environ["SPRAT_ROOT"],
        api_key=os.environ["SPRAT_API_KEY"],
        slow_key=os.environ["SPRAT_SLOW_KEY"],
        embedding_model=os.environ.get("SPRAT_EMBEDDING_MODEL"),
    )


@pytest.fixture(autouse=True)
def _client_and_version(request: pytest.FixtureRequest, record_property) -> None:
    """For the table: every file names the client that it is about."""
    record_property("client", request.module.CLIENT)
    record_property("version", version(request.module.CLIENT))
