"""Verifiers of a cascade: drafts that are accepted and drafts that are refused, and callers who try to keep
the gateway busy."""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from cluster.config.verifiers import VerifierConfig, VerifierConfigs
from cluster.router.verifiers import Draft, Expected, Tool, ToolCall, Verdict, Verification
from cluster.router.verifiers.agreement import AgreementVerifier
from cluster.router.verifiers.canonical import canonical
from cluster.router.verifiers.confidence import fit_confidence
from cluster.router.verifiers.json_schema import BUDGET_S, NotJudged, violation
from cluster.router.verifiers.json_text import MAX_CHARACTERS

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0},
        "mood": {"enum": ["good", "bad"]},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "next": {"$ref": "#"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("get_time")
TOOLS = (WEATHER, CLOCK)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("aB1 ", max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


def verification(*configs: dict[str, Any]) -> Verification:
    return Verification.of(TypeAdapter(list[VerifierConfig]).validate_python(list(configs)))


def call(name: str = "get_weather", arguments: str = '{"city": "Rome"}') -> Draft:
    return Draft("", (ToolCall(name, arguments),), "tool_calls")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# --- schema


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "Ada", "age": 36}', "accepted"),
        (' \n{"age": 36.0, "name": "Ada", "tags": ["a", "b"]}\n', "accepted"),
        ('{"name": "Ada", "age": 36, "next": {"name": "Bob", "age": 1}}', "accepted"),
        ('{"name": "Ada"}', "schema:required"),
        ('{"name": "Ada", "age": "36"}', "schema:type"),
        ('{"name": "Ada", "age": true}', "schema:type"),
        ('{"name": "Ada", "age": -1}', "schema:minimum"),
        ('{"name": "ada", "age": 36}', "schema:pattern"),
        ('{"name": "Ada", "age": 36, "mood": "fine"}', "schema:enum"),
        ('{"name": "Ada", "age": 36, "tags": ["a", "a"]}', "schema:uniqueItems"),
        ('{"name": "Ada", "age": 36, "next": {"name": "Bob"}}', "schema:required"),
        ('{"name": "Ada", "age": 36, "more": 1}', "schema:additionalProperties"),
        ("[]", "schema:type"),
        ("", "schema:empty"),
        ("Ada is 36.", "schema:not_json"),
        ('```json\n{"name": "Ada", "age": 36}\n```', "schema:fenced"),
        ('Here you are: {"name": "Ada", "age": 36}', "schema:chatty"),
        ('{"name": "Ada", "age": 36} Anything else?', "schema:chatty"),
        ('{"name": "Ada", "age": NaN}', "schema:not_json"),
        ("{'name': 'Ada', 'age': 36}", "schema:not_json"),
        (nested(100_000), "schema:not_json"),
        ('"' + "a" * MAX_CHARACTERS + '"', "schema:too_long"),
    ],
)
def test_an_answer_is_valid_json_by_its_schema(text: str, reason: str) -> None:
    assert verification({"kind": "schema"}).judge(Draft(text), Expected(schema=PERSON)).reason == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "accepted"),
        ("[1]", "schema:not_an_object"),
        ("3", "schema:not_an_object"),
        ("x", "schema:not_json"),
    ],
)
def test_json_without_a_schema_is_any_object(text: str, reason: str) -> None:
    assert verification({"kind": "schema"}).judge(Draft(text), Expected(json=True)).reason == reason


def test_a_cut_off_answer_is_called_so() -> None:
    draft = Draft('{"name": "Ad', finish_reason="length")
    assert verification({"kind": "schema"}).judge(draft, Expected(schema=PERSON)).reason == "schema:cut_off"


def test_what_no_schema_is_for_is_accepted() -> None:
    judge = verification({"kind": "schema"}).judge
    assert judge(Draft("plain text"), Expected()).accepted
    assert judge(call(), Expected(schema=PERSON, tools=TOOLS)).accepted


def doubling(levels: int) -> dict[str, Any]:
    """Each definition names the next one twice."""
    names = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": names | {f"a{levels}": {}}, "$ref": "#/$defs/a0"}


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


TWICE_PER_LEVEL = {
    "$defs": {"a": {"allOf": [{"properties": {"x": {"$ref": "#/$defs/a"}}}] * 2}},
    "$ref": "#/$defs/a",
}
ANCHORS = {"$defs": {str(n): {"$anchor": f"a{n}"} for n in range(2000)}, "items": {"$ref": "#a5"}}
BACKTRACKS = "^(a|aa)+$"
WORD = "a" * 60 + "!"


@contextmanager
def within_its_budget() -> Iterator[None]:
    """Without the garbage of all tests before, whose collection takes half a second."""
    gc.disable()
    began = time.thread_time()
    try:
        yield
        assert time.thread_time() - began < BUDGET_S * 10
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        pytest.param(doubling(40), 1, "too_complex", id="references that double"),
        pytest.param(TWICE_PER_LEVEL, deep(60), "too_complex", id="properties that double"),
        pytest.param({"$ref": "#"}, 1, "too_complex", id="a reference to itself"),
        pytest.param(ANCHORS, [1] * 5000, "too_complex", id="anchors"),
        pytest.param(
            {"uniqueItems": True}, [{"a": n} for n in range(60_000)], "too_complex", id="many items"
        ),
        pytest.param({"pattern": BACKTRACKS}, WORD, "pattern", id="pattern that backtracks"),
        pytest.param(
            {"patternProperties": {BACKTRACKS: False}, "additionalProperties": False},
            {WORD: 1},
            "additionalProperties",
            id="names that backtrack",
        ),
        pytest.param(
            {"pattern": "(.*){1,1000}[bc]"}, "a" * 60_000, "unsupported", id="pattern on a long text"
        ),
        pytest.param({"pattern": "((a{1000}){1000}){1000}"}, "a", "unsupported", id="repeats in repeats"),
        pytest.param({"pattern": "a(?=b)"}, "ab", "unsupported", id="look-ahead"),
        pytest.param({"$ref": "https://192.0.2.1/schema"}, 1, "unsupported", id="remote reference"),
        pytest.param({"$ref": "#/$defs/none"}, 1, "unsupported", id="reference to nothing"),
        pytest.param({"properties": {"a": False}}, {"a": 1}, "false_schema", id="nothing is allowed"),
        pytest.param({"unevaluatedProperties": False}, {"a": 1}, "unsupported", id="unevaluated"),
        pytest.param(
            {
                "properties": {
                    "x": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": BACKTRACKS}
                }
            },
            {"x": WORD},
            "unsupported",
            id="another dialect inside",
        ),
    ],
)
def test_hostile_schemas_are_judged_in_bounded_time(schema: dict[str, Any], value: Any, said: str) -> None:
    with within_its_budget():
        try:
            found = violation(schema, value)
        except NotJudged as error:
            found = str(error)
    assert found == said


@given(st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=6, max_size=6), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_no_tangle_of_references_holds_the_gateway(named: list[list[int]], levels: int) -> None:
    """Definitions that name each other, in place and below."""
    names = {
        f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{other}"} for other in others] or [{}]}
        | {"properties": {"x": {"$ref": f"#/$defs/a{(n + 1) % 6}"}}}
        for n, others in enumerate(named)
    }
    with within_its_budget():
        try:
            violation(
                {"$defs": names, "allOf": [{"$ref": f"#/$defs/{name}"} for name in names]}, deep(levels)
            )
        except NotJudged as error:
            assert str(error) == "too_complex"  # noqa: PT017


def test_lookups_of_references_never_leave_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        pytest.fail("a schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(NotJudged, match="unsupported"):
        violation({"$id": "https://192.0.2.1/a", "$ref": "b.json"}, 1)


@pytest.mark.parametrize("dialect", ["http://json-schema.org/draft-07/schema#", "urn:unknown", ""])
def test_the_dialect_that_a_schema_names_is_used(dialect: str) -> None:
    as_tuple = {"$schema": dialect, "items": [{"type": "string"}]}
    if "draft-07" in dialect:
        assert violation(as_tuple, [1]) == "type"
    else:  # what 2020-12 does not know
        assert (
            verification({"kind": "schema"}).judge(Draft("[1]"), Expected(as_tuple)).reason == "schema:error"
        )


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "integer"},
            {"type": ["string", "null"]},
            {"enum": [1, "a", None, [1]]},
            {"const": 1},
            {"minimum": 0},
            {"maxLength": 2},
            {"pattern": "^a"},
            {"required": ["a"]},
            {"uniqueItems": True},
            {"minItems": 1},
            {},
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda all_: {"anyOf": all_}),
        st.lists(inner, min_size=1, max_size=3).map(lambda all_: {"oneOf": all_}),
        inner.map(lambda one: {"not": one}),
        inner.map(lambda one: {"items": one}),
        st.tuples(inner, inner).map(
            lambda two: {
                "properties": {"a": two[0]},
                "patternProperties": {"^b": two[1]},
                "additionalProperties": False,
            }
        ),
        st.tuples(inner, inner).map(
            lambda two: {"properties": {"a": two[0]}, "additionalProperties": two[1]}
        ),
    ),
    max_leaves=6,
)


@given(SCHEMAS, JSON)
@settings(max_examples=150, deadline=None)
def test_the_verdict_is_that_of_the_library(schema: dict[str, Any], value: Any) -> None:
    """With our own patterns, names, uniqueness and budget in between."""
    assert (violation(schema, value) is None) == Draft202012Validator(schema).is_valid(value)


# --- tools


@pytest.mark.parametrize(
    ("draft", "choice", "reason"),
    [
        (call(), "auto", "accepted"),
        (call(), "required", "accepted"),
        (call(), "get_weather", "accepted"),
        (call("get_time", "{}"), "auto", "accepted"),
        (call("get_time", '{"zone": 1}'), "auto", "accepted"),
        (Draft("It is noon."), "auto", "accepted"),
        (Draft("It is noon."), "none", "accepted"),
        (Draft('{"name": "Ada"}'), "auto", "accepted"),
        (Draft('{"name": "Ada", "arguments": {}}'), "auto", "accepted"),
        (Draft("It is noon."), "required", "tools:missing"),
        (Draft("It is noon."), "get_weather", "tools:missing"),
        (call("get_time", "{}"), "get_weather", "tools:wrong_tool"),
        (call(), "none", "tools:not_wanted"),
        (call("weather"), "auto", "tools:unknown_name"),
        (call(arguments="{"), "auto", "tools:not_json"),
        (call(arguments=""), "auto", "tools:empty"),
        (call(arguments='["Rome"]'), "auto", "tools:not_an_object"),
        (call("get_time", "null"), "auto", "tools:not_an_object"),
        (call(arguments="{}"), "auto", "tools:required"),
        (call(arguments='{"city": 7}'), "auto", "tools:type"),
        (call(arguments='{"city": "Rome", "days": "2"}'), "auto", "tools:type"),
        (call(arguments='{"city": "Rome", "unit": "C"}'), "auto", "tools:additionalProperties"),
        (Draft("<tool_call>\n{}"), "auto", "tools:call_as_text"),
        (Draft('{"name": "get_weather", "arguments": {"city": "Rome"}}'), "auto", "tools:call_as_text"),
    ],
)
def test_calls_are_what_the_tools_allow(draft: Draft, choice: str, reason: str) -> None:
    expected = Expected(tools=TOOLS, tool_choice=choice)
    assert verification({"kind": "tools"}).judge(draft, expected).reason == reason


def test_every_call_of_a_draft_is_looked_at() -> None:
    both = Draft("", (ToolCall("get_time", "{}"), ToolCall("get_weather", "{}")))
    assert verification({"kind": "tools"}).judge(both, Expected(tools=TOOLS)).reason == "tools:required"


def test_hundreds_of_calls_share_one_budget() -> None:
    """Each of them would fit."""
    dear = Tool("dear", doubling(8))
    violation(doubling(8), {})
    many = Draft("", (ToolCall("dear", "{}"),) * 500)
    assert verification({"kind": "tools"}).judge(many, Expected(tools=(dear,))).reason == "tools:too_complex"


# --- confidence


@pytest.mark.parametrize(
    ("logprobs", "reason"),
    [
        ((-0.1, -0.2), "accepted"),
        ((-0.5, -0.5), "accepted"),
        ((0.0, -2.0), "confidence:mean<-0.50"),
        ((-3.1,) + (0.0,) * 50, "confidence:min<-3.00"),
        ((-0.1, math.nan), "confidence:mean<-0.50"),
        ((-0.1, -math.inf), "confidence:mean<-0.50"),
        ((), "confidence:no_logprobs"),
        (None, "confidence:no_logprobs"),
    ],
)
def test_tokens_are_as_sure_as_asked_for(logprobs: tuple[float, ...] | None, reason: str) -> None:
    sure = verification({"kind": "confidence", "mean_logprob": -0.5, "min_logprob": -3})
    assert sure.needs_logprobs
    draft = Draft("x", token_logprobs=logprobs)
    assert sure.judge(draft, Expected()).reason == reason
    assert sure.judge_beginning(draft, Expected()).reason == reason


def test_nan_is_no_confidence_by_the_least_token_alone() -> None:
    least = verification({"kind": "confidence", "min_logprob": -3})
    assert not least.judge(Draft("x", token_logprobs=(math.nan,)), Expected()).accepted


def test_a_calibration_turns_logprobs_into_chances() -> None:
    points = [[-2.0, 0.2], [-1.0, 0.6], [0.0, 0.9]]
    sure = verification({"kind": "confidence", "min_p": 0.7, "calibration": points})
    verdict = sure.judge(Draft("x", token_logprobs=(-0.5, -0.5)), Expected())
    assert (verdict.accepted, verdict.confidence) == (True, pytest.approx(0.75))
    verdict = sure.judge(Draft("x", token_logprobs=(-1.5,)), Expected())
    assert (verdict.reason, verdict.confidence) == ("confidence:p<0.70", pytest.approx(0.4))


@given(
    st.lists(st.tuples(st.floats(-5, 0).map(lambda x: round(x, 1)), st.booleans()), min_size=1, max_size=60)
)
@settings(deadline=None)
def test_fitted_points_are_a_calibration_that_the_yaml_takes(drafts: list[tuple[float, bool]]) -> None:
    points = fit_confidence([score for score, _ in drafts], [right for _, right in drafts])
    verification({"kind": "confidence", "min_p": 0.5, "calibration": points})


def test_fitted_chances_follow_the_labels() -> None:
    scores = [-n / 100 for n in range(100)]
    points = fit_confidence(scores, [score > -0.5 for score in scores])
    assert points[0][1] < 0.1
    assert points[-1][1] > 0.9


@pytest.mark.parametrize(("scores", "right"), [([], []), ([-1.0], [True, False]), ([math.nan], [True])])
def test_labels_that_do_not_fit_are_refused(scores: list[float], right: list[bool]) -> None:
    with pytest.raises(ValueError, match="as many labels as scores"):
        fit_confidence(scores, right)


# --- refusal

DECLINED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with this request.",  # noqa: RUF001
    "Sorry, I can't provide medical advice.",
    "I cannot fulfill your request.",
    "I am unable to answer this question.",
    "I'm not able to browse the internet.",
    "Unfortunately, I cannot access external links.",
    "**I must decline to answer.**",
    "Thank you for asking! I'm afraid I can't do that.",
    "As an AI language model, I do not have opinions.",
    "As an AI, I can't feel anything.",
    "I don't have access to real-time data.",
    "I am just an AI and can't know that.",
    "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "Als KI-Sprachmodell kann ich keine Auskunft geben.",
    "Leider kann ich diese Frage nicht beantworten.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "En tant que modèle de langage, je n'ai pas d'avis.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Como modelo de lenguaje, no tengo opiniones.",
    "Mi dispiace, ma non posso aiutarti.",
    "Desculpe, mas não posso ajudar com isso.",
    "Het spijt me, maar ik kan u daar niet mee helpen.",
    "Извините, но я не могу помочь с этим.",  # noqa: RUF001
    "很抱歉，我无法回答这个问题。",  # noqa: RUF001
    "作为一个人工智能语言模型，我没有意见。",  # noqa: RUF001
    "申し訳ありませんが、その質問にはお答えできません。",
    "죄송하지만 도와드릴 수 없습니다.",
]
ANSWERS = [
    "Paris.",
    "no",
    "{}",
    "Dear Tom, I'm sorry, but I can't come on Friday.",
    "The customer wrote: \"I'm sorry, but I can't help you.\"",
    '{"reply": "I cannot help with that"}',
    "As an AI engineer, you will build models.",
    "As a language model grows, its loss falls.",
    "Sorry is a song by Justin Bieber.",
    "I can help with that: run `make`.",
    "Unfortunately, the train is late.",
    "Es tut mir leid, ich kann am Freitag nicht kommen.",
    "Como inteligencia artificial se conoce un campo de la informática.",
    "我无法想象没有音乐的世界。",
    "A long story. " * 20 + "I'm sorry, but I can't help with that.",
]


@pytest.mark.parametrize("text", DECLINED)
def test_refusals_are_seen(text: str) -> None:
    verifier = verification({"kind": "refusal"})
    assert verifier.judge(Draft(text), Expected()).reason == "refusal:declined"
    assert verifier.judge_beginning(Draft(f"  {text} More"), Expected()).reason == "refusal:declined"


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_that_only_sound_like_refusals_pass(text: str) -> None:
    assert verification({"kind": "refusal"}).judge(Draft(text), Expected()).accepted


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (Draft(""), "refusal:empty"),
        (Draft(" \n"), "refusal:empty"),
        (call(), "accepted"),
        (Draft("And then", finish_reason="length"), "refusal:cut_off"),
        (Draft("Well,", finish_reason="content_filter"), "refusal:content_filter"),
    ],
)
def test_no_answer_is_refused(draft: Draft, reason: str) -> None:
    assert verification({"kind": "refusal"}).judge(draft, Expected()).reason == reason


def test_answers_may_be_cut_off_where_the_yaml_says_so() -> None:
    short = verification({"kind": "refusal", "allow_cut_off": True})
    assert short.judge(Draft("yes", finish_reason="length"), Expected()).accepted


def test_a_beginning_may_be_empty() -> None:
    assert verification({"kind": "refusal"}).judge_beginning(Draft(""), Expected()).accepted


# --- agreement


def drafts(*texts: str) -> Draft:
    return Draft(texts[0], others=tuple(map(Draft, texts[1:])))


@pytest.mark.parametrize(
    ("draft", "accepted", "chosen"),
    [
        (drafts("Paris", "paris.", " PARIS!"), True, 0),
        (drafts("Lyon", "Paris", "paris"), True, 1),
        (drafts('{"a": 1, "b": [2.0]}', "Lyon", '{"b":[2],"a":1.0}'), True, 0),
        (drafts("[1, 2]", "[2, 1]", "[1,3]"), False, 0),
        (drafts("Paris", "Lyon", "Nice"), False, 0),
        (drafts("Paris", "Paris"), True, 0),  # two of three
        (drafts("Paris"), False, 0),
        (Draft("", call().tool_calls, others=(call(arguments='{"city":"Rome"}'), call("get_time"))), True, 0),
        (drafts("a b", "a  b", "ab"), True, 0),
    ],
)
def test_drafts_agree(draft: Draft, accepted: bool, chosen: int) -> None:
    verdict = verification({"kind": "agreement", "drafts": 3}).judge(draft, Expected())
    assert (verdict.accepted, verdict.chosen) == (accepted, chosen)
    assert verdict.reason == ("accepted" if accepted else "agreement:share<0.60")


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8), st.floats(0.01, 1))
def test_the_chosen_draft_is_the_most_frequent(texts: list[str], share: float) -> None:
    verdict = AgreementVerifier(len(texts), share).judge(drafts(*texts), Expected())
    most = max(texts.count(text) for text in texts)
    assert verdict.accepted == (most / len(texts) >= share)
    if verdict.accepted:
        assert texts.count(texts[verdict.chosen]) == most
        assert verdict.chosen == texts.index(texts[verdict.chosen])


@given(JSON)
def test_equal_values_have_one_canonical_text(value: Any) -> None:
    again = json.loads(json.dumps(value, indent=2))
    assert canonical(again) == canonical(value)
    assert json.loads(canonical(value)) == value


# --- all of them

ALL: list[dict[str, Any]] = [
    {"kind": "refusal"},
    {"kind": "schema"},
    {"kind": "tools"},
    {"kind": "confidence", "mean_logprob": -1.0, "min_p": 0.5, "calibration": [[-2.0, 0.1], [0.0, 0.9]]},
]


def test_the_first_refusal_is_the_reason() -> None:
    both = Draft("nothing", finish_reason="length")
    expected = Expected(schema=PERSON)
    assert verification(*ALL).judge(both, expected).reason == "refusal:cut_off"
    assert verification(*reversed(ALL)).judge(both, expected).reason == "confidence:no_logprobs"


def test_others_judge_the_draft_that_agreement_chose() -> None:
    """Wherever `agreement` stands."""
    said = drafts("oops", '{"a": 1}', '{"a":1}')
    for configs in ({"kind": "schema"}, {"kind": "agreement"}), ({"kind": "agreement"}, {"kind": "schema"}):
        verdict = verification(*configs).judge(said, Expected(json=True))
        assert verdict == Verdict(accepted=True, reason="accepted", chosen=1)


def test_what_verifiers_need_of_the_engine() -> None:
    plain = verification({"kind": "schema"}, {"kind": "python", "function": "a:b"})
    assert (plain.drafts, plain.needs_logprobs) == (1, False)
    dear = verification({"kind": "agreement", "drafts": 5}, {"kind": "confidence", "min_logprob": -9})
    assert (dear.drafts, dear.needs_logprobs) == (5, True)


def test_a_verifier_that_raises_refuses_and_is_counted() -> None:
    broken = verification({"kind": "schema"}, {"kind": "refusal"})
    for _ in range(2):
        verdict = broken.judge(Draft("{}"), Expected(schema={"properties": 5}))
        assert (verdict.accepted, verdict.reason) == (False, "schema:error")
    assert broken.errors == {"schema": 2}


def test_only_confidence_and_refusal_judge_a_beginning() -> None:
    beginning = Draft("Well, ", token_logprobs=(-0.1,))
    assert verification(*ALL, {"kind": "agreement"}).judge_beginning(beginning, Expected(PERSON)).accepted
    unsure = Draft("Well, ", token_logprobs=(-4.0,))
    assert verification(*ALL).judge_beginning(unsure, Expected(PERSON)).reason == "confidence:mean<-1.00"


def test_a_usual_answer_is_judged_in_less_than_a_millisecond() -> None:
    """Asserted at five: the machine is shared."""
    text = json.dumps({"name": "Ada", "age": 36, "tags": ["a", "b", "c"], "next": {"name": "Bob", "age": 1}})
    draft = Draft(text, call().tool_calls, "stop", (-0.1,) * 200)
    every, expected = verification(*ALL), Expected(schema=PERSON, tools=TOOLS)
    assert every.judge(draft, expected).accepted
    assert median_s(lambda: every.judge(draft, expected)) < 0.005


def median_s(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(50):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


# --- configuration


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "confidence"}, "give at least one of"),
        ({"kind": "confidence", "min_p": 0.5}, "min_p needs calibration"),
        ({"kind": "confidence", "mean_logprob": 0.5}, "less than or equal to 0"),
        ({"kind": "confidence", "min_p": 0.5, "calibration": [[-1, 0.5], [-2, 0.6]]}, "must rise"),
        ({"kind": "confidence", "min_p": 0.5, "calibration": [[-2, 0.5], [-1, 0.4]]}, "must rise"),
        ({"kind": "agreement", "drafts": 1}, "greater than or equal to 2"),
        ({"kind": "agreement", "share": 0}, "greater than 0"),
        ({"kind": "python", "function": "os.path"}, "match pattern"),
        ({"kind": "python", "function": "a:b", "timeout_s": 0}, "greater than 0"),
        ({"kind": "telepathy"}, "does not match any of the expected tags"),
        ({"kind": "schema", "strict": True}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        verification(config)


def test_a_kind_stands_once() -> None:
    check = TypeAdapter(VerifierConfigs).validate_python
    check([{"kind": "python", "function": "a:b"}, {"kind": "python", "function": "a:c"}, {"kind": "schema"}])
    with pytest.raises(ValidationError, match="schema stands twice"):
        check([{"kind": "schema"}, {"kind": "tools"}, {"kind": "schema"}])
