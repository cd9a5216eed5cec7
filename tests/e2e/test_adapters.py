"""Adapters of the registry on a real cluster: real vLLM, a real model, canaries that say only their own word.

sprat adapters add → the first call loads it → more adapters than room → a replica dies → promote, retire
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import openai
import pytest
import yaml

from deployments.weights.progress import open_progress
from deployments.weights.store import WeightsStore, default_root
from tests.e2e.canaries import Canary, build_canaries
from tests.e2e.conftest import LAPTOP, Laptop, started

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BASE_MODEL = "smollm2-135m-instruct"
RANK_OF_WORD = {" apple": 1, " copper": 16, " dragon": 3, " guitar": 8}
Found = TypeVar("Found")

SLOTS, ROOM = 2, 3
"""Fewer than canaries: some have to leave."""


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Canary, ...]:
    model = yaml.safe_load(LAPTOP.read_text())["base_models"][BASE_MODEL]
    with open_progress() as progress:
        weights = WeightsStore(default_root()).ensure(
            BASE_MODEL, model["source"], model["sha256"], progress=progress
        )
    return build_canaries(weights, tmp_path_factory.mktemp("canaries"), RANK_OF_WORD)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """The small tier of laptop.yaml alone, with slots for adapters."""
    raw = yaml.safe_load(LAPTOP.read_text())
    del raw["pools"]["reserve"]
    raw["tiers"] = ["small"]
    raw["router"] = {"default_tier": "small"}
    raw["pools"]["specialist"] |= {"adapter_slots": SLOTS, "host_adapters": ROOM, "max_rank": 16}
    path = tmp_path_factory.mktemp("cluster") / "adapters.yaml"
    path.write_text(yaml.safe_dump(raw))
    with started(path, "--no-examples") as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: Laptop) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=cluster.started["endpoint"], api_key=cluster.started["api_key"], max_retries=0, timeout=120
    ) as made:
        yield made


@pytest.fixture(scope="module")
def registered(cluster: Laptop, canaries: tuple[Canary, ...]) -> dict[str, Canary]:
    """Adapter id → canary; all are known to the gateway."""
    found = {}
    for canary in canaries:
        said = adapters(
            cluster, "add", canary.word.strip(), f"folder:{canary.folder}", "--base-model", BASE_MODEL
        )
        found[said["adapter"]["id"]] = canary
    return found


def adapters(cluster: Laptop, *arguments: str) -> dict[str, Any]:
    said = cluster.sprat("adapters", *arguments, "--json")
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout))


def answer(client: openai.OpenAI, model: str, tokens: int = 3) -> str:
    prompt = "The capital of France is"
    return client.completions.create(model=model, prompt=prompt, max_tokens=tokens).choices[0].text


def until(found: Callable[[], Found | None], within_s: float, what: str) -> Found:
    deadline = time.monotonic() + within_s
    while (value := found()) is None:
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.3)
    return value


def known(client: openai.OpenAI, model: str) -> bool | None:
    return True if model in {each.id for each in client.models.list()} else None


def states(cluster: Laptop) -> dict[str, str]:
    (replica,) = cluster.pool("specialist")["replicas"]
    return {each["id"]: each["state"] for each in replica["adapters"]}


def test_the_first_call_loads_it(
    cluster: Laptop, client: openai.OpenAI, registered: dict[str, Canary]
) -> None:
    adapter_id, canary = next(iter(registered.items()))
    until(lambda: known(client, adapter_id), 10, "the gateway knows the adapter")
    assert cluster.pool("specialist")["replicas"][0]["kernels"] == "sprat"

    assert answer(client, adapter_id) == canary.word * 3
    until(lambda: states(cluster).get(adapter_id) == "loaded" or None, 5, "the replica says so")


def test_more_adapters_than_room_and_none_says_anothers_word(
    cluster: Laptop, client: openai.OpenAI, registered: dict[str, Canary]
) -> None:
    until(lambda: known(client, list(registered)[-1]), 10, "the gateway knows all")
    base = answer(client, BASE_MODEL)
    asked = [*registered, BASE_MODEL] * 4

    with ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda model: answer(client, model), asked))

    wanted = {adapter_id: canary.word * 3 for adapter_id, canary in registered.items()} | {BASE_MODEL: base}
    assert answers == [wanted[model] for model in asked]
    held = [state for state in states(cluster).values() if state in ("loaded", "host")]
    assert len(held) <= ROOM
    assert list(states(cluster).values()).count("loaded") <= SLOTS


def test_the_name_follows_the_live_version(
    cluster: Laptop, client: openai.OpenAI, registered: dict[str, Canary]
) -> None:
    adapter_id, canary = next(iter(registered.items()))
    name = adapter_id.partition("@")[0]
    adapters(cluster, "promote", adapter_id)
    until(lambda: known(client, name), 10, "the gateway knows who is live")

    assert answer(client, name) == canary.word * 3


def test_a_replica_that_restarts_is_given_its_adapters_again(
    cluster: Laptop, client: openai.OpenAI, registered: dict[str, Canary]
) -> None:
    """The desired set outlives the replica: the next one is filled before anybody calls."""
    (old,) = cluster.pool("specialist")["replicas"]
    before = {name for name, state in states(cluster).items() if state in ("loaded", "host")}
    os.kill(old["pid"], signal.SIGKILL)

    def refilled() -> set[str] | None:
        replicas = cluster.pool("specialist")["replicas"]
        if not replicas or replicas[0]["id"] == old["id"] or replicas[0]["state"] != "ready":
            return None
        held = {each["id"] for each in replicas[0]["adapters"] if each["state"] in ("loaded", "host")}
        return held or None

    held = until(refilled, 240, "a new replica holds adapters without a call")

    assert held <= set(registered)
    assert held & before
    adapter_id = next(iter(held))
    assert answer(client, adapter_id) == registered[adapter_id].word * 3


def test_a_retired_version_is_not_served(
    cluster: Laptop, client: openai.OpenAI, registered: dict[str, Canary]
) -> None:
    adapter_id = list(registered)[-1]
    adapters(cluster, "retire", adapter_id)

    def refused() -> bool | None:
        try:
            answer(client, adapter_id, 1)
        except openai.NotFoundError:
            return True
        except openai.InternalServerError:
            pass  # the replica knew before the gateway
        return None

    assert until(refused, 10, "the gateway knows that it is retired")
