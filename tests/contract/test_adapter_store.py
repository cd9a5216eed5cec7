"""The adapter registry in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.engine import Engine

from cluster.adapters.errors import AdapterRefused, ForbiddenMove, UnknownAdapter
from cluster.adapters.life import AdapterLife
from cluster.adapters.version import AdapterContent, AdapterVersion, Lineage
from cluster.clock import ManualClock
from cluster.errors import StoreUnavailable
from cluster.store import open_store, sqlite_url
from cluster.store.adapters import Adapters, Added
from tests.processes import at_once

LINEAGE = Lineage(recipe="lora-r16", dataset_hash="d" * 64, gate={"passed": True, "margin": 0.01})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def adapters(engine: Engine, clock: ManualClock) -> Adapters:
    return Adapters(engine, clock)


def content(seed: str = "a", rank: int = 16) -> AdapterContent:
    return AdapterContent(rank, ("q_proj", "v_proj"), 1_000, seed * 64)


def add(adapters: Adapters, name: str = "support", seed: str = "a", base_model: str = "small-base") -> Added:
    return adapters.add(
        name, base_model=base_model, content=content(seed), source="folder:/a", who="ann", lineage=LINEAGE
    )


def states(adapters: Adapters, name: str = "support") -> dict[int, str]:
    return {version.number: version.state.value for version in adapters.versions(name)}


def promote(adapters: Adapters, adapter_id: str) -> AdapterVersion:
    return adapters.move(adapter_id, AdapterLife.LIVE, who="ann")


def test_a_version_comes_back_as_it_was_registered(adapters: Adapters, clock: ManualClock) -> None:
    added = add(adapters)

    assert added.is_new
    assert added.version == AdapterVersion(
        adapter_id="support@1",
        base_model="small-base",
        rank=16,
        target_modules=("q_proj", "v_proj"),
        size_bytes=1_000,
        content_hash="a" * 64,
        source="folder:/a",
        state=AdapterLife.BUILT,
        created_at_ms=clock.now_ms(),
        lineage=LINEAGE,
    )
    assert adapters.find("support@1") == added.version
    assert adapters.usable() == [added.version]


def test_numbers_count_up_per_name(adapters: Adapters) -> None:
    for seed in "abc":
        add(adapters, "support", seed)
    add(adapters, "sql", "a")

    assert [version.adapter_id for version in adapters.usable()] == [
        "sql@1",
        "support@1",
        "support@2",
        "support@3",
    ]


def test_the_same_files_again_are_the_same_version(adapters: Adapters) -> None:
    first, revision = add(adapters), adapters.revision()

    again = add(adapters)

    assert again == Added(first.version, is_new=False)
    assert adapters.revision() == revision


def test_retired_files_added_again_become_a_new_version(adapters: Adapters) -> None:
    add(adapters)
    adapters.move("support@1", AdapterLife.RETIRED, who="ann")

    assert add(adapters).version.adapter_id == "support@2"


def test_a_name_stays_with_its_base_model(adapters: Adapters) -> None:
    add(adapters)

    with pytest.raises(AdapterRefused, match="has versions for base model 'small-base'; one for 'other'"):
        add(adapters, seed="b", base_model="other")


@pytest.mark.parametrize("name", ["", "Support", "a/b", "../a", "a@1", "-a", "a" * 65, "a\n", "a b"])
def test_a_name_that_is_none_is_refused(adapters: Adapters, name: str) -> None:
    with pytest.raises(AdapterRefused, match="cannot name an adapter"):
        add(adapters, name)

    assert adapters.revision() == 0


def test_a_base_model_that_no_configuration_can_have(adapters: Adapters) -> None:
    with pytest.raises(AdapterRefused, match="cannot be a base model"):
        add(adapters, base_model="b" * 65)


# Life.


def test_the_bare_name_leads_to_the_live_version_only(adapters: Adapters) -> None:
    add(adapters)
    with pytest.raises(UnknownAdapter, match="No version of adapter 'support' is live"):
        adapters.find("support")

    promote(adapters, "support@1")

    assert adapters.find("support").adapter_id == "support@1"


def test_a_promotion_supersedes_and_a_rollback_goes_back(adapters: Adapters) -> None:
    for seed in "abc":
        add(adapters, seed=seed)
        promote(adapters, f"support@{'abc'.index(seed) + 1}")
    assert states(adapters) == {1: "built", 2: "built", 3: "live"}

    assert adapters.rollback("support", who="ann").adapter_id == "support@2"
    assert adapters.rollback("support", who="ann").adapter_id == "support@1"

    assert states(adapters) == {1: "live", 2: "built", 3: "built"}
    with pytest.raises(ForbiddenMove, match="first live version of support: there is none to go back to"):
        adapters.rollback("support", who="ann")


def test_a_rollback_passes_over_versions_that_were_retired(adapters: Adapters) -> None:
    for number, seed in enumerate("abc", start=1):
        add(adapters, seed=seed)
        promote(adapters, f"support@{number}")
    adapters.move("support@2", AdapterLife.RETIRED, who="ann")

    assert adapters.rollback("support", who="ann").adapter_id == "support@1"


def test_promoting_back_and_forth_leaves_a_rollback_that_ends(adapters: Adapters) -> None:
    for seed in "ab":
        add(adapters, seed=seed)
    for number in (1, 2, 1, 2, 1):
        promote(adapters, f"support@{number}")

    assert adapters.rollback("support", who="ann").adapter_id == "support@2"
    with pytest.raises(ForbiddenMove):
        adapters.rollback("support", who="ann")


def test_a_retired_version_is_usable_no_more_and_for_good(adapters: Adapters) -> None:
    add(adapters)
    promote(adapters, "support@1")
    adapters.move("support@1", AdapterLife.RETIRED, who="ann")

    assert adapters.usable() == []
    assert states(adapters) == {1: "retired"}
    with pytest.raises(ForbiddenMove, match=r"support@1 is retired, which is for good\. Add its files again"):
        promote(adapters, "support@1")


def test_a_step_that_the_table_does_not_have_is_refused(adapters: Adapters) -> None:
    add(adapters)
    promote(adapters, "support@1")

    with pytest.raises(ForbiddenMove, match=r"is live and cannot become canary\. It can become built"):
        adapters.move("support@1", AdapterLife.CANARY, who="ann")


@pytest.mark.parametrize("adapter_id", ["support@2", "none@1"])
def test_a_version_that_does_not_exist(adapters: Adapters, adapter_id: str) -> None:
    add(adapters)

    for call in (
        lambda: adapters.find(adapter_id),
        lambda: promote(adapters, adapter_id),
        lambda: adapters.set_copies(adapter_id, 2, who="ann"),
    ):
        with pytest.raises(UnknownAdapter, match=f"There is no adapter {adapter_id}"):
            call()


@pytest.mark.parametrize("adapter_id", ["support@0", "support@", "support@1@2", "../x@1", "support@01", "@1"])
def test_an_id_that_is_none(adapters: Adapters, adapter_id: str) -> None:
    with pytest.raises(AdapterRefused, match="is no adapter version"):
        adapters.find(adapter_id)


def test_the_history_says_who_did_what_and_when(adapters: Adapters, clock: ManualClock) -> None:
    add(adapters)
    add(adapters, seed="b")
    promote(adapters, "support@1")
    clock.advance(5)
    adapters.move("support@2", AdapterLife.LIVE, who="bob", note="gate passed")
    add(adapters, "support-2", "c")

    story = [
        (change.adapter_id, change.who, change.state_before, change.state_after, change.note)
        for change in adapters.history("support")
    ]

    assert story == [
        ("support@1", "ann", None, "built", "from folder:/a"),
        ("support@2", "ann", None, "built", "from folder:/a"),
        ("support@1", "ann", "built", "live", ""),
        ("support@1", "bob", "live", "built", "superseded by support@2"),
        ("support@2", "bob", "built", "live", "gate passed"),
    ]
    assert adapters.history("support")[-1].at_ms == clock.now_ms()


# What is polled.


def test_the_revision_grows_with_changes_only(adapters: Adapters) -> None:
    seen = [adapters.revision()]
    for change in (
        lambda: add(adapters),
        lambda: promote(adapters, "support@1"),
        lambda: adapters.set_copies("support@1", 3, who="ann"),
        lambda: adapters.move("support@1", AdapterLife.RETIRED, who="ann"),
    ):
        change()
        seen.append(adapters.revision())
        change_nothing(adapters)
        assert adapters.revision() == seen[-1]

    assert seen == [0, 1, 2, 3, 4]


def change_nothing(adapters: Adapters) -> None:
    adapters.usable()
    adapters.copies()
    with pytest.raises(UnknownAdapter):
        promote(adapters, "none@1")


def test_copies_are_a_wish_until_it_is_taken_back(adapters: Adapters) -> None:
    add(adapters)
    add(adapters, "sql", "b")

    adapters.set_copies("support@1", 3, who="ann")
    adapters.set_copies("sql@1", 0, who="ann")
    assert adapters.copies() == {"support@1": 3, "sql@1": 0}

    adapters.set_copies("support@1", None, who="ann")
    adapters.move("sql@1", AdapterLife.RETIRED, who="ann")
    assert adapters.copies() == {}
    with pytest.raises(ForbiddenMove, match="sql@1 is retired and is held nowhere"):
        adapters.set_copies("sql@1", 1, who="ann")
    with pytest.raises(AdapterRefused, match="0 to 1000 copies, not 1001"):
        adapters.set_copies("support@1", 1_001, who="ann")


# Several writers.


def added_by_another(url: str, seed: str) -> tuple[str, bool]:
    engine = open_store(url)
    added = add(Adapters(engine), seed=seed)
    engine.dispose()
    return added.version.adapter_id, added.is_new


def test_processes_that_add_the_same_files_at_once_make_one_version(store_url: str) -> None:
    open_store(store_url).dispose()

    found = at_once(added_by_another, [(store_url, "a")] * 6)

    assert {adapter_id for adapter_id, _ in found} == {"support@1"}
    assert sum(is_new for _, is_new in found) == 1


def test_processes_that_add_different_files_at_once_make_one_version_each(
    store_url: str,
) -> None:
    open_store(store_url).dispose()

    found = at_once(added_by_another, [(store_url, seed) for seed in "abcdef"])

    assert sorted(adapter_id for adapter_id, _ in found) == [f"support@{number}" for number in range(1, 7)]


def test_promotions_at_once_leave_one_live_version(adapters: Adapters) -> None:
    for seed in "abcd":
        add(adapters, seed=seed)
    barrier = Barrier(4)

    def promoted(number: int) -> None:
        barrier.wait()
        promote(adapters, f"support@{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(promoted, range(1, 5)))

    assert sorted(states(adapters).values()) == ["built", "built", "built", "live"]
    went_live = [change for change in adapters.history("support") if change.state_after == "live"]
    assert len(went_live) == 4
    assert adapters.find("support").adapter_id == went_live[-1].adapter_id


# Any story.


@pytest.fixture(scope="module")
def one_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = open_store(sqlite_url(tmp_path_factory.mktemp("registry") / "store.sqlite"))
    yield opened
    opened.dispose()


STEPS = st.lists(
    st.tuples(st.sampled_from([*AdapterLife, "add", "rollback"]), st.integers(1, 4)), min_size=1, max_size=25
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_after_any_story_one_version_at_most_is_live_and_rollbacks_end(
    one_sqlite: Engine, steps: list[tuple[AdapterLife | str, int]]
) -> None:
    with one_sqlite.begin() as connection:
        for table in ("adapter_versions", "adapter_history", "adapter_revision"):
            connection.execute(text(f"DELETE FROM {table}"))
    adapters = Adapters(one_sqlite, ManualClock())
    for step, number in steps:
        try:
            if step == "add":
                add(adapters, seed=str(number))
            elif step == "rollback":
                adapters.rollback("support", who="ann")
            else:
                adapters.move(f"support@{number}", AdapterLife(step), who="ann")
        except (ForbiddenMove, UnknownAdapter):
            continue
        live = [version for version in adapters.usable() if version.state is AdapterLife.LIVE]
        assert len(live) <= 1
        told = {change.adapter_id: change.state_after for change in adapters.history("support")}
        assert told == {version.adapter_id: version.state for version in adapters.versions()}

    rollbacks = 0
    while any(version.state is AdapterLife.LIVE for version in adapters.usable()):
        try:
            adapters.rollback("support", who="ann")
        except ForbiddenMove:
            break
        rollbacks += 1
        assert rollbacks <= 6, "a rollback came to a version twice"


def test_a_store_that_does_not_answer(adapters: Adapters, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE adapter_revision RENAME TO hidden"))
    try:
        with pytest.raises(StoreUnavailable):
            adapters.revision()
    finally:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE hidden RENAME TO adapter_revision"))
