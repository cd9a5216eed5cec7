"""The simulator's arithmetic and texts: no HTTP here."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from deployments.sim.answer import END, write_text, write_words
from deployments.sim.engine import SimEngine
from deployments.sim.profile import LatencyProfile, at_once, inter_token_s, ttft_s
from deployments.sim.prompt import Prompt
from deployments.sim.schema_example import example
from deployments.sim.served_models import ServedModels
from deployments.sim.settings import OutputLength, SimSettings
from deployments.sim.slots import Slots
from deployments.sim.tokens import MARKER, count_tokens

PROFILE = LatencyProfile(
    prefill_tokens_per_s=1000.0,
    decode_tokens_per_s=50.0,
    base_ttft_ms=30.0,
    max_concurrency=4,
    slowdown_per_request=0.5,
)
SETTINGS = SimSettings(models=("base",), context_tokens=4096, profile=PROFILE, token="t")


def words(prompt: str = "hello", limit_tokens: int = 20, **changes):
    options = {"limit_is_stated": True, "seed": 0, "stops": (), "settings": SETTINGS} | changes
    return write_words(Prompt.of_text(prompt), limit_tokens, **options)


class TestProfile:
    def test_alone_a_request_gets_the_stated_rates(self):
        assert ttft_s(PROFILE, prompt_tokens=100, running=1) == pytest.approx(0.030 + 0.100)
        assert inter_token_s(PROFILE, running=1) == pytest.approx(0.020)

    def test_each_further_request_slows_all_of_them(self):
        assert ttft_s(PROFILE, prompt_tokens=100, running=3) == pytest.approx(0.030 + 0.200)
        assert inter_token_s(PROFILE, running=3) == pytest.approx(0.040)

    def test_at_once_takes_no_time_however_many_run(self):
        profile = at_once()
        assert ttft_s(profile, prompt_tokens=10**6, running=500) == 0
        assert inter_token_s(profile, running=500) == 0

    def test_base_ttft_is_not_stretched(self):
        profile = replace(PROFILE, prefill_tokens_per_s=math.inf)
        assert ttft_s(profile, prompt_tokens=100, running=4) == pytest.approx(0.030)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prefill_tokens_per_s", 0.0),
            ("decode_tokens_per_s", -1.0),
            ("decode_tokens_per_s", math.nan),
            ("base_ttft_ms", -1.0),
            ("base_ttft_ms", math.inf),
            ("slowdown_per_request", -0.1),
            ("max_concurrency", 0),
        ],
    )
    def test_a_wrong_value_is_named(self, name, value):
        with pytest.raises(ValueError, match=name):
            replace(PROFILE, **{name: value})


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("models", ()),
            ("token", ""),
            ("context_tokens", 1),
            ("drawn_tokens", (9, 3)),
            ("fail_after_tokens", -1),
        ],
    )
    def test_a_wrong_value_is_named(self, name, value):
        with pytest.raises(ValueError, match=name):
            replace(SETTINGS, **{name: value})

    def test_the_token_is_not_shown(self):
        assert "sesame" not in repr(replace(SETTINGS, token="sesame"))


class TestSlots:
    async def test_waiters_are_served_in_order(self):
        slots = Slots(1)
        await slots.acquire()
        served: list[int] = []

        async def wait(number: int) -> None:
            await slots.acquire()
            served.append(number)
            slots.release()

        waiting = [asyncio.create_task(wait(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert (slots.running, slots.waiting) == (1, 3)
        slots.release()
        await asyncio.gather(*waiting)
        assert served == [0, 1, 2]
        assert (slots.running, slots.waiting) == (0, 0)

    async def test_a_waiter_that_leaves_costs_no_slot(self):
        slots = Slots(1)
        await slots.acquire()
        first = asyncio.create_task(slots.acquire())
        second = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        assert slots.waiting == 1
        slots.release()
        await asyncio.wait_for(second, 1)
        assert (slots.running, slots.waiting) == (1, 0)

    async def test_a_waiter_cancelled_in_the_turn_of_its_grant_passes_the_slot_on(self):
        slots = Slots(1)
        await slots.acquire()
        first = asyncio.create_task(slots.acquire())
        second = asyncio.create_task(slots.acquire())
        await asyncio.sleep(0)
        slots.release()
        first.cancel()
        await asyncio.wait_for(second, 1)
        assert first.cancelled()
        assert (slots.running, slots.waiting) == (1, 0)


class TestEngine:
    async def test_tokens_come_at_the_profile_s_times(self):
        engine = SimEngine(replace(PROFILE, slowdown_per_request=0.0))
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        arrivals_s: list[float] = []
        async with engine.sequence(prompt_tokens=10) as pace:
            for _ in range(4):
                await pace.next_token()
                arrivals_s.append(loop.time() - start_s)
        # Never early; how late depends on who else has the processor.
        for arrival_s, due_s in zip(arrivals_s, [0.040, 0.060, 0.080, 0.100], strict=True):
            assert due_s - 0.001 <= arrival_s < due_s + 0.2
        assert (engine.prompt_tokens_total, engine.output_tokens_total) == (10, 4)

    async def test_a_cancelled_sequence_frees_its_slot(self):
        engine = SimEngine(PROFILE)

        async def run() -> None:
            async with engine.sequence(prompt_tokens=10) as pace:
                await pace.tokens(10_000)

        task = asyncio.create_task(run())
        await asyncio.sleep(0.01)
        assert engine.slots.running == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.slots.running == 0

    async def test_at_once_counts_every_token(self):
        engine = SimEngine(at_once())
        async with engine.sequence(prompt_tokens=1) as pace:
            await pace.tokens(0)
            await pace.tokens(500)
        assert engine.output_tokens_total == 500


class TestTokens:
    @pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("é" * 4, 2)])
    def test_four_bytes_are_a_token(self, text, tokens):
        assert count_tokens(text) == tokens


class TestWords:
    def test_the_limit_is_the_length(self):
        answer = words(limit_tokens=20)
        assert len(answer.tokens) == 20
        assert answer.finish_reason == "length"

    def test_every_answer_is_marked_even_the_shortest(self):
        assert words(limit_tokens=1).text == MARKER
        assert words(limit_tokens=50).text.startswith(MARKER)

    def test_same_prompt_and_seed_same_answer(self):
        assert words() == words()
        assert words().text != words("other").text
        assert words().text != words(seed=1).text
        assert words().text != words(settings=replace(SETTINGS, seed=1)).text

    def test_without_a_stated_limit_the_length_is_drawn_and_the_answer_ends_itself(self):
        answer = words(limit_tokens=4000, limit_is_stated=False)
        assert 16 <= len(answer.tokens) <= 256
        assert answer.finish_reason == "stop"
        assert answer.tokens[-1] == END

    def test_drawn_lengths_differ_by_prompt_and_stay_below_the_limit(self):
        drawn = replace(SETTINGS, output_length=OutputLength.DRAWN)
        answers = [words(str(number), limit_tokens=100, settings=drawn) for number in range(40)]
        assert len({len(answer.tokens) for answer in answers}) > 10
        assert max(len(answer.tokens) for answer in answers) == 100
        assert {answer.finish_reason for answer in answers} == {"stop", "length"}

    def test_a_stop_string_ends_the_text_before_it_and_pays_for_its_tokens(self):
        plain = words(limit_tokens=50)
        stop = plain.tokens[3].strip() + " " + plain.tokens[4][:2]
        answer = words(limit_tokens=50, stops=("not there", stop))
        assert answer.text == "".join(plain.tokens[:3])
        assert len(answer.tokens) == 5
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)

    def test_a_stop_string_cannot_remove_the_marker(self):
        assert words(stops=("sim", " ")).text.startswith(MARKER)


class TestText:
    def test_a_given_text_is_cut_into_tokens_and_ends(self):
        answer = write_text("abcdefgh", prompt_tokens=1, limit_tokens=10)
        assert answer.tokens == ("abcd", "efgh", END)
        assert answer.finish_reason == "stop"

    def test_a_given_text_over_the_limit_is_cut_off(self):
        answer = write_text("abcdefgh", prompt_tokens=1, limit_tokens=2)
        assert answer.text == "abcdefgh"
        assert answer.finish_reason == "length"


class TestSchemaExample:
    def test_required_properties_are_filled(self):
        schema = {
            "type": "object",
            "required": ["kind", "count", "tags", "inner", "free"],
            "properties": {
                "kind": {"enum": ["a", "b"]},
                "count": {"type": "integer", "minimum": 3},
                "tags": {"type": "array", "minItems": 2, "items": {"type": "string", "maxLength": 3}},
                "inner": {"$ref": "#/$defs/Inner"},
                "optional": {"type": "string"},
            },
            "$defs": {
                "Inner": {"type": "object", "required": ["yes"], "properties": {"yes": {"type": "boolean"}}}
            },
        }
        assert example(schema) == {
            "kind": "a",
            "count": 3,
            "tags": ["[si", "[si"],
            "inner": {"yes": False},
            "free": "[simulated]",
        }

    def test_a_schema_that_refers_to_itself_ends(self):
        node = {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}}
        assert isinstance(example(node), dict)

    def test_a_schema_cannot_grow_without_bound(self):
        bomb = {"type": "boolean"}
        for _ in range(12):
            bomb = {"type": "array", "minItems": 900, "items": bomb}
        assert len(str(example(bomb))) < 200_000

    @pytest.mark.parametrize(
        "schema",
        [
            {},
            {"$ref": "#/missing"},
            {"type": "integer", "minimum": math.inf},
            {"type": 5},
            {"required": "x"},
            None,
        ],
    )
    def test_nonsense_gives_some_value(self, schema):
        example(schema)


def test_adapters_come_and_go_and_the_base_model_stays():
    served = ServedModels(("base", "a@1"))
    served.load_adapter("b@1")
    served.unload_adapter("a@1")
    served.unload_adapter("never@1")
    assert ("base" in served, "a@1" in served, "b@1" in served) == (True, False, True)
    assert served.adapters == ("b@1",)
