"""`sprat keys` and `sprat budget`, with no cluster running unless a test says so."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import SystemClock
from cluster.ledger import Ledger
from cluster.store import KeyStore, open_store, sqlite_url
from cluster.tenants import ApiKey, Budget, BudgetWindow, KeyLimits, RateLimit, digest_of, key_owner
from cluster.types import PriorityClass
from deployments.state_folder import StateFolder
from tests.builders import ledger_entry
from tests.unit.conftest import Finished, Sprat

LAPTOP = Path(__file__).parents[2] / "deployments/examples/laptop.yaml"


def as_json(finished: Finished) -> dict[str, Any]:
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def found(state: StateFolder, text: str, store: Path | None = None) -> ApiKey | None:
    """As a gateway sees it."""
    pepper = state.secrets().pepper
    engine = open_store(sqlite_url(store or state.store_file))
    try:
        return KeyStore(engine, pepper).find(digest_of(text, pepper))
    finally:
        engine.dispose()


def create(sprat: Sprat, *options: str) -> tuple[str, str]:
    """Text and id of a key of tenant acme."""
    made = as_json(sprat("keys", "create", "--tenant", "acme", "--name", "ci", "--json", *options))
    return made["api_key"], made["key"]["key_id"]


def test_create_prints_the_text_alone_on_standard_output(sprat: Sprat, state: StateFolder) -> None:
    finished = sprat("keys", "create", "--tenant", "acme", "--name", "ci")

    text = finished.out.removesuffix("\n")
    key = found(state, text)
    assert key is not None
    assert (key.tenant, key.name, key.limits, key.budgets) == ("acme", "ci", KeyLimits(), ())
    assert finished.sentence == f"Key {key.key_id} of tenant acme. Keep its text: it cannot be shown again."


def test_create_with_everything(sprat: Sprat, state: StateFolder) -> None:
    text, key_id = create(
        sprat,
        *("--class", "normal", "--rpm", "60", "--rpm-burst", "10", "--tpm", "1000"),
        *("--budget", "day=5.00", "--budget", "month=0.000001", "--soft"),
    )

    key = found(state, text)
    assert key is not None
    assert key.limits == KeyLimits(RateLimit(60, 10), RateLimit(1000, 1000), PriorityClass.NORMAL)
    assert key.budgets == (
        Budget(key_owner(key_id), BudgetWindow.DAY, 5_000_000, hard=False),
        Budget(key_owner(key_id), BudgetWindow.MONTH, 1, hard=False),
    )


def test_list_has_everything_but_texts(sprat: Sprat) -> None:
    text, key_id = create(sprat, "--rpm", "60", "--budget", "day=0.10")
    sprat("keys", "tenant", "acme", "--tpm", "7")

    listed = as_json(sprat("keys", "list", "--json"))

    (key,) = listed["keys"]
    assert (key["key_id"], key["tenant"], key["name"], key["revoked_at"]) == (key_id, "acme", "ci", None)
    assert key["created_at"].endswith("+00:00")
    assert key["limits"]["requests_per_minute"] == key["limits"]["requests_burst"] == 60
    assert key["limits"]["tokens_per_minute"] is None
    (day,) = key["budgets"]
    assert (day["window"], day["limit_micro_usd"], day["limit_usd"], day["hard"]) == (
        "day",
        100_000,
        0.1,
        True,
    )
    (tenant,) = listed["tenants"]
    assert (tenant["name"], tenant["limits"]["tokens_per_minute"]) == ("acme", 7)
    assert text.removeprefix("sk-sprat-") not in json.dumps(listed)
    shown = sprat("keys", "list").out
    assert key_id in shown
    assert "day 0.100000" in shown
    assert "tenant acme: requests -, tokens 7/min, classes up to interactive" in shown


def test_rotate_and_revoke(sprat: Sprat, state: StateFolder) -> None:
    first, key_id = create(sprat)

    second = sprat("keys", "rotate", key_id, "--overlap-s", "60").out.strip()
    assert [key.revoked for text in (first, second) if (key := found(state, text))] == [False, False]

    rotated = as_json(sprat("keys", "rotate", key_id, "--json"))
    assert rotated["key"]["key_id"] == key_id
    assert rotated["key"]["old_text_until"] is None
    third = rotated["api_key"]
    assert [found(state, text).revoked for text in (first, second, third)] == [True, True, False]

    assert sprat("keys", "revoke", key_id).out == f"Key {key_id} is revoked.\n"
    assert found(state, third).revoked
    assert as_json(sprat("keys", "revoke", key_id, "--json"))["key"]["revoked_at"] is not None
    assert "is revoked. Make another with `sprat keys create`" in sprat("keys", "rotate", key_id).sentence


def test_limits_change_only_what_is_named(sprat: Sprat, state: StateFolder) -> None:
    text, key_id = create(sprat, "--rpm", "60", "--tpm", "1000", "--class", "normal")

    sprat("keys", "limits", key_id, "--rpm-burst", "5")
    assert found(state, text).limits == KeyLimits(
        RateLimit(60, 5), RateLimit(1000, 1000), PriorityClass.NORMAL
    )

    finished = sprat("keys", "limits", key_id, "--tpm", "0", "--class", "batch")
    assert finished.out == f"key {key_id}: requests 60/min, 5 at once, tokens -, classes up to batch\n"
    assert as_json(sprat("keys", "limits", key_id, "--json"))["key"]["limits"]["tokens_per_minute"] is None


def test_limits_of_a_tenant(sprat: Sprat, state: StateFolder) -> None:
    text, _ = create(sprat)

    shown = as_json(sprat("keys", "tenant", "acme", "--rpm", "9", "--class", "batch", "--json"))

    assert shown["tenant"]["limits"]["highest_class"] == "batch"
    assert found(state, text).tenant_limits == KeyLimits(RateLimit(9, 9), None, PriorityClass.BATCH)
    assert "requests 9/min" in sprat("keys", "tenant", "acme").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("keys create --tenant a:b --name x", "'a:b' is no name for a tenant. Use 1 to 64 letters"),
        ("keys create --tenant a --name x --budget day", "'day' is no budget; write day=USD"),
        ("keys create --tenant a --name x --budget week=1", "'week=1' is no budget; write day=USD"),
        ("keys create --tenant a --name x --budget day=0", "0 USD is not between 0.000001 and 9007199254"),
        ("keys create --tenant a --name x --budget day=0.0000001", "with at most 6 decimals"),
        ("keys create --tenant a --name x --budget day=9007199254.740992", "is not between"),
        ("keys create --tenant a --name x --budget day=1 --budget day=2", "--budget takes each window once"),
        ("keys create --tenant a --name x --soft", "--soft is about --budget, and none is given"),
        ("keys create --tenant a --name x --rpm-burst 5", "--rpm-burst needs a limit: give --rpm too"),
        ("keys create --tenant a --name x --rpm 0 --rpm-burst 5", "--rpm-burst needs a limit"),
        ("keys create --tenant a --name x --rpm 1000000001", "between 1 and 1000000000"),
        ("keys create --tenant a --name x --class urgent", "'urgent' is not one of 'interactive', 'normal'"),
        ("keys rotate nothing", "There is no key 'nothing'. `sprat keys list` shows all."),
        ("keys rotate nothing --overlap-s -1", "-1.0 is not in the range"),
        ("keys revoke nothing", "There is no key 'nothing'."),
        ("keys limits nothing --rpm 5", "There is no key 'nothing'."),
        ("budget set acme day 5", "'acme' cannot have a budget. Use tenant:NAME or key:ID."),
        ("budget set key:abc day 5", "There is no key 'abc'."),
        ("budget set tenant:acme week 5", "'week' is not one of 'day', 'month', 'total'"),
        ("budget set tenant:acme day 1e3", "'1e3' is no amount of USD; write it as 5 or 0.25"),
        ("budget remove tenant:acme day", "tenant:acme has no day budget. `sprat budget list` shows all."),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(sprat: Sprat, arguments: str, words: str) -> None:
    finished = sprat(*arguments.split(), "--json")

    assert finished.code == 2
    assert finished.out == ""
    assert words in finished.sentence


# sprat budget


def test_budgets_with_what_was_spent(sprat: Sprat, state: StateFolder) -> None:
    _, key_id = create(sprat, "--budget", "total=9007199254.740991")
    sprat("budget", "set", "tenant:acme", "day", "3.50", "--soft")
    sprat("budget", "set", "tenant:acme", "month", "0.000002")
    engine = open_store(sqlite_url(state.store_file))
    now_ms = SystemClock().now_ms()
    Ledger(engine).append([ledger_entry(key_id=key_id, cost_micro_usd=1_250_000, admitted_at_ms=now_ms)])
    engine.dispose()

    listed = as_json(sprat("budget", "list", "--json"))["budgets"]

    by_name = {(each["owner"], each["window"]): each for each in listed}
    day = by_name["tenant:acme", "day"]
    assert (day["limit_micro_usd"], day["spent_micro_usd"], day["left_micro_usd"]) == (
        3_500_000,
        1_250_000,
        2_250_000,
    )
    assert (day["limit_usd"], day["spent_usd"], day["left_usd"], day["hard"]) == (3.5, 1.25, 2.25, False)
    assert by_name["tenant:acme", "month"]["left_micro_usd"] == 0, "never below nothing"
    total = by_name[f"key:{key_id}", "total"]
    assert (total["spent_micro_usd"], total["left_micro_usd"]) == (1_250_000, 2**53 - 1 - 1_250_000)
    shown = sprat("budget", "list").out
    assert "9007199253.490991" in shown, "exact, unlike a float"


def test_a_budget_is_replaced_and_removed(sprat: Sprat) -> None:
    assert sprat("budget", "set", "tenant:acme", "day", "1").out == (
        "tenant:acme may spend 1.000000 USD (day, hard).\n"
    )
    replaced = as_json(sprat("budget", "set", "tenant:acme", "day", "2", "--soft", "--json"))["budget"]
    assert (replaced["limit_micro_usd"], replaced["hard"]) == (2_000_000, False)
    assert len(as_json(sprat("budget", "list", "--json"))["budgets"]) == 1

    removed = as_json(sprat("budget", "remove", "tenant:acme", "day", "--json"))

    assert removed == {"removed": {"owner": "tenant:acme", "window": "day"}}
    assert as_json(sprat("budget", "list", "--json")) == {"budgets": []}


# Which store.


def test_the_environment_names_a_store(
    sprat: Sprat, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere.sqlite"
    monkeypatch.setenv("SPRAT_STORE_URL", sqlite_url(elsewhere))

    text, _ = create(sprat)

    assert found(state, text, elsewhere) is not None
    assert not state.store_file.exists()


def test_the_store_of_the_running_cluster_comes_first(
    sprat: Sprat, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = tmp_path / "running.sqlite"
    monkeypatch.setenv("SPRAT_STORE_URL", sqlite_url(tmp_path / "not-this.sqlite"))
    state.make()
    state.write_supervisor({"store_url": sqlite_url(running)})
    assert stat.S_IMODE((state.path / "supervisor.json").stat().st_mode) == 0o600, "it may hold a password"

    text, _ = create(sprat)

    assert found(state, text, running) is not None
    assert not (tmp_path / "not-this.sqlite").exists()


def test_a_store_that_is_away_is_a_sentence_without_the_password(
    sprat: Sprat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPRAT_STORE_URL", f"postgresql://me:s3cret@/db?host={tmp_path}")

    finished = sprat("keys", "list", "--json")

    assert finished.code == 1
    assert finished.sentence.startswith("sprat: the SQL store cannot be opened: ")
    assert "s3cret" not in finished.err


@pytest.mark.parametrize("url", ["mysql://me:s3cret@host/db", "sqlite:///relative", "nonsense:s3cret"])
def test_check_refuses_a_store_url_without_repeating_it(
    sprat: Sprat, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("SPRAT__STORE__URL", url)

    finished = sprat("check", LAPTOP)

    assert finished.code == 2
    assert "store.url: is neither a PostgreSQL nor a SQLite file with an absolute path" in finished.sentence
    assert "s3cret" not in finished.err


@pytest.mark.parametrize(
    "value", ["postgresql://me: s3cret: x@host/db", "[s3cret]"], ids=["no_yaml", "a_list"]
)
def test_no_other_mistake_repeats_a_url_either(
    sprat: Sprat, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SPRAT__STORE__URL", value)

    finished = sprat("check", LAPTOP)

    assert finished.code == 2
    assert "s3cret" not in finished.err
