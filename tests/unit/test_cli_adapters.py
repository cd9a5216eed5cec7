"""`sprat adapters`, with no cluster running unless a test says so."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.clock import SystemClock
from cluster.scheduler.desired_sets import DesiredSets
from cluster.scheduler.redis_scheduler import RedisScheduler
from deployments.state_folder import StateFolder
from tests.builders import ready_replica
from tests.configs import config_of, simulated
from tests.conftest import patient_client
from tests.lora_files import write_adapter, write_base
from tests.unit.conftest import Finished, Sprat

WEIGHTS = "adapter_model.safetensors"
SLOTS = {"pools__specialist__adapter_slots": 4, "pools__specialist__max_rank": 16}


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    """Its base model `tiny` has weights on this machine."""
    base = write_base(tmp_path / "base")
    (base / "config.json").write_text("{}")
    (base / "tokenizer.json").write_text("{}")
    path = tmp_path / "cluster.yaml"
    path.write_text(
        yaml.safe_dump(simulated(base_models__tiny__source=f"folder:{base}", **SLOTS), sort_keys=False)
    )
    return path


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base_model_name_or_path="")


def as_json(finished: Finished) -> dict[str, Any]:
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def add(sprat: Sprat, yaml_file: Path, folder: Path, *options: str, name: str = "support") -> dict[str, Any]:
    call = ("adapters", "add", name, f"folder:{folder}", "--base-model", "tiny", "--config", yaml_file)
    return as_json(sprat(*call, "--json", *options))


def show(sprat: Sprat, yaml_file: Path, adapter_id: str = "support@1", *options: str) -> dict[str, Any]:
    return as_json(sprat("adapters", "show", adapter_id, "--config", yaml_file, "--json", *options))


def test_add_registers_with_lineage_and_says_so_again(
    sprat: Sprat, yaml_file: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "gate.json").write_text('{"passed": true}')
    lineage = ("--recipe", "lora-r4", "--dataset-hash", "abc", "--gate", str(tmp_path / "gate.json"))

    first = add(sprat, yaml_file, adapter, *lineage, "--live")
    again = add(sprat, yaml_file, adapter)

    assert (first["is_new"], again["is_new"]) == (True, False)
    assert first["warnings"] == []
    version = first["adapter"]
    assert (version["id"], version["state"], version["rank"]) == ("support@1", "live", 4)
    assert version["base_model"] == "tiny"
    assert version["source"] == f"folder:{adapter}"
    assert version["lineage"] == {"recipe": "lora-r4", "dataset_hash": "abc", "gate": {"passed": True}}
    assert again["adapter"] == version
    assert as_json(sprat("adapters", "list", "--json"))["adapters"] == [version]


def test_add_for_people(sprat: Sprat, yaml_file: Path, adapter: Path) -> None:
    call = ("adapters", "add", "support", f"folder:{adapter}", "--base-model", "tiny", "--config", yaml_file)

    assert sprat(*call).out == "support@1 (built) is registered: rank 4, down_proj, q_proj, v_proj.\n"
    assert "registered before, with the same files" in sprat(*call).out
    assert "support@1" in sprat("adapters", "list").out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Support", "'Support' cannot name an adapter"),
        ("../x", "cannot name an adapter"),
        ("small", "'small' is a tier already. Use another name."),
        ("auto", "'auto' is the router's own choice already"),
        ("tiny", "'tiny' is a base model already"),
        ("intent", "'intent' is an adapter of the YAML already"),
    ],
)
def test_names_that_mean_something_else(
    sprat: Sprat, yaml_file: Path, adapter: Path, name: str, words: str
) -> None:
    call = ("adapters", "add", name, f"folder:{adapter}", "--base-model", "tiny", "--config", yaml_file)

    finished = sprat(*call)

    assert finished.code != 0
    assert words in finished.sentence
    assert as_json(sprat("adapters", "list", "--json")) == {"adapters": []}


def broken_off(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def for_another_base(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw.replace(b"layers.1", b"layers.9"))


def away(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken_off, "is truncated: its last tensor ends at byte"),
        (as_pickle, "the weights are there only as a pickle (adapter_model.bin)"),
        (for_another_base, "which base model 'tiny' does not have. Name the base model"),
        (away, "cannot be read: No such file or directory. Check the path"),
    ],
)
def test_what_is_no_adapter_for_this_base_is_refused(
    sprat: Sprat, yaml_file: Path, adapter: Path, change: Any, words: str
) -> None:
    change(adapter)

    call = ("adapters", "add", "support", f"folder:{adapter}", "--base-model", "tiny", "--config", yaml_file)
    finished = sprat(*call)

    assert finished.code == 1
    assert words in finished.sentence
    assert as_json(sprat("adapters", "list", "--json")) == {"adapters": []}


def test_nothing_of_a_check_stays_on_disk(
    sprat: Sprat, yaml_file: Path, adapter: Path, tmp_path: Path
) -> None:
    add(sprat, yaml_file, adapter)
    show(sprat, yaml_file)

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_base_model_that_is_not_known_here_is_a_warning(
    sprat: Sprat, yaml_file: Path, adapter: Path
) -> None:
    call = ("adapters", "add", "support", f"folder:{adapter}", "--base-model", "other", "--config", yaml_file)

    warnings = as_json(sprat(*call, "--json"))["warnings"]

    assert warnings[0].startswith("the weights of base model 'other' are not on this machine")
    assert warnings[1] == "no pool of this configuration can serve it: none serves base model 'other'"


@pytest.mark.parametrize("text", ["[1]", "{", None])
def test_a_gate_result_that_cannot_be_read(
    sprat: Sprat, adapter: Path, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "gate.json").write_text(text)
    call = ("adapters", "add", "support", f"folder:{adapter}", "--base-model", "tiny")

    finished = sprat(*call, "--gate", tmp_path / "gate.json")

    assert finished.code == 2
    assert any(words in finished.err for words in ("holds no JSON object", "is no JSON", "cannot be read"))


# Life.


def test_promote_rollback_and_retire(sprat: Sprat, yaml_file: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        add(sprat, yaml_file, write_adapter(tmp_path / f"a{seed}", seed=seed), "--live")
    assert sprat("adapters", "rollback", "support").out == "support@1 is live.\n"
    assert sprat("adapters", "promote", "support@2", "--to", "canary").out == "support@2 is canary.\n"
    assert sprat("adapters", "promote", "support@2", "--note", "gate passed").out == "support@2 is live.\n"
    assert sprat("adapters", "retire", "support@1", "support@2").out.count("is retired.") == 2

    finished = sprat("adapters", "promote", "support@1")
    assert finished.code == 1
    assert "support@1 is retired, which is for good. Add its files again" in finished.sentence

    history = show(sprat, yaml_file, "support@2", "--no-fetch")["history"]
    assert [change["after"] for change in history if change["id"] == "support@2"] == [
        "built",
        "live",
        "built",
        "canary",
        "live",
        "retired",
    ]
    assert any(change["note"] == "gate passed" for change in history)


def test_a_name_without_a_live_version(sprat: Sprat, yaml_file: Path, adapter: Path) -> None:
    add(sprat, yaml_file, adapter)

    finished = sprat("adapters", "show", "support", "--config", yaml_file)

    assert finished.code == 1
    assert "No version of adapter 'support' is live" in finished.sentence


# What show says.


def test_show_of_a_good_adapter(sprat: Sprat, yaml_file: Path, adapter: Path) -> None:
    add(sprat, yaml_file, adapter, "--live")

    found = show(sprat, yaml_file, "support")

    assert found["source"] == {"state": "ok", "detail": ""}
    assert [(pool["pool"], pool["usable"], pool["state"]) for pool in found["pools"]] == [
        ("specialist", True, "ok"),
        ("reserve", False, "base_mismatch"),
    ]
    assert found["replicas"] == []
    text = sprat("adapters", "show", "support", "--config", yaml_file).out
    assert f"source folder:{adapter}: ok" in text
    assert "pool reserve: base_mismatch: it serves huge, the adapter is for tiny" in text
    assert "support@1: built → live by" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (broken_off, "corrupt"),
        (lambda folder: write_adapter(folder, seed=9), "corrupt"),
        (as_pickle, "refused"),
        (away, "unavailable"),
    ],
    ids=["truncated", "other_files", "pickle", "away"],
)
def test_show_of_a_source_that_changed(
    sprat: Sprat, yaml_file: Path, adapter: Path, change: Any, expected: str
) -> None:
    add(sprat, yaml_file, adapter)
    change(adapter)

    found = show(sprat, yaml_file)["source"]

    assert (found["state"], bool(found["detail"])) == (expected, True), found
    assert show(sprat, yaml_file, "support@1", "--no-fetch")["source"]["state"] == "not_fetched"


def test_show_of_an_adapter_that_was_registered_unchecked_for_another_base(
    sprat: Sprat, yaml_file: Path, adapter: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "other.yaml"
    nowhere.write_text(yaml.safe_dump(simulated(**SLOTS), sort_keys=False))
    for_another_base(adapter)
    assert add(sprat, nowhere, adapter)["warnings"]

    assert show(sprat, yaml_file)["source"]["state"] == "base_mismatch"


def test_show_of_a_rank_above_the_pools(sprat: Sprat, yaml_file: Path, tmp_path: Path) -> None:
    (warning,) = add(sprat, yaml_file, write_adapter(tmp_path / "wide", rank=32, base_model_name_or_path=""))[
        "warnings"
    ]
    assert warning.startswith("no pool of this configuration can serve it: specialist: the adapter has rank")

    pool = show(sprat, yaml_file)["pools"][0]

    assert (pool["usable"], pool["state"]) == (False, "rank_above_pool")
    assert pool["detail"] == "the adapter has rank 32, it takes 16: set max_rank: 32"


# Copies and whereabouts.


def test_copies_are_set_shown_and_taken_back(sprat: Sprat, yaml_file: Path, adapter: Path) -> None:
    add(sprat, yaml_file, adapter)

    pinned = as_json(sprat("adapters", "place", "support@1", "--copies", "2", "--json"))
    assert pinned == {"adapters": [{"id": "support@1", "copies": 2, "replicas": []}], "cluster": "down"}
    assert as_json(sprat("adapters", "list", "--json"))["adapters"][0]["copies"] == 2

    sprat("adapters", "place", "support@1", "--as-demanded")
    assert as_json(sprat("adapters", "place", "--json"))["adapters"][0]["copies"] is None
    assert "as demanded" in sprat("adapters", "place").out
    assert "Name the adapters" in sprat("adapters", "place", "--copies", "2").sentence
    assert "contradict" in sprat("adapters", "place", "a@1", "--copies", "2", "--as-demanded").sentence


@pytest.mark.contract
def test_place_and_show_say_where_an_adapter_is(
    sprat: Sprat, state: StateFolder, yaml_file: Path, adapter: Path, valkey_url: str
) -> None:
    add(sprat, yaml_file, adapter)
    running = config_of(simulated(**SLOTS)).model_dump(mode="json", by_alias=True)
    state.write_supervisor({"config": str(yaml_file), "running": running, "redis_url": valkey_url})

    async def beat() -> None:
        client = patient_client(valkey_url)
        await client.flushall()
        scheduler = RedisScheduler(client, SystemClock())
        held = {
            "specialist-1": {"adapters": (("support@1", "loaded"),)},
            "specialist-2": {
                "adapters": (("support@1", "failed"),),
                "adapter_problems": (("support@1", "the store does not answer"),),
            },
            "specialist-3": {},
            "specialist-4": {},
        }
        for replica_id, fields in held.items():
            await scheduler.heartbeat(ready_replica(replica_id, "specialist", **fields))
        wanted = {"specialist-1": ["support@1"], "specialist-3": ["support@1"]}
        await DesiredSets(client).write("test", wanted, {})
        await scheduler.close()

    asyncio.run(beat())
    placed = as_json(sprat("adapters", "place", "support@1", "--json"))
    shown = show(sprat, yaml_file)

    assert placed["cluster"] == "up"
    replicas = placed["adapters"][0]["replicas"]
    assert sorted((each["id"], each["state"], each["detail"]) for each in replicas) == [
        ("specialist-1", "loaded", ""),
        ("specialist-2", "failed", "the store does not answer"),
        ("specialist-3", "wanted", ""),
    ]
    assert shown["replicas"] == replicas


def test_a_cluster_whose_redis_is_gone_still_shows_the_registry(
    sprat: Sprat, state: StateFolder, yaml_file: Path, adapter: Path
) -> None:
    add(sprat, yaml_file, adapter)
    running = config_of(simulated(**SLOTS)).model_dump(mode="json", by_alias=True)
    record = {"config": "x", "running": running, "redis_url": f"unix://{state.path}/none.sock"}
    state.write_supervisor(record)

    assert as_json(sprat("adapters", "place", "--json"))["cluster"] == "down"
