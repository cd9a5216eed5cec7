"""What a user does with `make up`: real models, the official client, and what happens when things die.

The tests run in the order of the file: the last ones kill engines and stop the cluster.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.conftest import LAPTOP, Laptop

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

NARROW: dict[str, Any] = {
    "model": "auto",
    "metadata": {"task": "classify"},
    "max_tokens": 8,
    "temperature": 0,
    "messages": [{"role": "user", "content": "Is this positive or negative? 'I love it.' Answer one word."}],
}

LONG: dict[str, Any] = NARROW | {
    "model": "small",
    "stream": True,
    "max_tokens": 500,
    "extra_body": {"min_tokens": 500},
}


@pytest.fixture
def client(laptop: Laptop) -> Any:
    with openai.OpenAI(
        base_url=laptop.started["endpoint"], api_key=laptop.started["api_key"], max_retries=0, timeout=300
    ) as made:
        yield made


def until(condition: Any, within_s: float, what: str) -> float:
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < within_s, f"{what}: not within {within_s} s"
        time.sleep(0.1)
    return time.monotonic() - started_s


def leases(laptop: Laptop) -> int:
    return sum(pool["leases"] for pool in laptop.status()["pools"])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def with_its_core(laptop: Laptop, pool: str, within_s: float) -> tuple[dict[str, Any], psutil.Process]:
    """The pool's ready replica and the process of its engine core. A replica that Serve has just started anew
    (on a machine that is too busy for health checks) is waited for."""
    started_s = time.monotonic()
    while True:
        replicas = laptop.pool(pool)["replicas"]
        below: list[psutil.Process] = []
        for replica in replicas:
            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(replica["pid"]).children(recursive=True)
                for child in below:
                    if replica["state"] == "ready" and any("EngineCore" in part for part in child.cmdline()):
                        return replica, child
        assert time.monotonic() - started_s < within_s, f"no engine core of {pool}: {replicas}, {below}"
        time.sleep(1)


def test_the_two_example_calls_went_to_the_two_tiers(laptop: Laptop) -> None:
    narrow, hard = laptop.started["examples"]

    assert (narrow["tier"], narrow["model"]) == ("small", "smollm2-135m-instruct")
    assert (hard["tier"], hard["model"]) == ("large", "qwen2.5-coder-1.5b-instruct")
    assert narrow["reason"] == "rule:narrow_task"
    assert hard["reason"] == "default:large"
    assert narrow["saved_usd"] > 0
    assert hard["saved_usd"] == 0
    assert "def gcd" in hard["answer"]


def test_status_shows_both_pools_ready(laptop: Laptop) -> None:
    status = laptop.status()

    assert status["ready"]
    assert [(pool["name"], pool["ready"], pool["target"]) for pool in status["pools"]] == [
        ("specialist", 1, 1),
        ("reserve", 1, 1),
    ]
    assert status["redis"] == {"state": "ok", "kind": "embedded"}
    assert status["spend"]["calls"] >= 2
    assert status["spend"]["today_usd"] > 0


def test_chat(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**NARROW)
    answer = raw.parse()

    assert raw.headers["x-sprat-tier"] == "small"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(**NARROW, stream=True, stream_options={"include_usage": True})
    )

    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 8


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="small", prompt="The capital of France is", max_tokens=6, temperature=0
    )

    assert "Paris" in answer.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [
        "auto",
        "small",
        "large",
        "smollm2-135m-instruct",
        "qwen2.5-coder-1.5b-instruct",
    ]


def test_a_wrong_key(laptop: Laptop) -> None:
    with (
        openai.OpenAI(base_url=laptop.started["endpoint"], api_key="sk-wrong") as wrong,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong.models.list()


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**NARROW | {"model": "gpt-9"})


def test_a_prompt_too_long_for_every_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**NARROW | {"messages": [{"role": "user", "content": "word " * 9000}]})

    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_that_only_vllm_finds_too_long(client: openai.OpenAI) -> None:
    """Digits cost a token each: the gateway's estimate passes, the engine's own count does not."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            **NARROW | {"model": "small", "messages": [{"role": "user", "content": "7" * 5000}]}
        )

    assert caught.value.code == "context_length_exceeded"


def test_a_cancelled_stream_frees_its_lease(laptop: Laptop, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**LONG)
    next(iter(stream))
    assert leases(laptop) == 1

    stream.close()

    until(lambda: leases(laptop) == 0, 5, "the lease ends")


def test_a_second_up_finds_it_running(laptop: Laptop) -> None:
    again = laptop.sprat("up", str(LAPTOP), "--no-examples", "--json")

    assert again.returncode == 0, again.stderr
    assert '"ready_s"' in again.stdout


def test_engines_refuse_whoever_is_not_the_gateway(laptop: Laptop) -> None:
    import urllib.error
    import urllib.request

    address = laptop.pool("specialist")["replicas"][0]["address"]
    for path, status in (("/v1/models", 401), ("/v1/load_lora_adapter", 404), ("/docs", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{address}{path}", timeout=10)
        assert caught.value.code == status


def test_a_dead_engine_is_noticed_within_five_seconds(laptop: Laptop) -> None:
    """The engine core dies, the replica lives: it must leave the directory and end itself."""
    replica, core = with_its_core(laptop, "reserve", within_s=300)

    core.kill()

    def ready() -> bool:
        return any(
            each["id"] == replica["id"] and each["state"] == "ready"
            for each in laptop.pool("reserve")["replicas"]
        )

    until(lambda: not ready(), 5, "the replica leaves the directory")
    until(lambda: gone(replica["pid"]), 10, "the replica ends")


def test_a_replica_killed_in_mid_stream(laptop: Laptop, client: openai.OpenAI) -> None:
    """Clean error, no orphan, no lease left, and the next call is answered."""
    replica = laptop.pool("specialist")["replicas"][0]
    engine_pids = [child.pid for child in psutil.Process(replica["pid"]).children(recursive=True)]
    assert engine_pids
    stream = client.chat.completions.create(**LONG)
    next(iter(stream))

    os.kill(replica["pid"], signal.SIGKILL)

    with pytest.raises(openai.APIError, match="engine"):
        for _ in stream:
            pass
    until(lambda: all(gone(pid) for pid in engine_pids), 5, "engine processes die with their replica")
    until(lambda: leases(laptop) == 0, 5, "the lease ends")

    def answered() -> bool:
        try:
            return bool(client.chat.completions.create(**NARROW).choices)
        except (openai.InternalServerError, openai.RateLimitError):
            return False

    until(answered, 300, "the next call is answered, by the healed replica or the other tier")


def test_down_stops_all_of_it_and_only_it(laptop: Laptop) -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    supervisor = psutil.Process(_supervisor_pid(laptop))
    ours = [supervisor, *supervisor.children(recursive=True)]

    stopped = laptop.sprat("down")

    assert stopped.returncode == 0, stopped.stderr
    assert [process for process in ours if not gone(process.pid)] == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    assert laptop.status()["phase"] == "down"


def _supervisor_pid(laptop: Laptop) -> int:
    from deployments.state_folder import StateFolder

    record = StateFolder(laptop.state).read_supervisor()
    assert record is not None
    return int(record["pid"])
