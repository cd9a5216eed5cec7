"""The official SDK, in the ways of its README."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from answers import LONG, QUESTION, WEATHER_QUESTION, WEATHER_TOOL, Sentiment, Weather, length
from conftest import Cluster

CLIENT = "openai"

CALL: dict[str, Any] = {"model": "small", "messages": QUESTION, "max_tokens": 8, "temperature": 0}
TOOL_CALL: dict[str, Any] = {
    "model": "small",
    "messages": WEATHER_QUESTION,
    "tools": [WEATHER_TOOL],
    "max_tokens": 128,
    "temperature": 0,
}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
JSON_CALL: dict[str, Any] = CALL | {"max_tokens": 128}

REQUIRED: dict[str, Any] = TOOL_CALL | {"tool_choice": "required", "max_tokens": 64}
CALLED = ("tool_calls", "length")
"""Under `required` a model this small may call again and again, until the limit ends it."""


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.api_key) as made:
        yield made


@pytest.fixture
async def async_client(cluster: Cluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=cluster.endpoint, api_key=cluster.api_key) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**CALL)
    answer = raw.parse()

    assert float(raw.headers["x-sprat-cost-usd"]) > 0
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens <= 8


async def test_async_chat(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(**CALL)

    assert answer.choices[0].message.content


def test_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**CALL, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**CALL, stream=True, stream_options={"include_usage": True}))

    assert chunks[-1].choices == []
    assert 0 < chunks[-1].usage.completion_tokens <= 8


async def test_async_stream(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(**CALL, stream=True)

    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_a_stream_and_the_whole_answer_agree(client: openai.OpenAI) -> None:
    streamed = client.chat.completions.create(**CALL, stream=True)

    whole = client.chat.completions.create(**CALL).choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**JSON_CALL, response_format=Sentiment)

    assert isinstance(answer.choices[0].message.parsed, Sentiment)


async def test_async_parse(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.parse(**JSON_CALL, response_format=Sentiment)

    assert isinstance(answer.choices[0].message.parsed, Sentiment)


def test_parse_of_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**JSON_CALL, response_format=Sentiment) as stream:
        kinds = {event.type for event in stream}

    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, Sentiment)


def test_json_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small",
        messages=[{"role": "user", "content": 'Answer with the JSON {"ok": true}'}],
        max_tokens=32,
        response_format={"type": "json_object"},
    )

    assert answer.choices[0].message.content.lstrip().startswith("{")


def test_named_tool(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**TOOL_CALL, tool_choice=NAMED)

    (call,) = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert Weather.model_validate_json(call.function.arguments)


def test_required_tool(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**REQUIRED, parallel_tool_calls=False)

    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason in CALLED
    assert Weather.model_validate_json(call.function.arguments)


def test_tool_left_to_the_model(client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**TOOL_CALL, tool_choice="auto").choices[0].message

    assert message.content or message.tool_calls


def test_streamed_tool(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**TOOL_CALL, tool_choice=NAMED) as stream:
        kinds = {event.type for event in stream}

    assert "tool_calls.function.arguments.delta" in kinds
    call = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert Weather.model_validate_json(call.function.arguments)


def test_parse_of_a_pydantic_tool(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        **TOOL_CALL | {"tools": [openai.pydantic_function_tool(Weather, name="get_weather")]},
        tool_choice=NAMED,
    )

    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_tool_result(client: openai.OpenAI) -> None:
    """The assistant message goes back as the SDK gave it."""
    asked = client.chat.completions.create(**TOOL_CALL, tool_choice=NAMED).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"} for call in asked.tool_calls
    ]

    answer = client.chat.completions.create(
        **TOOL_CALL | {"messages": [*WEATHER_QUESTION, asked, *results], "max_tokens": 8}, tool_choice="none"
    )

    assert answer.choices[0].message.content


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CALL, logprobs=True, top_logprobs=2)

    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


def test_several_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**CALL | {"temperature": 1}, n=2, seed=7)

    assert [choice.index for choice in answer.choices] == [0, 1]


def test_stop(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(**CALL).choices[0].message.content
    word = text.split()[-1]

    answer = client.chat.completions.create(**CALL, stop=[word])

    assert answer.choices[0].finish_reason == "stop"
    assert word not in answer.choices[0].message.content


def test_content_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Say yes."}, {"type": "text", "text": "Or no."}]

    answer = client.chat.completions.create(**CALL | {"messages": [{"role": "user", "content": parts}]})

    assert answer.choices[0].message.content


def test_fields_of_other_services(client: openai.OpenAI) -> None:
    """What callers of OpenAI's own models set, and what means nothing here."""
    answer = client.chat.completions.create(
        **CALL | {"max_tokens": None},
        max_completion_tokens=8,
        store=False,
        user="u1",
        metadata={"task": "classify"},
    )

    assert answer.usage.completion_tokens <= 8


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="The capital of France is", max_tokens=4)

    assert answer.choices[0].text
    assert answer.usage.completion_tokens <= 4


def test_streamed_completion(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="small", prompt=["One, two,"], max_tokens=4, stream=True)

    assert "".join(chunk.choices[0].text for chunk in stream)


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]

    assert {"auto", "small", "large"} <= set(names)
    assert client.models.retrieve(names[-1]).id == names[-1]


def test_embeddings(client: openai.OpenAI, cluster: Cluster) -> None:
    """The SDK asks for base64 by itself, and gives floats."""
    if cluster.embedding_model is None:
        pytest.skip("this cluster has no embedding pool")
    answer = client.embeddings.create(model=cluster.embedding_model, input=["a cat", "a dog"])

    assert [each.index for each in answer.data] == [0, 1]
    assert [length(each.embedding) for each in answer.data] == pytest.approx([1, 1], abs=1e-3)
    assert answer.usage.prompt_tokens > 0


def test_float_embedding(client: openai.OpenAI, cluster: Cluster) -> None:
    if cluster.embedding_model is None:
        pytest.skip("this cluster has no embedding pool")
    answer = client.embeddings.create(model=cluster.embedding_model, input="a cat", encoding_format="float")

    assert length(answer.data[0].embedding) == pytest.approx(1, abs=1e-3)


def test_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="small", instructions="Answer one word.", input="Is 'I love it' positive?", max_output_tokens=8
    )

    assert answer.output_text
    assert 0 < answer.usage.output_tokens <= 8


def test_response_to_a_conversation(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="small",
        input=[*QUESTION, {"role": "assistant", "content": "positive"}, {"role": "user", "content": "Sure?"}],
        max_output_tokens=8,
        store=False,
    )

    assert answer.output_text


def test_streamed_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="small", input="Say yes.", max_output_tokens=8) as stream:
        kinds = [event.type for event in stream]

    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    assert kinds[-1] in ("response.completed", "response.incomplete")


async def test_async_streamed_response(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.responses.create(
        model="small", input="Say yes.", max_output_tokens=8, stream=True
    )

    assert "response.output_text.delta" in {event.type async for event in stream}


def test_parsed_response(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model="small", input="Is 'I love it' positive?", text_format=Sentiment, max_output_tokens=128
    )

    assert isinstance(answer.output_parsed, Sentiment)


def test_tool_of_a_response(client: openai.OpenAI) -> None:
    """And its result, sent back as the SDK gave the call."""
    tool = {"type": "function", "strict": True} | WEATHER_TOOL["function"]
    question = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]
    asked = client.responses.create(
        model="small", input=question, tools=[tool], tool_choice="required", max_output_tokens=128
    )
    call = next(item for item in asked.output if item.type == "function_call")
    assert Weather.model_validate_json(call.arguments)

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"}
    answer = client.responses.create(
        model="small",
        input=[*question, *asked.output, result],
        tools=[tool],
        tool_choice="none",
        max_output_tokens=8,
    )

    assert answer.output_text


def test_a_wrong_key(cluster: Cluster) -> None:
    with (
        openai.OpenAI(base_url=cluster.endpoint, api_key="sk-wrong") as wrong,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        wrong.chat.completions.create(**CALL)

    assert caught.value.code == "invalid_api_key"


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**CALL | {"model": "gpt-9"})

    assert caught.value.code == "model_not_found"


def test_a_value_out_of_range(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CALL | {"temperature": 9})

    assert caught.value.param == "temperature"


def test_an_unknown_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CALL, extra_body={"kv_transfer_params": {}})

    assert caught.value.code == "unknown_parameter"


def test_a_prompt_that_fits_no_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**CALL | {"messages": [{"role": "user", "content": "word " * 9000}]})

    assert caught.value.code == "context_length_exceeded"


def test_a_rate_limit_is_waited_for(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=cluster.endpoint, api_key=cluster.slow_key, max_retries=4) as client:
        client.chat.completions.create(**CALL | {"max_tokens": 1})
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).chat.completions.create(**CALL)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 6

        assert client.chat.completions.create(**CALL).choices


def test_a_timeout(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3, max_retries=0).chat.completions.create(
            model="large", messages=LONG, max_tokens=1000
        )


def test_a_stream_left_early(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="large", messages=LONG, max_tokens=1000, stream=True) as stream:
        assert next(iter(stream)).choices


async def test_an_async_stream_left_early(async_client: openai.AsyncOpenAI) -> None:
    async with await async_client.chat.completions.create(
        model="large", messages=LONG, max_tokens=1000, stream=True
    ) as stream:
        assert (await anext(aiter(stream))).choices
