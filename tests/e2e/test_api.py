"""Every route with the real models behind it: what arrives is vLLM's own answer, within our limits."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from deployments.free_port import free_port
from tests.e2e.conftest import Laptop

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).parents[2] / "deployments" / "examples"
FISH: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["cod", "eel"]}},
    "required": ["kind"],
    "additionalProperties": False,
}
FUNCTION = {"name": "catch", "description": "Catches a fish.", "parameters": FISH}
QUESTION: list[Any] = [{"role": "user", "content": "Catch an eel."}]


@pytest.fixture
def client(laptop: Laptop) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=laptop.started["endpoint"], api_key=laptop.started["api_key"], max_retries=0, timeout=300
    ) as made:
        yield made


def post(cluster: Laptop, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a call without a client library."""
    request = urllib.request.Request(
        cluster.started["endpoint"].removesuffix("/v1") + path,
        json.dumps({"model": "small"} | body).encode(),
        {"authorization": f"Bearer {cluster.started['api_key']}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def answer_of(cluster: Laptop, path: str, body: dict[str, Any]) -> Any:
    status, headers, raw = post(cluster, path, body)
    assert status == 200, raw
    assert float(headers["x-sprat-cost-usd"]) >= 0
    return json.loads(raw)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "catch"}}])
def test_chat_calls_the_tool_with_arguments_of_its_schema(client: openai.OpenAI, choice: Any) -> None:
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, tools=tools, tool_choice=choice, max_tokens=60
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "catch"
    assert json.loads(call.function.arguments)["kind"] in ("cod", "eel")

    # The answer goes back as the client gave it, with the result, and the model goes on.
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "an eel"}
    after = client.chat.completions.create(
        model="small", messages=[*QUESTION, answer.choices[0].message, result], tools=tools, max_tokens=4
    )
    assert after.usage is not None
    assert answer.usage is not None
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens


def test_chat_with_a_tool_that_nobody_has_to_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small",
        messages=QUESTION,
        tools=[{"type": "function", "function": FUNCTION}],  # type: ignore[list-item]
        max_tokens=8,
    )

    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_chat_tells_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, logprobs=True, top_logprobs=2, max_tokens=3
    )

    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert [len(token.top_logprobs) for token in content] == [2, 2, 2]
    assert all(token.logprob <= 0 for token in content)


def test_a_response_whole_and_streamed(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {
        "model": "small",
        "instructions": "Be brief.",
        "input": "Hi",
        "max_output_tokens": 6,
    }
    whole = client.responses.create(**body)
    events = list(client.responses.create(**body, stream=True))

    assert whole.output_text
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens <= 6
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens <= 6


def test_a_response_keeps_to_a_schema(client: openai.OpenAI) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "fish", "schema": FISH, "strict": True}}
    answer = client.responses.create(model="small", input="Catch an eel.", text=wanted, max_output_tokens=40)

    assert json.loads(answer.output_text)["kind"] in ("cod", "eel")


def test_a_response_calls_a_tool_and_goes_on_with_its_result(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "strict": True} | FUNCTION]
    first = client.responses.create(
        model="small", input=QUESTION, tools=tools, tool_choice="required", max_output_tokens=60, store=False
    )

    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["kind"] in ("cod", "eel")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "an eel"}
    after = client.responses.create(
        model="small", input=[*QUESTION, *first.output, result], tools=tools, max_output_tokens=4
    )
    assert after.output
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="small", input="Hi", previous_response_id=first.id)


def test_a_message_whole_streamed_and_counted(laptop: Laptop) -> None:
    body: dict[str, Any] = {"system": "Be brief.", "messages": QUESTION}
    whole = answer_of(laptop, "/v1/messages", body | {"max_tokens": 6})
    count = answer_of(laptop, "/v1/messages/count_tokens", body)
    status, _, stream = post(laptop, "/v1/messages", body | {"max_tokens": 6, "stream": True})

    assert whole["content"][0]["text"]
    assert count["input_tokens"] == whole["usage"]["input_tokens"]
    assert status == 200
    *_, delta, comment, stop, end = stream.split(b"\n\n")
    assert json.loads(delta.partition(b"data: ")[2])["usage"]["output_tokens"] <= 6
    assert comment.startswith(b': sprat {"cost_usd":')
    assert stop.startswith(b"event: message_stop")
    assert end == b""


def test_a_message_uses_a_tool(laptop: Laptop) -> None:
    answer = answer_of(
        laptop,
        "/v1/messages",
        {
            "messages": QUESTION,
            "max_tokens": 60,
            "tools": [{"name": "catch", "input_schema": FISH}],
            "tool_choice": {"type": "tool", "name": "catch"},
        },
    )

    (block,) = answer["content"]
    assert (block["type"], answer["stop_reason"]) == ("tool_use", "tool_use")
    assert block["input"]["kind"] in ("cod", "eel")


def test_errors_of_messages_have_anthropics_shape(laptop: Laptop) -> None:
    long = {"messages": [{"role": "user", "content": "7" * 5000}], "max_tokens": 4}
    for body, words in (({"messages": QUESTION}, "max_tokens"), (long, "prompt is too long")):
        status, _, raw = post(laptop, "/v1/messages", body)
        error = json.loads(raw)

        assert (status, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
        assert words in error["error"]["message"]


def test_tokens_there_and_back_for_nothing(laptop: Laptop) -> None:
    for prefix in ("", "/v1"):
        tokens = answer_of(laptop, f"{prefix}/tokenize", {"prompt": "Catch an eel."})
        back = answer_of(laptop, f"{prefix}/detokenize", {"tokens": tokens["tokens"]})
        assert back == {"prompt": "Catch an eel."}
    _, headers, _ = post(laptop, "/tokenize", {"messages": QUESTION})
    assert float(headers["x-sprat-cost-usd"]) == 0


def test_a_chat_model_makes_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        client.embeddings.create(model="small", input="Hi")


@pytest.fixture(scope="module")
def vectors() -> Iterator[Laptop]:
    """The embedding pool of the example, real; the model that generates is simulated, to start sooner."""
    raw = yaml.safe_load((EXAMPLES / "laptop_embeddings.yaml").read_text())
    specialist = raw["pools"]["specialist"]
    for option in ("engine_options", "dtype", "threads", "kv_cache_gib"):
        del specialist[option]
    specialist |= {"engine": "simulated", "simulated": {}}
    folder = Path(tempfile.mkdtemp(prefix="sprat-api-", dir="/tmp"))
    file = folder / "vectors.yaml"
    file.write_text(yaml.safe_dump(raw))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    cluster = Laptop(folder, environment | {"SPRAT__GATEWAY__PORT": str(free_port())}, {})
    up = cluster.sprat("up", str(file), "--json", "--no-examples", timeout_s=600)
    try:
        assert up.returncode == 0, up.stderr
        cluster.started = json.loads(up.stdout)
        yield cluster
    finally:
        cluster.sprat("down")
        shutil.rmtree(folder, ignore_errors=True)


def test_what_means_the_same_is_near(vectors: Laptop) -> None:
    with openai.OpenAI(
        base_url=vectors.started["endpoint"], api_key=vectors.started["api_key"], max_retries=0
    ) as client:
        raw = client.embeddings.with_raw_response.create(
            model="auto",
            input=[
                "A cat sits on the mat.",
                "A kitten is sitting on a rug.",
                "Stock markets fell sharply today.",
            ],
        )
        with pytest.raises(openai.BadRequestError, match="makes embeddings only"):
            client.chat.completions.create(model="all-minilm-l6-v2", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.embeddings.create(model="auto", input="word " * 400)

    answer = raw.parse()
    cat, kitten, stocks = (each.embedding for each in answer.data)
    assert len(cat) == 384
    assert math.hypot(*cat) == pytest.approx(1, abs=1e-3)
    assert cosine(cat, kitten) > 0.5
    assert cosine(cat, stocks) < 0.3
    assert answer.usage.prompt_tokens == 27
    assert float(raw.headers["x-sprat-cost-usd"]) > 0
    assert float(raw.headers["x-sprat-saved-usd"]) == 0
    assert raw.headers["x-sprat-model"] == "all-minilm-l6-v2"


def cosine(left: list[float], right: list[float]) -> float:
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.hypot(*left) / math.hypot(*right)
