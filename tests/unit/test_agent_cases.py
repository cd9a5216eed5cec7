"""`sprat eval agents` without models: cases, scorers, answers on disk, and policies on made-up answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from click.testing import CliRunner

from cluster.config import load_config
from cluster.errors import ConfigError, StartError
from cluster.router.features import chat_features
from cluster.router.verifiers.draft import ToolCall
from cluster.types import Price
from deployments.cli.eval_agents import agents
from deployments.cli.up import EXAMPLE
from deployments.evaluation import collect as collecting
from deployments.evaluation.answers import Answer, AnswerFile, parse_answer
from deployments.evaluation.cases import FROZEN, Case, Suite, all_cases, by_turns, read_cases
from deployments.evaluation.collect import Endpoint, Work, collect
from deployments.evaluation.freeze import COUNTS, choose
from deployments.evaluation.intent_scoring import is_right_intent
from deployments.evaluation.live import live_report
from deployments.evaluation.outcomes import Outcome, outcome_of
from deployments.evaluation.own_cluster import own_cluster
from deployments.evaluation.plot import plot_agents
from deployments.evaluation.policies import MARGIN, Asked, score
from deployments.evaluation.report import report_on
from deployments.evaluation.routed import KeptPairs, differences
from deployments.evaluation.tool_schema import chat_tool
from deployments.evaluation.tool_scoring import is_right_call
from deployments.gateway.endpoints.chat import chat_body
from deployments.state_folder import StateFolder

SHARED = Path(__file__).parents[3] / "shared" / "data"
PRICE = Price(1_000_000, 10_000_000)

AREA: dict[str, Any] = {
    "name": "shape.area",
    "description": "Area of a shape.",
    "parameters": {
        "type": "dict",
        "properties": {
            "kind": {"type": "string", "description": "Which shape."},
            "width": {"type": "float", "description": "In metres."},
            "count": {"type": "integer", "description": "How many.", "optional": True},
            "exact": {"type": "boolean", "description": "Whether to round."},
            "sides": {"type": "array", "items": {"type": "float"}, "description": "Lengths."},
            "names": {"type": "array", "items": {"type": "string"}, "description": "Names."},
            "corner": {"type": "tuple", "items": {"type": "integer"}, "description": "Where."},
            "paint": {
                "type": "dict",
                "properties": {"colour": {"type": "string"}, "coats": {"type": "integer"}},
                "description": "The paint.",
            },
            "holes": {"type": "array", "items": {"type": "dict"}, "description": "What is cut out."},
            "formula": {"type": "float", "description": "May be given by name."},
        },
        "required": ["kind"],
    },
}
ALLOWED: dict[str, Any] = {
    "kind": ["Right-angled triangle", "triangle"],
    "width": [3.0, ""],
    "count": ["", 1],
    "exact": [True, ""],
    "sides": [[3.0, 4.5], [4.5, 3.0], ""],
    "names": [["New York", "Rome"], ""],
    "corner": [[1, 2], ""],
    "paint": [{"colour": ["dark red", "red"], "coats": ["", 2]}, ""],
    "holes": [[{"radius": [1, 2]}, {"radius": [3]}], ""],
    "formula": ["half_base", ""],
}
KIND = {"kind": "triangle"}


def called(arguments: dict[str, Any], name: str = "shape_area") -> tuple[ToolCall, ...]:
    return (ToolCall(name, json.dumps(arguments)),)


class TestToolScoring:
    @pytest.mark.parametrize(
        "arguments",
        [
            KIND,
            {"kind": "right angled TRIANGLE"},
            {"kind": "Right-Angled, Triangle."},
            KIND | {"width": 3.0},
            KIND | {"width": 3},
            KIND | {"count": 1},
            KIND | {"exact": True},
            KIND | {"sides": [4.5, 3.0]},
            KIND | {"names": ["new york", "ROME"]},
            KIND | {"corner": [1, 2]},
            KIND | {"paint": {"colour": "Dark Red"}},
            KIND | {"paint": {"colour": "red", "coats": 2}},
            KIND | {"holes": [{"radius": 2}, {"radius": 3}]},
            KIND | {"formula": "half_base"},
        ],
        ids=str,
    )
    def test_right(self, arguments: dict[str, Any]) -> None:
        assert is_right_call([AREA], {"shape.area": ALLOWED}, called(arguments))

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"width": 3.0},
            {"kind": "square"},
            {"kind": 3},
            KIND | {"width": 3.5},
            KIND | {"width": "3.0"},
            KIND | {"width": True},
            KIND | {"count": 1.0},
            KIND | {"count": True},
            KIND | {"count": 2},
            KIND | {"exact": False},
            KIND | {"exact": 1},
            KIND | {"sides": [4.5]},
            KIND | {"sides": 4.5},
            KIND | {"names": ["Rome", "New York"]},
            KIND | {"corner": [1, "2"]},
            KIND | {"paint": {"coats": 2}},
            KIND | {"paint": {"colour": "red", "gloss": True}},
            KIND | {"paint": "red"},
            KIND | {"holes": [{"radius": 3}, {"radius": 2}]},
            KIND | {"holes": [{"radius": 2}]},
            KIND | {"formula": "half_height"},
            KIND | {"formula": 0.5},
            KIND | {"depth": 1},
        ],
        ids=str,
    )
    def test_wrong(self, arguments: dict[str, Any]) -> None:
        assert not is_right_call([AREA], {"shape.area": ALLOWED}, called(arguments))

    def test_what_may_not_be_left_out(self) -> None:
        allowed = {"kind": ["triangle"], "width": [3.0]}
        assert not is_right_call([AREA], {"shape.area": allowed}, called(KIND))
        assert is_right_call([AREA], {"shape.area": allowed}, called(KIND | {"width": 3}))

    def test_an_int_in_a_list_of_floats(self) -> None:
        """BFCL's own rule; it looks at no item's type where the list may be left out."""
        sides = KIND | {"sides": [3, 4.5]}
        must = {"kind": ["triangle"], "sides": [[3.0, 4.5]]}
        assert not is_right_call([AREA], {"shape.area": must}, called(sides))
        assert is_right_call([AREA], {"shape.area": ALLOWED}, called(sides))

    def test_exactly_one_call_of_the_right_function(self) -> None:
        expected = {"shape.area": ALLOWED}
        other = AREA | {"name": "shape.edge"}
        assert is_right_call([other, AREA], expected, called(KIND))
        assert not is_right_call([other, AREA], expected, called(KIND, "shape_edge"))
        assert not is_right_call([AREA], expected, called(KIND) * 2)
        assert not is_right_call([AREA], expected, ())

    @pytest.mark.parametrize("arguments", ['{"kind": "tri', "[1]", "", '"triangle"'])
    def test_arguments_that_are_no_json_object(self, arguments: str) -> None:
        calls = (ToolCall("shape_area", arguments),)
        assert not is_right_call([AREA], {"shape.area": ALLOWED}, calls)

    def test_the_schema_is_json_schema_at_every_depth(self) -> None:
        function = chat_tool(AREA)["function"]
        properties = function["parameters"]["properties"]
        assert function["name"] == "shape_area"
        assert function["parameters"]["type"] == "object"
        assert properties["width"]["type"] == "number"
        assert properties["corner"] == {
            "type": "array",
            "items": {"type": "integer"},
            "description": "Where.",
        }
        assert properties["paint"]["properties"]["coats"]["type"] == "integer"
        assert properties["holes"]["items"] == {"type": "object"}
        assert "optional" not in properties["count"]
        assert AREA["parameters"]["type"] == "dict", "the description is left as it was"


class TestIntentScoring:
    @pytest.mark.parametrize("answer", ['{"intent": "pay_bill"}', '\n{ "intent":"pay_bill" }\n'])
    def test_right(self, answer: str) -> None:
        assert is_right_intent("pay_bill", answer)

    @pytest.mark.parametrize(
        "answer",
        [
            *("", "pay_bill", '"pay_bill"', '{"intent": "pay_bi', '["pay_bill"]'),
            *('{"intent": "transfer"}', '{"intent": "pay_bill", "sure": true}', "{}"),
        ],
    )
    def test_wrong(self, answer: str) -> None:
        assert not is_right_intent("pay_bill", answer)


def write_data(folder: Path) -> None:
    """In the formats of the real ones: 40 tool calls of each suite, 80 intents."""
    (folder / "bfcl" / "possible_answer").mkdir(parents=True)
    (folder / "clinc150").mkdir()
    for suite in (Suite.SIMPLE, Suite.MULTIPLE):
        questions, answers = [], []
        for number in range(40):
            name = f"{suite.value}_{number}"
            content = f"Area of triangle {number} of {suite.value}?"
            questions.append(
                {"id": name, "question": [[{"role": "user", "content": content}]], "function": [AREA]}
            )
            answers.append({"id": name, "ground_truth": [{"shape.area": ALLOWED}]})
        file = f"BFCL_v4_{suite.value}.json"
        (folder / "bfcl" / file).write_text("\n".join(map(json.dumps, questions)) + "\n")
        (folder / "bfcl" / "possible_answer" / file).write_text("\n".join(map(json.dumps, answers)) + "\n")
    utterances = [[f"please pay bill {number}", ["pay_bill", "transfer"][number % 2]] for number in range(80)]
    (folder / "clinc150" / "data_full.json").write_text(json.dumps({"test": utterances}))


def freeze_all(data: Path, path: Path) -> Path:
    path.write_text(json.dumps({"sha256": {case.id: case.text_sha256 for case in all_cases(data)}}))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def frozen(data: Path, tmp_path: Path) -> Path:
    return freeze_all(data, tmp_path / "frozen.json")


class TestCases:
    def test_the_chosen_ones_are_those_of_the_seed(self, data: Path) -> None:
        cases = list(all_cases(data))
        counts = {Suite.SIMPLE: 3, Suite.MULTIPLE: 2, Suite.INTENT: 4}
        chosen = choose(cases, counts, seed=1)
        assert [case.id for case in chosen] == [case.id for case in choose(cases, counts, seed=1)]
        assert [case.id for case in chosen] != [case.id for case in choose(cases, counts, seed=2)]
        assert {suite: sum(case.suite is suite for case in chosen) for suite in counts} == counts

    def test_tool_calls_and_intents_take_turns(self, data: Path) -> None:
        suites = [case.suite for case in by_turns(list(all_cases(data)))[:5]]
        assert suites == [Suite.SIMPLE, Suite.INTENT, Suite.MULTIPLE, Suite.INTENT, Suite.SIMPLE]

    def test_none_is_lost_where_there_are_more_of_one_suite(self, data: Path) -> None:
        cases = list(all_cases(data))[30:]
        assert sorted(case.id for case in by_turns(cases)) == sorted(case.id for case in cases)

    def test_another_text_is_refused(self, data: Path, frozen: Path) -> None:
        assert len(read_cases(data, frozen)) == 160
        file = data / "clinc150" / "data_full.json"
        file.write_text(file.read_text().replace("please pay bill 7", "please pay the bill 7"))
        with pytest.raises(ConfigError, match=r"^11 of 160 frozen cases .*clinc150_test_7"):
            read_cases(data, frozen)

    def test_a_folder_without_the_data_is_told_of(self, tmp_path: Path, frozen: Path) -> None:
        with pytest.raises(ConfigError, match="--data is the folder"):
            read_cases(tmp_path, frozen)

    def test_every_case_passes_the_gateway(self, data: Path, frozen: Path) -> None:
        for case in read_cases(data, frozen):
            chat_body(json.dumps({**case.body, "model": "auto"}).encode())

    def test_the_committed_ones_hold_no_text(self) -> None:
        kept = json.loads(FROZEN.read_text())
        assert set(kept) == {"seed", "sha256"}
        assert len(kept["sha256"]) == sum(COUNTS.values())
        assert {len(digest) for digest in kept["sha256"].values()} == {64}

    def test_the_committed_ones_are_in_the_data(self) -> None:
        if not SHARED.exists():
            pytest.skip(f"needs the data of {SHARED}")
        cases = read_cases(SHARED)
        assert {suite: sum(case.suite is suite for case in cases) for suite in COUNTS} == COUNTS
        for case in cases:
            chat_body(json.dumps({**case.body, "model": "auto"}).encode())


def answered(case: Case, asked: str, *, right: bool, logprob: float = -0.1, tokens: int = 10) -> Answer:
    wrong_or_right = KIND if right else {"kind": "square"}
    named = case.expected if right else "balance"
    return Answer(
        case=case.id,
        request_sha256=case.request_sha256,
        asked=asked,
        model=f"model-{asked}",
        tier=asked,
        reason=f"model:{asked}",
        prompt_tokens=100,
        output_tokens=tokens,
        latency_ms=100.0 if asked == "small" else 1000.0,
        cost_usd=0.001,
        finish_reason="stop",
        content=json.dumps({"intent": named}) if case.suite is Suite.INTENT else "",
        tool_calls=() if case.suite is Suite.INTENT else called(wrong_or_right),
        logprobs=(logprob,) * 2,
    )


class TestAnswerFile:
    def test_what_was_added_is_read(self, data: Path, tmp_path: Path) -> None:
        cases = tuple(all_cases(data))
        file = AnswerFile(tmp_path / "new" / "answers.jsonl")
        assert file.read(cases) == {}
        small, large = answered(cases[0], "small", right=True), answered(cases[0], "large", right=False)
        file.add(small)
        file.add(large)
        found = AnswerFile(tmp_path / "new" / "answers.jsonl").read(cases)
        assert found == {(cases[0].id, "small"): small, (cases[0].id, "large"): large}

    def test_half_a_line_of_a_killed_process_is_forgotten(self, data: Path, tmp_path: Path) -> None:
        cases = tuple(all_cases(data))
        path = tmp_path / "answers.jsonl"
        first, second = (answered(case, "small", right=True) for case in cases[:2])
        AnswerFile(path).add(first)
        with path.open("a") as file:
            file.write('{"case": "simple_python_1", "asked')
        again = AnswerFile(path)
        again.add(second)
        assert set(again.read(cases)) == {(cases[0].id, "small"), (cases[1].id, "small")}

    def test_an_answer_to_another_request_does_not_count(self, data: Path, tmp_path: Path) -> None:
        case = next(all_cases(data))
        file = AnswerFile(tmp_path / "answers.jsonl")
        file.add(answered(case, "small", right=True))
        changed = replace(case, body=case.body | {"max_tokens": 99})
        assert file.read((changed,)) == {}

    def test_a_file_of_something_else_is_told_of(self, data: Path, tmp_path: Path) -> None:
        path = tmp_path / "answers.jsonl"
        path.write_text('{"id": 1}\n')
        with pytest.raises(ConfigError, match="line 1 is no answer"):
            AnswerFile(path).read(tuple(all_cases(data)))


REPLY: dict[str, Any] = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.5}]},
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}
HEADERS = {
    "x-sprat-model": "tiny",
    "x-sprat-tier": "small",
    "x-sprat-reason": "model:small",
    "x-sprat-cost-usd": "0.25",
}


def test_an_answer_is_read_from_the_reply(data: Path) -> None:
    case = next(all_cases(data))
    answer = parse_answer(case, "small", HEADERS, REPLY, 12.34)
    outcome = outcome_of(case, answer, PRICE)
    assert (answer.tool_calls, answer.logprobs) == ((ToolCall("f", "{}"),), (-0.5, -1.5))
    assert (outcome.mean_logprob, outcome.min_logprob, outcome.tool_calls) == (-1.0, -1.5, 1)
    assert (outcome.cost_micro_usd, outcome.latency_ms) == (7 + 2 * 10, 12.3)
    assert (outcome.right, outcome.form) == (False, "tools:unknown_name")


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, "accepted"),
        ({"tool_calls": called({"width": 3.0})}, "tools:required"),
        ({"tool_calls": called({"kind": 3})}, "tools:type"),
        ({"tool_calls": (ToolCall("shape_area", '{"kind"'),)}, "tools:not_json"),
        ({"tool_calls": (), "content": "The area is 3."}, "tools:missing"),
        ({"finish_reason": "length"}, "refusal:cut_off"),
    ],
)
def test_what_verifiers_say_of_a_draft(data: Path, changes: dict[str, Any], form: str) -> None:
    case = next(all_cases(data))
    answer = replace(answered(case, "small", right=True), **changes)
    assert outcome_of(case, answer, PRICE).form == form


class Gateway:
    """Answers chat completions, after the statuses that it was told to give first."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses = statuses
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        assert request.headers["authorization"] == "Bearer secret"
        if self.statuses:
            status = self.statuses.pop(0)
            return web.json_response({"error": {"message": f"said {status}"}}, status=status)
        return web.json_response(REPLY, headers=HEADERS)


async def collected(gateway: Gateway, works: list[Work]) -> list[Answer]:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", gateway.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kept: list[Answer] = []
    try:
        port = runner.addresses[0][1]
        await collect(Endpoint(f"http://127.0.0.1:{port}/v1", "secret"), works, kept.append, lambda _: None)
    finally:
        await runner.cleanup()
    return kept


class TestCollecting:
    @pytest.fixture(autouse=True)
    def _without_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(collecting, "FIRST_PAUSE_S", 0.0)

    async def test_each_model_is_asked_every_case_once(self, data: Path) -> None:
        cases = list(all_cases(data))[:12]
        gateway = Gateway([])
        kept = await collected(gateway, [Work("large", cases, 3), Work("small", cases[:5], 2)])
        assert sorted((answer.asked, answer.case) for answer in kept) == sorted(
            [("large", case.id) for case in cases] + [("small", case.id) for case in cases[:5]]
        )
        assert gateway.most_at_once == 5
        assert gateway.bodies[0]["temperature"] == 0

    async def test_what_may_pass_is_tried_again(self, data: Path) -> None:
        cases = list(all_cases(data))[:1]
        assert len(await collected(Gateway([429, 503]), [Work("small", cases, 1)])) == 1

    async def test_a_refusal_ends_it_and_what_was_kept_stays(self, data: Path) -> None:
        cases = list(all_cases(data))[:3]
        with pytest.raises(StartError, match=r"not answered by 'small': said 400"):
            await collected(Gateway([400]), [Work("small", cases, 1)])

    async def test_an_engine_that_does_not_come_back_ends_it(self, data: Path) -> None:
        cases = list(all_cases(data))[:1]
        gateway = Gateway([503] * 20)
        with pytest.raises(StartError, match="said 503"):
            await collected(gateway, [Work("small", cases, 1)])
        assert len(gateway.bodies) == collecting.TRIES


class TestOwnCluster:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
        """What would have been run; `up` fails for a YAML called broken.yaml."""
        ran: list[tuple[list[str], dict[str, str]]] = []

        def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
            ran.append((command[command.index("--state") :], env))
            told = json.dumps({"endpoint": "http://here/v1", "api_key": "secret"})
            return subprocess.CompletedProcess(command, int("broken.yaml" in command), told.encode())

        monkeypatch.setattr(subprocess, "run", run)
        return ran

    def test_it_is_stopped_also_after_an_error(self, commands: list[Any], tmp_path: Path) -> None:
        with (
            pytest.raises(KeyboardInterrupt),
            own_cluster(Path("a.yaml"), tmp_path, {"SPRAT__ROUTER__POLICY": "random"}) as endpoint,
        ):
            assert endpoint == Endpoint("http://here/v1", "secret")
            raise KeyboardInterrupt
        (up, environ), (down, _) = commands
        assert up == ["--state", str(tmp_path), "up", "a.yaml", "--no-examples", "--json"]
        assert environ["SPRAT__ROUTER__POLICY"] == "random"
        assert environ["SPRAT__GATEWAY__PORT"].isdecimal()
        assert down == ["--state", str(tmp_path), "down"]

    def test_one_that_does_not_start(self, commands: list[Any], tmp_path: Path) -> None:
        with pytest.raises(StartError, match="did not start"), own_cluster(Path("broken.yaml"), tmp_path, {}):
            pytest.fail("there is no cluster")
        assert len(commands) == 1


def made_up(data: Path, frozen: Path) -> tuple[tuple[Case, ...], dict[tuple[str, str], Answer]]:
    """The large model is always right. The small one is right on every intent that it is sure of (half of
    them), and on no call of a tool, sure or not."""
    cases = read_cases(data, frozen)
    answers = {}
    for number, case in enumerate(cases):
        sure = number % 4 in (1, 2)
        small_right = case.suite is Suite.INTENT and sure
        answers[case.id, "large"] = answered(case, "large", right=True)
        answers[case.id, "small"] = answered(
            case, "small", right=small_right, logprob=-0.01 if sure else -3 - number / 1000
        )
    return cases, answers


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the made-up answers."""
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    cases, answers = made_up(folder, freeze_all(folder, folder / "frozen.json"))
    return report_on(cases, answers, load_config(EXAMPLE, {}), seed=0)


class TestPolicies:
    def test_the_ends(self, report: dict[str, Any]) -> None:
        policies = report["policies"]
        assert policies["always_large"]["quality"] == 1.0
        assert policies["always_small"]["quality"] == 0.25
        assert policies["always_large"]["share_on_large"] == 1.0
        assert policies["always_small"]["latency_ms"] == {"mean": 100, "p50": 100, "p95": 100}
        against = policies["always_large"]["against_always_large"]
        assert against["quality"] == {"difference": 0.0, "ci": [0.0, 0.0]}

    def test_rules_are_those_of_the_yaml(self, report: dict[str, Any]) -> None:
        """laptop.yaml trusts the small model with what callers call narrow, and the cases do not."""
        rules = report["policies"]["rules"]
        assert rules["share_on_large"] == 1.0
        assert rules["quality"] == 1.0

    def test_the_oracle_pays_for_the_large_model_only_where_it_is_needed(
        self, report: dict[str, Any]
    ) -> None:
        oracle = report["policies"]["oracle"]
        assert oracle["quality"] == 1.0
        assert oracle["share_on_large"] == 0.75
        assert oracle["against_always_large"]["cost"]["difference"] < -0.2

    def test_a_cascade_keeps_the_sure_drafts_that_are_right(self, report: dict[str, Any]) -> None:
        """Sure calls of tools are as sure as the intents, and all wrong: the two are calibrated apart. It
        gives up about as much as it may."""
        cascade = report["policies"]["cascade"]
        assert 1 - 2 * MARGIN <= cascade["quality"] <= 1.0
        assert 0.75 - 2 * MARGIN <= cascade["share_on_large"] <= 0.75
        up = cascade["share_on_large"]
        assert cascade["latency_ms"]["mean"] == round((1 - up) * 100 + up * 1100)

    def test_a_cascade_of_the_yaml_is_scored_by_its_own_verifiers(self, report: dict[str, Any]) -> None:
        """That of laptop.yaml wants a mean logprob of -0.2: all sure drafts stay, right or not."""
        cascade = report["policies"]["yaml:cascade"]
        assert cascade["share_on_large"] == 0.5
        assert cascade["quality"] == 0.75
        assert cascade["latency_ms"]["mean"] == 0.5 * 100 + 0.5 * 1100

    def test_random_asks_each_half_of_the_time(self, report: dict[str, Any]) -> None:
        assert report["policies"]["random"]["share_on_large"] == pytest.approx(0.5, abs=0.15)

    def test_learned_knows_calls_of_tools_from_intents(self, report: dict[str, Any]) -> None:
        """Which intents the small model knows is not in their text; that it knows no tool is."""
        learned = report["policies"]["learned"]
        assert learned["quality"] > 0.9
        by_policy = report["curves"]["learned"]
        assert by_policy[0][1] == 0.25, "everything may be given up: always small"

    def test_the_report_holds_no_text_and_is_drawn(self, report: dict[str, Any]) -> None:
        text = json.dumps(report)
        assert "please pay" not in text
        assert "Area of triangle" not in text
        assert len(report["cases"]) == 2 * report["n"] == 320
        picture = plot_agents(report)
        assert picture.count("<circle") == len(report["policies"])
        assert "oracle: 100.0% right, 7" in picture

    def test_cases_without_both_answers_are_left_out(self, data: Path, frozen: Path) -> None:
        cases, answers = made_up(data, frozen)
        for case in cases[100:]:
            del answers[case.id, "large"]
        report = report_on(cases, answers, load_config(EXAMPLE, {}), seed=0)
        assert (report["n"], report["cases_frozen"]) == (100, 160)
        with pytest.raises(ConfigError, match="no case"):
            report_on(cases, {}, load_config(EXAMPLE, {}), seed=0)

    def test_learning_never_sees_the_case_that_it_decides(self, data: Path, frozen: Path) -> None:
        """Labels of coin throws cannot be learned: what is learned from other folds gives chance."""
        cases = read_cases(data, frozen)
        right = np.random.default_rng(5).random((len(cases), 2)) < 0.5
        small, large = (
            tuple(
                outcome_of(case, answered(case, tier, right=bool(right[row, column])), PRICE)
                for row, case in enumerate(cases)
            )
            for column, tier in enumerate(("small", "large"))
        )
        features = tuple(chat_features({**case.body, "model": "auto"}) for case in cases)
        scored = score(
            Asked(features, KeptPairs(small, large), {"cascade": right[:, 0]}),
            load_config(EXAMPLE, {}),
            seed=0,
        )
        best = max(scored.curves["learned"], key=lambda routed: float(routed.right.mean()))
        assert best.right.mean() < right.any(axis=1).mean() - 0.1


def outcome(*, right: bool) -> Outcome:
    return Outcome("c", Suite.INTENT, "m", right, 1, 1, 5, 7.0, "stop", -0.1, -0.1, 0, "accepted")


def test_differences_are_paired() -> None:
    """The same cases in both: a policy that is right exactly once more differs by just that, however much
    the cases differ among each other."""
    count = 100
    right = np.arange(count) % 2 == 0
    better = right.copy()
    better[1] = True
    pairs = [
        KeptPairs(tuple(column), tuple(column)).routed(np.zeros(count, dtype=bool))
        for column in ([outcome(right=bool(each)) for each in flags] for flags in (better, right))
    ]
    found = differences(*pairs, seed=0)
    assert found["quality"]["difference"] == 0.01
    assert 0.0 == found["quality"]["ci"][0] <= found["quality"]["ci"][1] <= 0.04
    assert found["cost"] == {"difference": 0.0, "ci": [0.0, 0.0]}


def test_the_live_report_compares_with_the_kept_answers(data: Path, frozen: Path) -> None:
    cases, kept = made_up(data, frozen)
    asked = cases[:8]
    live = {
        case.id: replace(kept[case.id, "small"], asked="auto", reason="rule:narrow_system_prompt")
        for case in asked[:7]
    }
    live[asked[7].id] = answered(asked[7], "large", right=False)
    report = live_report("rules", asked, live, kept, "large")
    assert (report["n"], report["share_on_large"]) == (8, 0.125)
    assert report["same_score"] == 0.875
    assert report["reasons"] == {"rule:narrow_system_prompt": 7, "model:large": 1}


class TestCommand:
    @pytest.fixture
    def kept(self, data: Path, frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """All answers are there: no cluster is started."""
        monkeypatch.setattr(
            "deployments.evaluation.run.read_cases", lambda folder: read_cases(folder, frozen)
        )
        folder = tmp_path / "answers"
        file = AnswerFile(folder / "answers.jsonl")
        for answer in made_up(data, frozen)[1].values():
            file.add(answer)
        return folder

    def run(self, data: Path, kept: Path, *more: str) -> Any:
        arguments = ["--data", str(data), "--answers", str(kept), *more]
        return CliRunner().invoke(agents, arguments, obj=StateFolder(kept / "state"))

    def test_json(self, data: Path, kept: Path) -> None:
        done = self.run(data, kept, "--json")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["n"] == 160
        assert report["prices"].startswith("declared")

    def test_table(self, data: Path, kept: Path) -> None:
        done = self.run(data, kept)
        assert done.exit_code == 0, done.output
        assert "always_large" in done.stdout
        assert "declared" in done.stdout

    def test_what_is_there_is_scored_without_a_cluster(self, data: Path, kept: Path) -> None:
        lines = (kept / "answers.jsonl").read_text().splitlines(keepends=True)
        (kept / "answers.jsonl").write_text("".join(lines[:200]))
        done = self.run(data, kept, "--json", "--kept-only")
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert (report["n"], report["cases_frozen"]) == (100, 160)

    def test_a_gateway_needs_a_key(self, data: Path, kept: Path) -> None:
        done = self.run(data, kept, "--gateway", "http://127.0.0.1:1/v1")
        assert done.exit_code == 2
        assert "--key" in done.output
