"""Names, ids, sources, the table of lives, and which pools an adapter fits: no file, no store."""

from __future__ import annotations

from itertools import product

import pytest

from cluster.adapters.errors import AdapterRefused, ForbiddenMove
from cluster.adapters.fit import pool_fits
from cluster.adapters.life import MOVES, AdapterLife, check_move
from cluster.adapters.sources import S3Source, parse_adapter_source
from cluster.adapters.version import AdapterVersion, split_id
from tests.configs import config_of, simulated


def test_every_move_of_the_table_and_no_other() -> None:
    for before, after in product(AdapterLife, AdapterLife):
        if after in MOVES[before]:
            check_move("support@1", before, after)
        else:
            with pytest.raises(ForbiddenMove, match="support@1 is"):
                check_move("support@1", before, after)


def test_every_version_can_end_and_go_live_until_it_has() -> None:
    for life in set(AdapterLife) - {AdapterLife.RETIRED}:
        assert AdapterLife.RETIRED in MOVES[life]
        assert AdapterLife.LIVE in MOVES[life] | {life}
    assert MOVES[AdapterLife.RETIRED] == frozenset()


@pytest.mark.parametrize(
    ("adapter_id", "parts"), [("a@1", ("a", 1)), ("support-v2.1@999999", ("support-v2.1", 999_999))]
)
def test_an_id_is_a_name_and_a_number(adapter_id: str, parts: tuple[str, int]) -> None:
    assert split_id(adapter_id) == parts


@pytest.mark.parametrize(
    "adapter_id", ["", "a", "a@", "a@0", "a@1000000", "A@1", "a/b@1", "../a@1", "a@1\n", "a@1 ", "a@-1"]
)
def test_anything_else_is_no_id(adapter_id: str) -> None:
    with pytest.raises(AdapterRefused, match="is no adapter version"):
        split_id(adapter_id)


@pytest.mark.parametrize(
    "text",
    [
        "folder:/adapters/support",
        "hf:org/support-lora@main",
        f"hf:org/support-lora@{'0a' * 20}",
        "s3://adapters/team/support/3",
    ],
)
def test_a_source_prints_as_it_was_written(text: str) -> None:
    assert str(parse_adapter_source(text)) == text


def test_names_in_a_store_are_ours() -> None:
    assert S3Source("b", "team/support").key("adapter_config.json") == "team/support/adapter_config.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/adapters/support",
        "https://example.org/adapter",
        "hf:org/support",
        "hf:../../x@main@1",
        "pypi:adapter==1.0",
        "s3://adapters",
        "s3://adapters/",
        "s3://UPPER/x",
        "s3://adapters/a/../b",
        "s3:adapters/x",
        "folder:",
    ],
)
def test_a_source_of_another_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(AdapterRefused, match=r"(folder:PATH|s3://BUCKET/PREFIX)"):
        parse_adapter_source(text)


def test_each_pool_says_whether_it_can_serve_an_adapter() -> None:
    config = config_of(
        simulated(
            pools__specialist__adapter_slots=4,
            pools__specialist__max_rank=16,
        )
    )
    base_model = config.pools["specialist"].base_model
    others = [name for name in config.pools if name != "specialist"]

    def fits(rank: int) -> dict[str, str]:
        version = AdapterVersion(
            "support@1", base_model, rank, ("q_proj",), 1, "0" * 64, "folder:/a", AdapterLife.LIVE, 0
        )
        found = pool_fits(version, config)
        assert all(bool(fit.detail) is not fit.usable for fit in found)
        return {fit.pool: fit.state for fit in found}

    assert fits(16) == {"specialist": "ok"} | dict.fromkeys(others, "base_mismatch")
    assert fits(17)["specialist"] == "rank_above_pool"
