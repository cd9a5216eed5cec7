"""What every engine must do on its HTTP port: one set of scenarios, one entry per engine in `ENGINES`.

An entry is a context manager that starts the engine on a loopback port and yields how to reach it. Tests
use only what an engine can be asked over HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import aiohttp
import pytest
from aiohttp import web

from deployments.sim.app import SimSettings, make_app
from deployments.sim.profile import LatencyProfile

TOKEN = "t0ken-of-the-gateway-and-nobody-else"


@dataclass(frozen=True)
class EngineUnderTest:
    """`slots` is how many sequences it runs at a time. The metric names differ between engines."""

    url: str
    token: str
    model: str
    adapter: str | None
    context_tokens: int
    slots: int
    running_metric: str
    waiting_metric: str
    simulated: bool


SIM_SETTINGS = SimSettings(
    models=("base", "topic@1"),
    context_tokens=512,
    profile=LatencyProfile(
        prefill_tokens_per_s=20_000.0,
        decode_tokens_per_s=200.0,
        base_ttft_ms=20.0,
        max_concurrency=2,
        slowdown_per_request=0.0,
    ),
    token=TOKEN,
)


@contextmanager
def hosted(app: web.Application) -> Iterator[str]:
    """Serves on a loopback port from a thread, so that the engine does not share the tests' event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, str]:
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return runner, f"http://{host}:{port}"

    runner, url = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def sim(settings: SimSettings = SIM_SETTINGS) -> Iterator[EngineUnderTest]:
    with hosted(make_app(settings)) as url:
        yield EngineUnderTest(
            url=url,
            token=settings.token,
            model=settings.models[0],
            adapter=settings.models[1],
            context_tokens=settings.context_tokens,
            slots=settings.profile.max_concurrency,
            running_metric="sprat_sim_requests_running",
            waiting_metric="sprat_sim_requests_waiting",
            simulated=True,
        )


ENGINES: dict[str, Callable[[], AbstractContextManager[EngineUnderTest]]] = {"sim": sim}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request) -> Iterator[EngineUnderTest]:
    with ENGINES[request.param]() as started:
        yield started


@pytest.fixture
async def session(engine: EngineUnderTest) -> AsyncIterator[aiohttp.ClientSession]:
    async with session_for(engine) as opened:
        yield opened


def session_for(engine: EngineUnderTest) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        engine.url,
        headers={"Authorization": f"Bearer {engine.token}"},
        timeout=aiohttp.ClientTimeout(total=60),
    )


def chat_body(engine: EngineUnderTest, **changes) -> dict:
    return {
        "model": engine.model,
        "messages": [{"role": "user", "content": "Name three fish."}],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
    } | changes


def completion_body(engine: EngineUnderTest, **changes) -> dict:
    return {
        "model": engine.model,
        "prompt": "Three fish are",
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
    } | changes


async def ask(session: aiohttp.ClientSession, path: str, body: object) -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(path, data=raw, headers={"content-type": "application/json"}) as response:
        return response.status, await response.json()


async def events(session: aiohttp.ClientSession, path: str, body: dict) -> list[str]:
    """What stood behind `data: ` in each event."""
    async with session.post(path, json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        text = await response.text()
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


async def chunks(session: aiohttp.ClientSession, path: str, body: dict) -> list[dict]:
    found = await events(session, path, body)
    assert found[-1] == "[DONE]"
    return [json.loads(each) for each in found[:-1]]


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as response:
        assert response.status == 200
        page = await response.text()
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
    ]
    assert values, f"{name} is not on the metrics page"
    return sum(values)


async def until_metric(
    session: aiohttp.ClientSession, name: str, wanted: float, within_s: float = 5.0
) -> float:
    """Seconds until the metric has the value."""
    start_s = time.monotonic()
    while (value := await metric(session, name)) != wanted:
        waited_s = time.monotonic() - start_s
        assert waited_s < within_s, f"{name} is {value} after {waited_s:.1f} s, wanted {wanted}"
        await asyncio.sleep(0.01)
    return time.monotonic() - start_s


@asynccontextmanager
async def long_streams(engine: EngineUnderTest, count: int) -> AsyncIterator[list[aiohttp.ClientResponse]]:
    """Streams that go on for seconds, each on a connection of its own; left in the middle at the end."""
    async with session_for(engine) as session:
        body = chat_body(engine, max_tokens=400, stream=True)
        responses = [await session.post("/v1/chat/completions", json=body) for _ in range(count)]
        yield responses
        for response in responses:
            response.close()


def assert_error(status: int, body: dict, wanted_status: int) -> dict:
    assert status == wanted_status
    error = body["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["message"]
    return error


class TestChatStream:
    async def test_shape(self, engine, session):
        found = await chunks(session, "/v1/chat/completions", chat_body(engine))
        assert len({(each["id"], each["object"], each["model"]) for each in found}) == 1
        assert found[0]["object"] == "chat.completion.chunk"
        assert found[0]["id"].startswith("chatcmpl-")
        assert found[0]["model"] == engine.model
        first = found[0]["choices"][0]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert first["finish_reason"] is None
        later = [each["choices"][0] for each in found[1:]]
        assert [each["finish_reason"] for each in later] == [None] * 7 + ["length"]
        assert all("role" not in each["delta"] for each in later)
        assert "".join(each["delta"]["content"] for each in later)
        assert all(each.get("usage") is None for each in found)

    async def test_the_last_chunk_has_the_usage_and_no_choices(self, engine, session):
        body = chat_body(engine, stream_options={"include_usage": True})
        *before, last = await chunks(session, "/v1/chat/completions", body)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8
        assert last["usage"]["prompt_tokens"] > 0
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 8
        assert all(each.get("usage") is None for each in before)

    async def test_tokens_arrive_one_by_one(self, engine):
        async with session_for(engine) as session:
            body = chat_body(engine, stream=True, max_tokens=20)
            arrivals = 0
            async with session.post("/v1/chat/completions", json=body) as response:
                async for _ in response.content.iter_any():
                    arrivals += 1
        assert arrivals >= 5  # a busy machine may merge some

    async def test_says_the_same_as_the_whole_answer(self, engine, session):
        found = await chunks(session, "/v1/chat/completions", chat_body(engine, seed=7))
        streamed = "".join(each["choices"][0]["delta"]["content"] for each in found)
        _, answer = await ask(session, "/v1/chat/completions", chat_body(engine, seed=7))
        assert answer["choices"][0]["message"]["content"] == streamed

    async def test_choices_are_told_apart(self, engine, session):
        body = chat_body(engine, n=3, temperature=1, seed=1, stream_options={"include_usage": True})
        found = await chunks(session, "/v1/chat/completions", body)
        roles = [each["choices"][0]["index"] for each in found[:3]]
        assert roles == [0, 1, 2]
        ended = [each["choices"][0]["index"] for each in found[:-1] if each["choices"][0]["finish_reason"]]
        assert sorted(ended) == [0, 1, 2]
        assert found[-1]["usage"]["completion_tokens"] == 24


class TestCompletionStream:
    async def test_shape(self, engine, session):
        body = completion_body(engine, stream_options={"include_usage": True})
        *found, last = await chunks(session, "/v1/completions", body)
        assert {each["object"] for each in found} == {"text_completion"}
        assert found[0]["id"].startswith("cmpl-")
        choices = [each["choices"][0] for each in found]
        assert [each["finish_reason"] for each in choices] == [None] * 7 + ["length"]
        assert "".join(each["text"] for each in choices)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8


class TestWholeAnswers:
    async def test_chat(self, engine, session):
        status, answer = await ask(session, "/v1/chat/completions", chat_body(engine))
        assert status == 200
        assert answer["object"] == "chat.completion"
        assert answer["model"] == engine.model
        (choice,) = answer["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"]
        assert choice["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 8
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8

    async def test_max_completion_tokens_goes_before_max_tokens(self, engine, session):
        body = chat_body(engine, max_completion_tokens=5)
        _, answer = await ask(session, "/v1/chat/completions", body)
        assert answer["usage"]["completion_tokens"] == 5

    async def test_completion_of_several_prompts(self, engine, session):
        body = completion_body(engine, prompt=["One fish", "Two fish"])
        status, answer = await ask(session, "/v1/completions", body)
        assert status == 200
        assert [each["index"] for each in answer["choices"]] == [0, 1]
        assert answer["usage"]["completion_tokens"] == 16

    async def test_completion_of_token_ids(self, engine, session):
        _, answer = await ask(session, "/v1/completions", completion_body(engine, prompt=[5, 6, 7]))
        assert answer["usage"]["prompt_tokens"] == 3

    async def test_an_adapter_answers_under_its_own_name(self, engine, session):
        if engine.adapter is None:
            pytest.skip("this engine was started without an adapter")
        status, answer = await ask(session, "/v1/chat/completions", chat_body(engine, model=engine.adapter))
        assert (status, answer["model"]) == (200, engine.adapter)

    async def test_a_stop_string_is_named(self, engine, session):
        body = chat_body(engine, stop=[" "], max_tokens=60)
        _, answer = await ask(session, "/v1/chat/completions", body)
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["choices"][0]["stop_reason"] == " "

    async def test_a_json_schema_is_kept(self, engine, session):
        schema = {
            "type": "object",
            "properties": {"kind": {"enum": ["cod", "eel"]}, "alive": {"type": "boolean"}},
            "required": ["kind", "alive"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "fish", "schema": schema}}
        body = chat_body(engine, response_format=wanted, max_tokens=100, ignore_eos=False)
        _, answer = await ask(session, "/v1/chat/completions", body)
        fish = json.loads(answer["choices"][0]["message"]["content"])
        assert fish["kind"] in {"cod", "eel"}
        assert isinstance(fish["alive"], bool)

    @pytest.mark.parametrize(
        ("tool_choice", "finish_reason"),
        [("required", "tool_calls"), ({"type": "function", "function": {"name": "catch"}}, "stop")],
        ids=["required", "named"],
    )
    async def test_a_tool_is_called(self, engine, session, tool_choice, finish_reason):
        parameters = {
            "type": "object",
            "properties": {"kind": {"enum": ["cod", "eel"]}},
            "required": ["kind"],
            "additionalProperties": False,
        }
        body = chat_body(
            engine,
            tools=[{"type": "function", "function": {"name": "catch", "parameters": parameters}}],
            tool_choice=tool_choice,
            max_tokens=100,
            ignore_eos=False,
        )
        _, answer = await ask(session, "/v1/chat/completions", body)
        (choice,) = answer["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert call["function"]["name"] == "catch"
        assert json.loads(call["function"]["arguments"])["kind"] in {"cod", "eel"}
        assert choice["finish_reason"] == finish_reason
        found = await chunks(session, "/v1/chat/completions", body)
        deltas = [each["choices"][0]["delta"] for each in found]
        parts = [part for delta in deltas for part in delta.get("tool_calls") or []]
        assert parts[0]["function"]["name"] == "catch"
        arguments = "".join(part["function"].get("arguments") or "" for part in parts)
        assert json.loads(arguments)["kind"] in {"cod", "eel"}

    async def test_models_and_health(self, engine, session):
        async with session.get("/v1/models") as response:
            page = await response.json()
        assert page["object"] == "list"
        cards = {card["id"]: card for card in page["data"]}
        assert cards[engine.model]["max_model_len"] == engine.context_tokens
        assert engine.adapter is None or cards[engine.adapter]["parent"] == engine.model
        async with session.get("/health") as response:
            assert response.status == 200


FISH = {
    "type": "object",
    "properties": {"kind": {"enum": ["cod", "eel"]}},
    "required": ["kind"],
    "additionalProperties": False,
}


async def named_events(session: aiohttp.ClientSession, path: str, body: dict) -> list[tuple[str, dict]]:
    """Name and data of each event; the name is also in the data."""
    async with session.post(path, json=body | {"stream": True}) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        text = await response.text()
    found = []
    for each in text.removesuffix("\n\n").split("\n\n"):
        name, data = each.split("\n")
        fields = json.loads(data.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        found.append((fields["type"], fields))
    return found


class TestResponses:
    def body(self, engine, **changes) -> dict:
        return {
            "model": engine.model,
            "input": "Name three fish.",
            "max_output_tokens": 8,
            "store": False,
        } | changes

    async def test_whole(self, engine, session):
        status, answer = await ask(session, "/v1/responses", self.body(engine, instructions="Be brief."))
        assert status == 200
        assert (answer["object"], answer["status"]) == ("response", "incomplete")
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        (item,) = answer["output"]
        assert (item["type"], item["role"]) == ("message", "assistant")
        assert item["content"][0]["text"]
        assert answer["usage"]["output_tokens"] == 8
        assert answer["usage"]["total_tokens"] == answer["usage"]["input_tokens"] + 8

    async def test_stream(self, engine, session):
        found = await named_events(session, "/v1/responses", self.body(engine))
        names = list(dict.fromkeys(name for name, _ in found))
        assert names == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert [fields["sequence_number"] for _, fields in found] == list(range(len(found)))
        streamed = "".join(fields["delta"] for name, fields in found if name == "response.output_text.delta")
        last = found[-1][1]["response"]
        assert last["output"][0]["content"][0]["text"] == streamed
        assert last["usage"]["output_tokens"] == 8

    async def test_a_tool_is_called(self, engine, session):
        tool = {"type": "function", "name": "catch", "parameters": FISH, "strict": True}
        body = self.body(engine, tools=[tool], tool_choice="required", max_output_tokens=100)
        _, answer = await ask(session, "/v1/responses", body)
        (item,) = answer["output"]
        assert (item["type"], item["name"]) == ("function_call", "catch")
        assert json.loads(item["arguments"])["kind"] in {"cod", "eel"}
        found = await named_events(session, "/v1/responses", body)
        deltas = [each["delta"] for name, each in found if name == "response.function_call_arguments.delta"]
        assert json.loads("".join(deltas))["kind"] in {"cod", "eel"}

    async def test_a_json_schema_is_kept(self, engine, session):
        wanted = {"format": {"type": "json_schema", "name": "fish", "schema": FISH, "strict": True}}
        body = self.body(engine, text=wanted, max_output_tokens=100)
        _, answer = await ask(session, "/v1/responses", body)
        assert answer["status"] == "completed"
        assert json.loads(answer["output"][0]["content"][0]["text"])["kind"] in {"cod", "eel"}

    async def test_a_loop_with_a_tool_goes_on(self, engine, session):
        items = [
            {"role": "user", "content": [{"type": "input_text", "text": "Catch one."}]},
            {"type": "function_call", "call_id": "c", "name": "catch", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "an eel"},
        ]
        status, answer = await ask(session, "/v1/responses", self.body(engine, input=items))
        assert (status, answer["output"][0]["type"]) == (200, "message")

    async def test_errors(self, engine, session):
        assert_error(*await ask(session, "/v1/responses", self.body(engine, model="nobody@9")), 404)
        long = self.body(engine, input="fish " * 8 * engine.context_tokens)
        error = assert_error(*await ask(session, "/v1/responses", long), 400)
        assert f"maximum context length is {engine.context_tokens} tokens" in error["message"]


class TestMessages:
    def body(self, engine, **changes) -> dict:
        return {
            "model": engine.model,
            "messages": [{"role": "user", "content": "Name three fish."}],
            "max_tokens": 8,
        } | changes

    async def test_whole(self, engine, session):
        status, answer = await ask(session, "/v1/messages", self.body(engine, system="Be brief."))
        assert status == 200
        assert (answer["type"], answer["role"], answer["stop_reason"]) == (
            "message",
            "assistant",
            "max_tokens",
        )
        (block,) = answer["content"]
        assert (block["type"], bool(block["text"])) == ("text", True)
        assert answer["usage"]["output_tokens"] == 8
        assert answer["usage"]["input_tokens"] > 0

    async def test_stream(self, engine, session):
        found = await named_events(session, "/v1/messages", self.body(engine))
        assert list(dict.fromkeys(name for name, _ in found)) == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert found[0][1]["message"]["content"] == []
        assert "".join(each["delta"]["text"] for name, each in found if name == "content_block_delta")
        delta = found[-2][1]
        assert delta["delta"]["stop_reason"] == "max_tokens"
        assert delta["usage"]["output_tokens"] == 8

    async def test_a_tool_is_used(self, engine, session):
        tools = [{"name": "catch", "input_schema": FISH}]
        choice = {"type": "tool", "name": "catch"}
        body = self.body(engine, tools=tools, tool_choice=choice, max_tokens=100)
        _, answer = await ask(session, "/v1/messages", body)
        (block,) = answer["content"]
        assert (block["type"], block["name"], answer["stop_reason"]) == ("tool_use", "catch", "tool_use")
        assert block["input"]["kind"] in {"cod", "eel"}
        found = await named_events(session, "/v1/messages", body)
        parts = [each["delta"]["partial_json"] for name, each in found if name == "content_block_delta"]
        assert json.loads("".join(parts))["kind"] in {"cod", "eel"}

    async def test_a_json_schema_is_kept(self, engine, session):
        wanted = {"format": {"type": "json_schema", "schema": FISH}}
        body = self.body(engine, output_config=wanted, max_tokens=100)
        _, answer = await ask(session, "/v1/messages", body)
        assert json.loads(answer["content"][0]["text"])["kind"] in {"cod", "eel"}

    async def test_tokens_are_counted_as_the_answer_counts_them(self, engine, session):
        body = self.body(engine)
        _, answer = await ask(session, "/v1/messages", body)
        del body["max_tokens"]
        status, count = await ask(session, "/v1/messages/count_tokens", body)
        assert (status, count["input_tokens"]) == (200, answer["usage"]["input_tokens"])

    async def test_errors_have_anthropics_shape(self, engine, session):
        status, answer = await ask(session, "/v1/messages", self.body(engine, model="nobody@9"))
        assert (status, answer["type"]) == (404, "error")
        assert set(answer["error"]) == {"type", "message"}


class TestTokenization:
    async def test_there_and_back(self, engine, session):
        status, found = await ask(session, "/tokenize", {"model": engine.model, "prompt": "Three fish"})
        assert status == 200
        assert found["count"] == len(found["tokens"]) > 0
        assert found["max_model_len"] == engine.context_tokens
        _, back = await ask(session, "/detokenize", {"model": engine.model, "tokens": found["tokens"]})
        assert back == {"prompt": "Three fish"}

    async def test_a_chat_has_as_many_tokens_as_its_answer_says(self, engine, session):
        _, answer = await ask(session, "/v1/chat/completions", chat_body(engine))
        body = {"model": engine.model, "messages": chat_body(engine)["messages"]}
        _, found = await ask(session, "/tokenize", body)
        assert found["count"] == answer["usage"]["prompt_tokens"]

    async def test_an_unknown_model(self, session):
        assert_error(*await ask(session, "/tokenize", {"model": "nobody@9", "prompt": "a"}), 404)


class TestLogprobs:
    async def test_of_a_chat(self, engine, session):
        body = chat_body(engine, logprobs=True, top_logprobs=2)
        _, answer = await ask(session, "/v1/chat/completions", body)
        content = answer["choices"][0]["logprobs"]["content"]
        assert len(content) == 8
        assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in content)
        found = await chunks(session, "/v1/chat/completions", body)
        streamed = [each["choices"][0]["logprobs"]["content"] for each in found[1:]]
        assert [token["token"] for part in streamed for token in part] == [each["token"] for each in content]


class TestAgentLoops:
    async def test_a_required_tool_is_another_one_each_time(self, engine, session):
        """Else an agent that is made to use tools would never end."""
        if not engine.simulated:
            pytest.skip("a model decides by itself")
        tools = [{"type": "function", "function": {"name": name}} for name in ("look", "answer")]
        body = chat_body(engine, tools=tools, tool_choice="required", max_tokens=50)
        called = []
        for _ in range(3):
            _, answer = await ask(session, "/v1/chat/completions", body)
            message = answer["choices"][0]["message"]
            called.append(message["tool_calls"][0]["function"]["name"])
            body["messages"] = [*body["messages"], message]
        assert called == ["look", "answer", "answer"]


@pytest.fixture
async def embedder() -> AsyncIterator[aiohttp.ClientSession]:
    with sim(replace(SIM_SETTINGS, models=("vectors", "topic@1"), embeds=True)) as engine:
        async with session_for(engine) as opened:
            yield opened


class TestEmbeddings:
    async def test_unit_vectors_the_same_for_the_same_text(self, embedder):
        body = {"model": "vectors", "input": ["one fish", "two fish", "one fish"]}
        status, answer = await ask(embedder, "/v1/embeddings", body)
        assert status == 200
        vectors = [each["embedding"] for each in answer["data"]]
        assert [each["index"] for each in answer["data"]] == [0, 1, 2]
        assert vectors[0] == vectors[2] != vectors[1]
        assert sum(value * value for value in vectors[0]) == pytest.approx(1)
        assert answer["usage"] | {"prompt_tokens": 6, "total_tokens": 6} == answer["usage"]

    async def test_base64_holds_the_same_floats(self, embedder):
        body = {"model": "vectors", "input": "one fish"}
        _, plain = await ask(embedder, "/v1/embeddings", body)
        _, packed = await ask(embedder, "/v1/embeddings", body | {"encoding_format": "base64"})
        floats = array("f", base64.b64decode(packed["data"][0]["embedding"]))
        assert list(floats) == pytest.approx(plain["data"][0]["embedding"])

    async def test_what_it_cannot_do(self, embedder):
        body = {"model": "vectors", "input": "a"}
        assert_error(*await ask(embedder, "/v1/embeddings", body | {"dimensions": 64}), 400)
        assert_error(*await ask(embedder, "/v1/embeddings", body | {"input": "fish " * 1000}), 400)
        assert_error(*await ask(embedder, "/v1/embeddings", body | {"model": "nobody@9"}), 404)
        assert_error(*await ask(embedder, "/v1/chat/completions", body), 404)


class TestSlots:
    async def test_leaving_a_stream_frees_its_slot(self, engine, session):
        await until_metric(session, engine.running_metric, 0)
        async with long_streams(engine, 1) as (stream,):
            await stream.content.readany()
            assert await metric(session, engine.running_metric) == 1
        assert await until_metric(session, engine.running_metric, 0) < 1.0

    async def test_leaving_a_whole_answer_frees_its_slot(self, engine, session):
        await until_metric(session, engine.running_metric, 0)
        async with session_for(engine) as other:
            call = asyncio.create_task(ask(other, "/v1/chat/completions", chat_body(engine, max_tokens=400)))
            await until_metric(session, engine.running_metric, 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await until_metric(session, engine.running_metric, 0) < 1.0

    async def test_requests_beyond_the_slots_wait_and_may_leave(self, engine, session):
        await until_metric(session, engine.running_metric, 0)
        async with long_streams(engine, engine.slots):
            await until_metric(session, engine.running_metric, engine.slots)
            async with long_streams(engine, 1):
                await until_metric(session, engine.waiting_metric, 1)
                assert await metric(session, engine.running_metric) == engine.slots
            assert await until_metric(session, engine.waiting_metric, 0) < 1.0
        await until_metric(session, engine.running_metric, 0)


ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/metrics"),
]
FOREIGN_ROUTES = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/embeddings"),  # an engine that generates
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/invocations"),
    ("POST", "/pause"),
    ("POST", "/update_weights"),
    ("POST", "/collective_rpc"),
    ("POST", "/sleep"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/version"),
    ("GET", "/"),
    ("GET", "/v1/models/"),
    ("DELETE", "/v1/models"),
    ("GET", "/v1/chat/completions"),
]


class TestWall:
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer ",
            "Bearer wrong",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            TOKEN,
            "Bearer \xff",
        ],
    )
    async def test_every_route_asks_for_the_token(self, engine, method, path, authorization):
        headers = {} if authorization is None else {"Authorization": authorization}
        async with (
            aiohttp.ClientSession(engine.url, headers=headers) as stranger,
            stranger.request(method, path) as response,
        ):
            assert_error(response.status, await response.json(), 401)

    @pytest.mark.parametrize(("method", "path"), FOREIGN_ROUTES)
    async def test_other_routes_do_not_exist(self, engine, session, method, path):
        async with session.request(method, path) as response:
            assert_error(response.status, await response.json(), 404)
        async with aiohttp.ClientSession(engine.url) as stranger, stranger.request(method, path) as response:
            assert response.status in {401, 404}


class TestErrors:
    async def test_a_prompt_over_the_context(self, engine, session):
        body = completion_body(engine, prompt=[5] * (engine.context_tokens + 1))
        error = assert_error(*await ask(session, "/v1/completions", body), 400)
        assert f"maximum context length is {engine.context_tokens} tokens" in error["message"]
        assert (error["type"], error["code"]) == ("BadRequestError", 400)

    async def test_a_chat_over_the_context(self, engine, session):
        messages = [{"role": "user", "content": "fish " * 8 * engine.context_tokens}]
        status, body = await ask(session, "/v1/chat/completions", chat_body(engine, messages=messages))
        error = assert_error(status, body, 400)
        assert f"maximum context length is {engine.context_tokens} tokens" in error["message"]

    async def test_more_output_than_the_context(self, engine, session):
        body = chat_body(engine, max_tokens=engine.context_tokens + 1)
        error = assert_error(*await ask(session, "/v1/chat/completions", body), 400)
        assert error["param"] == "max_tokens"

    async def test_prompt_and_output_that_fit_only_apart_are_cut_and_no_error(self, engine, session):
        body = completion_body(engine, prompt=[5] * (engine.context_tokens - 3), max_tokens=50)
        status, answer = await ask(session, "/v1/completions", body)
        assert status == 200
        assert answer["usage"]["total_tokens"] == engine.context_tokens
        assert answer["choices"][0]["finish_reason"] == "length"

    async def test_a_prompt_that_leaves_no_room(self, engine, session):
        body = completion_body(engine, prompt=[5] * engine.context_tokens)
        assert_error(*await ask(session, "/v1/completions", body), 400)

    async def test_an_unknown_model(self, engine, session):
        body = chat_body(engine, model="nobody@9")
        error = assert_error(*await ask(session, "/v1/chat/completions", body), 404)
        assert (error["type"], error["param"]) == ("NotFoundError", "model")
        assert "The model `nobody@9` does not exist." in error["message"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"max_tokens": 0},
            {"n": 0},
            {"messages": "hello"},
            {"tools": []},
            {"tool_choice": "required"},
            {"stream_options": {"include_usage": True}},
            {"response_format": {"type": "json_schema"}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    async def test_values_that_make_no_sense(self, engine, session, changes):
        assert_error(*await ask(session, "/v1/chat/completions", chat_body(engine, **changes)), 400)

    async def test_an_empty_prompt(self, engine, session):
        assert_error(*await ask(session, "/v1/completions", completion_body(engine, prompt="")), 400)

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"null"])
    async def test_a_body_that_is_no_json_object(self, session, raw):
        assert_error(*await ask(session, "/v1/chat/completions", raw), 400)


class TestHonesty:
    """A simulator may be taken for a model by nobody."""

    async def test_answers_say_that_they_are_simulated(self, engine, session):
        if not engine.simulated:
            pytest.skip("a real engine")
        async with session.post("/v1/chat/completions", json=chat_body(engine, max_tokens=1)) as response:
            assert response.headers["x-sprat-simulated"] == "1"
            answer = await response.json()
        assert answer["choices"][0]["message"]["content"].startswith("[simulated] ")
        assert answer["system_fingerprint"] == "sprat-sim"

    @pytest.mark.parametrize("include_usage", [False, True])
    async def test_streams_say_so_too(self, engine, session, include_usage):
        if not engine.simulated:
            pytest.skip("a real engine")
        body = chat_body(engine, stream_options={"include_usage": include_usage})
        found = await chunks(session, "/v1/chat/completions", body)
        assert found[1]["choices"][0]["delta"]["content"] == "[simulated] "
        assert found[-1]["system_fingerprint"] == "sprat-sim"


class TestSimulatedFaults:
    """Faults exist for tests of the callers; only the simulator has them."""

    @staticmethod
    async def read_stream(session: aiohttp.ClientSession, body: dict, arrived: list[bytes]) -> None:
        async with session.post("/v1/chat/completions", json=body) as response:
            async for part in response.content.iter_any():
                arrived.append(part)  # noqa: PERF401 (what came before the error counts)

    async def test_a_stream_breaks_off(self):
        with sim(replace(SIM_SETTINGS, fail_after_tokens=3)) as engine:
            async with session_for(engine) as session:
                arrived: list[bytes] = []
                with pytest.raises(aiohttp.ClientPayloadError):
                    await self.read_stream(session, chat_body(engine, stream=True), arrived)
                assert b"".join(arrived).count(b'"token_ids":null') == 3
                assert b"[DONE]" not in b"".join(arrived)
                await until_metric(session, engine.running_metric, 0)

    @pytest.mark.parametrize("choices", [1, 3])
    async def test_a_whole_answer_breaks_off(self, choices):
        with sim(replace(SIM_SETTINGS, fail_after_tokens=3)) as engine:
            async with session_for(engine) as session:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await ask(session, "/v1/chat/completions", chat_body(engine, n=choices))
                await until_metric(session, engine.running_metric, 0)

    async def test_every_generation_is_refused_and_health_is_not(self):
        with sim(replace(SIM_SETTINGS, refuse=True)) as engine:
            async with session_for(engine) as session:
                for path, body in (
                    ("/v1/chat/completions", chat_body(engine)),
                    ("/v1/completions", completion_body(engine)),
                ):
                    error = assert_error(*await ask(session, path, body), 500)
                    assert error["type"] == "InternalServerError"
                async with session.get("/health") as response:
                    assert response.status == 200
