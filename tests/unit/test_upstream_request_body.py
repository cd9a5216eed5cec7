"""What leaves the cluster, field by field."""

from __future__ import annotations

import pytest

from cluster.config.upstream import ListPrices, UpstreamConfig
from cluster.errors import InvalidRequest
from deployments.gateway.endpoints.all_endpoints import ENDPOINTS
from deployments.gateway.endpoints.tolerated import ANTHROPIC, CHAT, RESPONSES
from deployments.upstream.request_body import (
    INTERNAL_FIELDS,
    PATHS,
    PROMISE_FIELDS,
    PUBLIC_FIELDS,
    SHAPING_FIELDS,
    upstream_body,
)
from deployments.upstream.usage import features_of, tokens_at_most


def upstream(**changes) -> UpstreamConfig:
    return UpstreamConfig(
        **{
            "base_url": "https://api.example.com/v1",
            "model": "theirs",
            "prices": ListPrices(prompt_usd_per_mtok=1, output_usd_per_mtok=2),
        }
        | changes
    )


CHAT_BODY = {
    "model": "ours",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 7,
    "cache_salt": "secret salt",
    "priority": 3,
    "request_id": "req-1",
    "field_of_tomorrow": 1,
}


def test_only_public_fields_leave():
    assert upstream_body("chat", CHAT_BODY, upstream()) == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 7,
    }


@pytest.mark.parametrize("path", PATHS)
def test_every_field_that_a_gateway_lets_in_is_decided_here(path):
    """A new field of the gateway is passed on, or left out on purpose."""
    decided = PUBLIC_FIELDS[PATHS[path]] | INTERNAL_FIELDS | SHAPING_FIELDS | PROMISE_FIELDS
    not_for_engines = CHAT.keys() | RESPONSES.keys() | ANTHROPIC.keys()
    # Rewritten by the gateway, or only to be refused.
    not_for_engines |= {"max_completion_tokens", "echo", "previous_response_id", "conversation", "prompt"}
    assert ENDPOINTS[path].fields.keys() - not_for_engines - decided == set()


def test_the_limit_of_an_answer_has_the_name_that_the_upstream_knows():
    body = upstream_body("chat", CHAT_BODY, upstream(output_limit="max_completion_tokens"))
    assert body["max_completion_tokens"] == 7
    assert "max_tokens" not in body


def test_a_stream_always_reports_its_usage():
    body = upstream_body("chat", CHAT_BODY | {"stream": True}, upstream())
    assert body["stream_options"] == {"include_usage": True}
    assert "stream_options" not in upstream_body("messages", CHAT_BODY | {"stream": True}, upstream())


def test_responses_are_not_kept_by_the_upstream():
    assert upstream_body("responses", {"model": "ours", "input": "hi"}, upstream())["store"] is False


def test_fields_beyond_openais_pass_where_the_upstream_knows_them():
    known = upstream(engine_fields=["top_k", "stop_token_ids"])
    body = upstream_body("chat", CHAT_BODY | {"top_k": 5, "stop_token_ids": [1], "min_p": 0.1}, known)
    assert (body["top_k"], body["stop_token_ids"]) == (5, [1])
    assert "min_p" not in body, "shapes the sampling only: left out"
    assert upstream_body("messages", CHAT_BODY | {"top_k": 5}, upstream())["top_k"] == 5


@pytest.mark.parametrize("field", sorted(PROMISE_FIELDS))
def test_a_promise_that_the_upstream_cannot_keep_is_refused(field):
    with pytest.raises(InvalidRequest, match=field) as refused:
        upstream_body("chat", CHAT_BODY | {field: 3 if field == "min_tokens" else [3]}, upstream())
    assert refused.value.param == field
    nothing = 0 if field == "min_tokens" else []
    assert field not in upstream_body("chat", CHAT_BODY | {field: nothing}, upstream())


def test_messages_lose_what_engines_add_to_their_answers():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "hm",
        "reasoning_content": "hm",
        "annotations": [],
        "tool_calls": [call | {"index": 0}],
    }
    sent = upstream_body("chat", CHAT_BODY | {"messages": [answer, answer | {"tool_calls": []}]}, upstream())
    assert sent["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "content": None},
    ]


def test_a_call_is_charged_prompt_and_longest_answers():
    body = CHAT_BODY | {"messages": [{"role": "user", "content": "x" * 400}], "n": 2}
    features = features_of("chat", body)
    assert tokens_at_most(features, body) == features.prompt_tokens_estimate + 14
    assert features.prompt_tokens_estimate >= 100
