"""No row of a batch ever sees another's adapter: real vLLM, a real model, adapters that come and go.

Every adapter is a canary that says only its own word, so an answer shows whose adapter made it. The same test
runs on a GPU: vLLM finds the device. The engine runs in this process, so that its batches can be watched.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_config
from deployments.weights.progress import open_progress
from deployments.weights.store import WeightsStore, default_root
from kernels.plugin.guard import SWITCH
from kernels.plugin.health import PLUGIN, WORKER_EXTENSION
from kernels.plugin.ranks import ranks_of
from tests.e2e.canaries import Canary, build_canaries
from tests.e2e.conftest import LAPTOP

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_PLUGINS": PLUGIN,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

BASE_MODEL = "smollm2-135m-instruct"
SLOTS = 2
MAX_RANK = 16
RANK_OF_WORD = {" apple": 1, " copper": 16, " dragon": 3, " guitar": 8, " harbor": 16, " bridge": 2}
"""Three times as many as slots, so that every slot changes hands."""

PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "def gcd(a, b):",
    "My name is",
    "1, 2, 3, 4,",
    "The three most important things about a ship in a storm are",
    "List the planets of the solar system, from the innermost to the outermost. " * 3,
    "A shopkeeper counts the apples, the dragons and the guitars in the harbor every morning. " * 5,
]
"""The longest takes several steps to prefill, during which others decode."""

MOST_TOKENS = 10
"""Of one answer."""

NOISE = {"torch.float32": 1e-3, "torch.bfloat16": 0.25}
"""By dtype: what a log probability may change by because other rows share the batch."""


@dataclass(frozen=True)
class Call:
    prompt: str
    canary: Canary | None
    tokens: int


@dataclass(frozen=True)
class Answer:
    call: Call
    token_ids: list[int]
    logprobs: list[dict[int, float]]
    """Per position: of the chosen token and of the best five."""


@dataclass
class Watched:
    """What the batches of a run were like."""

    adapters_of_slot: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    base_beside_two_adapters: int = 0
    prefill_beside_decode: int = 0


class Engine:
    """vLLM in this process, driven step by step."""

    def __init__(self, weights: Path) -> None:
        import torch
        from vllm import LLM

        llm = LLM(
            model=str(weights),
            dtype="bfloat16" if torch.cuda.is_available() else "float32",
            enforce_eager=True,
            enable_lora=True,
            max_loras=SLOTS,
            max_cpu_loras=SLOTS + 2,  # an adapter that comes back comes from memory or from disk
            max_lora_rank=MAX_RANK,
            max_model_len=512,
            max_num_seqs=6,
            max_num_batched_tokens=64,
            gpu_memory_utilization=0.3,
            worker_extension_cls=WORKER_EXTENSION,
        )
        self.collective_rpc = llm.collective_rpc
        self.vllm = llm.llm_engine
        self.noise = NOISE[str(self.vllm.model_config.dtype)]
        worker = self.vllm.engine_core.engine_core.model_executor.driver_worker.worker
        self.adapters = worker.model_runner.lora_manager._adapter_manager
        self._started = 0

    def serve(
        self, calls: list[Call], churn: Callable[[int], None] = lambda _: None
    ) -> tuple[list[Answer], Watched]:
        """Answer all calls, of which one arrives per step. `churn` gets the number of each step before it."""
        waiting, running, watched = deque(calls), {}, Watched()
        answers: list[Answer] = []
        decoding = False
        while waiting or running:
            if waiting:
                call = waiting.popleft()
                running[self._add(call)] = call
            churn(len(calls) - len(waiting))
            finished = self.vllm.step()
            self._watch(watched, decoding=decoding)
            decoding = bool(finished)
            answers += [
                _answer(running.pop(output.request_id), output.outputs[0])
                for output in finished
                if output.finished
            ]
        return answers, watched

    def load(self, canary: Canary) -> None:
        self.vllm.add_lora(_lora_request(canary))

    def unload(self, canary: Canary) -> None:
        self.vllm.remove_lora(canary.number)

    def _add(self, call: Call) -> str:
        from vllm import SamplingParams

        self._started += 1
        request_id = str(self._started)
        self.vllm.add_request(
            request_id,
            call.prompt,
            SamplingParams(temperature=0, max_tokens=call.tokens, ignore_eos=True, logprobs=5),
            lora_request=_lora_request(call.canary) if call.canary else None,
        )
        return request_id

    def _watch(self, watched: Watched, *, decoding: bool) -> None:
        """`decoding`: the step before gave tokens to requests, which now go on beside any prefill."""
        mapping = self.adapters._last_mapping
        for slot, number in enumerate(self.adapters.lora_index_to_id):
            if number is not None:
                watched.adapters_of_slot[slot].add(number)
        watched.base_beside_two_adapters += (
            len(set(mapping.index_mapping)) == 3 and 0 in mapping.index_mapping
        )
        watched.prefill_beside_decode += decoding and len(mapping.index_mapping) > len(mapping.prompt_mapping)


def _lora_request(canary: Canary) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(canary.word.strip(), canary.number, str(canary.folder))


def _answer(call: Call, output: Any) -> Answer:
    logprobs = [{token: each.logprob for token, each in position.items()} for position in output.logprobs]
    return Answer(call, list(output.token_ids), logprobs)


@pytest.fixture(scope="module")
def weights() -> Path:
    model = load_config(LAPTOP).base_models[BASE_MODEL]
    with open_progress() as progress:
        store = WeightsStore(default_root())
        return store.ensure(BASE_MODEL, model.source, model.sha256, progress=progress)


@pytest.fixture(scope="module")
def canaries(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Canary, ...]:
    return build_canaries(weights, tmp_path_factory.mktemp("canaries"), RANK_OF_WORD)


@pytest.fixture(scope="module")
def engine(weights: Path) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.delenv(SWITCH, raising=False)
        yield Engine(weights)


@pytest.fixture(scope="module")
def without_adapters(engine: Engine) -> dict[str, Answer]:
    """What the base model answers, before any adapter was ever loaded."""
    answers, watched = engine.serve([Call(prompt, None, MOST_TOKENS) for prompt in PROMPTS])

    assert not watched.adapters_of_slot
    return {answer.call.prompt: answer for answer in answers}


@pytest.fixture(scope="module")
def alone(engine: Engine, canaries: tuple[Canary, ...]) -> dict[Canary, Answer]:
    """What each canary answers with the engine to itself: the same to every prompt."""
    answers: dict[Canary, Answer] = {}
    for canary in canaries:
        (answers[canary],), _ = engine.serve([Call(PROMPTS[0], canary, 1)])
    return answers


def random_calls(canaries: tuple[Canary, ...], count: int, seed: int) -> list[Call]:
    """A third of them without adapter."""
    chance = random.Random(seed)
    who = [*canaries, *[None] * (len(canaries) // 2)]
    return [
        Call(chance.choice(PROMPTS), chance.choice(who), chance.randint(2, MOST_TOKENS)) for _ in range(count)
    ]


@dataclass(frozen=True)
class Judge:
    """Knows what every call must be answered."""

    without_adapters: dict[str, Answer]
    alone: dict[Canary, Answer]
    noise: float

    def leaks(self, answers: list[Answer]) -> list[str]:
        """One line for each answer that shows anything but its own adapter."""
        found = []
        for answer in answers:
            canary = answer.call.canary
            problem = self._of_canary(answer, canary) if canary else self._of_base(answer)
            if problem:
                found.append(f"{canary.word.strip() if canary else 'base'}: {problem}")
        return found

    def _of_canary(self, answer: Answer, canary: Canary) -> str | None:
        wanted = self.alone[canary].logprobs[0]
        for token, logprobs in zip(answer.token_ids, answer.logprobs, strict=True):
            if token != canary.token_id:
                return f"said token {token}"
            change = max(abs(logprobs[each] - wanted[each]) for each in logprobs.keys() & wanted.keys())
            if change > self.noise:
                return f"log probabilities are off by {change}"
        return None

    def _of_base(self, answer: Answer) -> str | None:
        base = self.without_adapters[answer.call.prompt]
        for token, logprobs, base_token, base_logprobs in zip(
            answer.token_ids, answer.logprobs, base.token_ids, base.logprobs, strict=False
        ):
            if token != base_token:
                behind = base_logprobs[base_token] - base_logprobs.get(token, float("-inf"))
                # Within the noise both are the likeliest: the texts part here and compare no further.
                return None if behind <= self.noise else f"said token {token}, {behind} behind {base_token}"
            change = abs(logprobs[token] - base_logprobs[token])
            if change > self.noise:
                return f"log probability of token {token} is off by {change}"
        return None


@pytest.fixture
def judge(engine: Engine, without_adapters: dict[str, Answer], alone: dict[Canary, Answer]) -> Judge:
    return Judge(without_adapters, alone, engine.noise)


def test_the_engine_uses_our_kernels(engine: Engine) -> None:
    assert engine.collective_rpc("report_lora_kernels") == [{"name": "sprat", "reason": ""}]


def test_a_canary_says_its_own_word_to_every_prompt(
    engine: Engine, canaries: tuple[Canary, ...], judge: Judge
) -> None:
    for canary in canaries:
        answers, _ = engine.serve([Call(prompt, canary, 3) for prompt in PROMPTS])

        assert [answer.token_ids for answer in answers] == [[canary.token_id] * 3] * len(PROMPTS)
        assert judge.leaks(answers) == []


def test_ranks_are_those_of_the_adapters_and_not_of_the_padding(
    engine: Engine, canaries: tuple[Canary, ...]
) -> None:
    last = engine.vllm.model_config.hf_config.num_hidden_layers - 1
    for canary in canaries:
        engine.load(canary)
        slot = engine.adapters.lora_index_to_id.index(canary.number)

        found = {
            name: ranks_of(engine.adapters.modules[name].lora_a_stacked)[:, slot].tolist()
            for name in (
                "model.layers.0.self_attn.qkv_proj",
                "model.layers.0.mlp.down_proj",
                f"model.layers.{last}.mlp.gate_up_proj",
                f"model.layers.{last}.mlp.down_proj",
            )
        }
        assert list(found.values()) == [[canary.rank, 0, 0], [0], [canary.rank] * 2, [canary.rank]]


def test_no_row_sees_anothers_adapter_under_churn(
    engine: Engine, canaries: tuple[Canary, ...], judge: Judge
) -> None:
    chance = random.Random(7)

    def churn(step: int) -> None:
        """Adapters come and go under the running calls, which throws those in use out of their slots."""
        if step % 3 == 0:
            engine.load(chance.choice(canaries))
        elif step % 7 == 0:
            engine.unload(chance.choice(canaries))

    answers, watched = engine.serve(random_calls(canaries, 60, seed=1), churn)

    assert len(answers) == 60
    assert judge.leaks(answers) == []
    assert [len(watched.adapters_of_slot[slot]) for slot in range(SLOTS)] == [len(canaries)] * SLOTS
    assert watched.base_beside_two_adapters >= 10
    assert watched.prefill_beside_decode >= 10


def test_vllms_own_cpu_wrapper_leaks(
    engine: Engine, canaries: tuple[Canary, ...], judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: vLLM 0.32 gives rows without adapter that of the last slot (PR #48421)."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    (wrapper,) = engine.adapters.punica_wrapper_mapping.values()
    if not isinstance(wrapper, PunicaWrapperCPU):
        pytest.skip("vLLM's wrapper for GPUs has no such bug")
    for name in ("add_lora_linear", "add_shrink", "add_expand", "add_lora_embedding", "add_lora_logits"):
        monkeypatch.setattr(type(wrapper), name, getattr(PunicaWrapperCPU, name))

    answers, _ = engine.serve(random_calls(canaries, 10, seed=2))

    found = judge.leaks(answers)
    assert found
    assert all(each.startswith("base:") for each in found)
