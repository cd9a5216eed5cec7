"""Opening a store: from nothing, from the first release, by many at once; and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Column, DateTime, MetaData, String, Table, create_engine, inspect, text
from sqlalchemy.engine import Engine

from cluster.errors import StartError, StoreUnavailable
from cluster.ledger import Ledger
from cluster.store import KeyStore, database, open_store, sqlite_url, url_problem
from cluster.store.schema import metadata
from cluster.tenants import digest_of
from tests.builders import ledger_entry
from tests.postgres import RunningPostgres
from tests.processes import at_once

PEPPER = b"p" * 32
CREATED = datetime(2026, 11, 22, 10, 30, 15, 250_000, tzinfo=UTC)

# As the first release made it, by `metadata.create_all`.
FIRST = MetaData()
FIRST_KEYS = Table(
    "api_keys",
    FIRST,
    Column("digest", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("revoked_at", DateTime(timezone=True)),
)


@pytest.fixture
def store(empty_store_url: str) -> Iterator[Engine]:
    opened = open_store(empty_store_url)
    yield opened
    opened.dispose()


@pytest.fixture
def plainly(empty_store_url: str) -> Engine:
    """Without any of the store's own ways."""
    return create_engine(empty_store_url.replace("postgresql:", "postgresql+psycopg:"))


def first_release(engine: Engine) -> None:
    FIRST.create_all(engine)
    with engine.begin() as connection:
        for name, revoked_at in (("old", None), ("ended", CREATED + timedelta(hours=1))):
            digest = digest_of(name, PEPPER)
            connection.execute(
                FIRST_KEYS.insert().values(
                    digest=digest, tenant="acme", name=name, created_at=CREATED, revoked_at=revoked_at
                )
            )


def tables_of(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_an_empty_database_gets_the_tables_of_the_schema(store: Engine) -> None:
    with store.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_again_changes_nothing(empty_store_url: str, store: Engine) -> None:
    text_of_key = KeyStore(store, PEPPER).create("acme", "first")

    again = open_store(empty_store_url)

    assert KeyStore(again, PEPPER).find(digest_of(text_of_key, PEPPER)) is not None
    again.dispose()


def test_keys_of_the_first_release_go_on_working(empty_store_url: str, plainly: Engine) -> None:
    first_release(plainly)

    keys = KeyStore(open_store(empty_store_url), PEPPER)

    old, ended = (keys.find(digest_of(name, PEPPER)) for name in ("old", "ended"))
    assert old is not None
    assert ended is not None
    assert (old.tenant, old.name, old.revoked, old.budgets) == ("acme", "old", False, ())
    assert ended.revoked
    assert old.key_id != ended.key_id
    created_at_ms = int(CREATED.timestamp() * 1000)
    assert {each.created_at_ms for each in keys.list_keys()} == {created_at_ms}
    assert keys.record(ended.key_id).revoked_at_ms == created_at_ms + 3_600_000
    assert keys.rotate(old.key_id).startswith("sk-sprat-")


def test_a_first_release_without_keys_is_upgraded(empty_store_url: str, plainly: Engine) -> None:
    FIRST.create_all(plainly)

    assert KeyStore(open_store(empty_store_url), PEPPER).list_keys() == ()


REGISTRY_TABLES = {"adapter_versions", "adapter_history", "adapter_revision"}


@pytest.mark.parametrize(
    ("before", "added_since"),
    [("0002", {"decisions", "outcomes"} | REGISTRY_TABLES), ("0003", REGISTRY_TABLES)],
    ids=["decision_log", "adapter_registry"],
)
def test_a_store_from_before_some_tables_is_upgraded(
    empty_store_url: str, store: Engine, before: str, added_since: set[str]
) -> None:
    ledger = Ledger(store)
    ledger.append([ledger_entry("before")])
    with store.begin() as connection:
        for name in added_since:
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{before}'"))

    again = open_store(empty_store_url)

    assert added_since < tables_of(again)
    assert Ledger(again).find(["before"]).keys() == {"before"}
    again.dispose()


def opened(url: str) -> tuple[str, ...]:
    engine = open_store(url)
    with closing(engine.raw_connection()):
        return tuple(sorted(inspect(engine).get_table_names()))


@pytest.mark.parametrize("before", [lambda _engine: None, first_release], ids=["empty", "first_release"])
def test_many_processes_open_it_at_the_same_moment(
    empty_store_url: str, plainly: Engine, before: Callable[[Engine], None]
) -> None:
    before(plainly)
    plainly.dispose()

    found = at_once(opened, [(empty_store_url,)] * 8)

    assert set(found) == {tuple(sorted({*metadata.tables, "alembic_version"}))}


def test_half_an_upgrade_is_never_seen(empty_store_url: str, plainly: Engine) -> None:
    first_release(plainly)
    with plainly.begin() as connection:  # in the way of the last steps
        connection.execute(text("CREATE TABLE other (x INTEGER)"))
        connection.execute(text("CREATE INDEX ledger_by_admission ON other (x)"))

    with pytest.raises(StartError, match="ledger_by_admission"):
        open_store(empty_store_url)

    assert tables_of(plainly) == {"api_keys", "other"}
    with plainly.begin() as connection:
        assert len(connection.execute(FIRST_KEYS.select()).all()) == 2
        connection.execute(text("DROP TABLE other"))
    assert len(KeyStore(open_store(empty_store_url), PEPPER).list_keys()) == 2


def test_a_newer_database_is_refused(empty_store_url: str, store: Engine) -> None:
    with store.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(StartError, match=r"revision '9999' is not known here\. Install the newer sprat"):
        open_store(empty_store_url)


def test_a_database_of_another_program_is_refused(empty_store_url: str, plainly: Engine) -> None:
    with plainly.begin() as connection:
        connection.execute(text("CREATE TABLE ledger (amount INTEGER)"))

    with pytest.raises(StartError, match=r"not sprat's: ledger\. Give sprat a database of its own"):
        open_store(empty_store_url)

    assert tables_of(plainly) == {"ledger"}


# URLs.


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "Its form is sqlite:////ABSOLUTE/PATH or postgresql://"),
        ("nonsense", "cannot be read"),
        ("postgresql://me:s3cret@host:port/db", "cannot be read"),
        ("mysql://me:s3cret@host/db", "cannot be 'mysql'"),
        ("postgresql+psycopg2://me:s3cret@host/db", "cannot be 'postgresql\\+psycopg2'"),
        ("sqlite:///relative.sqlite", "absolute path"),
        ("sqlite://", "absolute path"),
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(StartError, match=words) as caught:
        open_store(url)

    assert "s3cret" not in str(caught.value)
    assert url_problem(url) == str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_the_same_driver(scheme: str) -> None:
    assert url_problem(f"{scheme}://me:s3cret@host/db") is None


def test_a_server_that_is_away_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot be opened: .* Check its server and URL") as caught:
        open_store(f"postgresql://me:s3cret@/db?host={tmp_path}")

    assert "s3cret" not in str(caught.value)


@pytest.mark.contract
def test_a_refusal_of_the_server_is_told_without_the_password(postgres: RunningPostgres) -> None:
    with pytest.raises(StartError, match='role "nobody" does not exist') as caught:
        open_store(postgres.url("postgres").replace("sprat@", "nobody:nobody%2Fs3cret@"))

    assert "s3cret" not in str(caught.value)


def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "a?b %41#x" / "store.sqlite"
    path.parent.mkdir()

    KeyStore(open_store(sqlite_url(path)), PEPPER).create("acme", "first")

    assert path.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"unable to open database file\. Check that its folder exists"):
        open_store(sqlite_url(tmp_path / "nowhere" / "store.sqlite"))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_text("mine, and long enough to be looked at. " * 50)

    with pytest.raises(StartError, match="file is not a database"):
        open_store(sqlite_url(path))


# Outages.


def test_a_writer_that_holds_the_file_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "store.sqlite"
    ours, other = open_store(sqlite_url(path)), create_engine(sqlite_url(path))

    with closing(other.raw_connection()) as holder:
        holder.cursor().execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable) as caught:
            Ledger(ours).append([ledger_entry()])
        assert Ledger(ours).find(["request"]) == {}, "readers do not wait"

    assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
    assert Ledger(ours).append([ledger_entry()]) == 1


@pytest.mark.contract
def test_connections_that_the_server_cut_are_made_again(postgres: RunningPostgres) -> None:
    url = postgres.new_database()
    engine = open_store(url)
    ledger = Ledger(engine)
    ledger.append([ledger_entry("before")])

    with engine.connect() as connection, pytest.raises(Exception, match="terminating connection"):
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert ledger.append([ledger_entry("after")]) == 1
    assert ledger.find(["before", "after"]).keys() == {"before", "after"}


@pytest.mark.contract
def test_a_database_that_went_away_is_store_unavailable(postgres: RunningPostgres) -> None:
    url = postgres.new_database()
    ledger = Ledger(open_store(url))
    postgres.drop(url)

    with pytest.raises(StoreUnavailable):
        ledger.append([ledger_entry()])
