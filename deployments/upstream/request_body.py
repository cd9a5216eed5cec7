"""From the body that an engine of ours would get to the one that the upstream gets. Pure.

Only fields that the public APIs have are sent: whatever the gateway adds for its engines stays here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config.upstream import UpstreamConfig, UpstreamRoute
from cluster.errors import InvalidRequest

Body = dict[str, Any]

PATHS: dict[str, UpstreamRoute] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/embeddings": "embeddings",
}
"""An engine's paths. The upstream's are the same below its `base_url`, which ends with the version."""

_SAMPLING = frozenset(
    {
        *("model", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options"),
        *("presence_penalty", "frequency_penalty", "seed", "logit_bias", "logprobs", "response_format"),
    }
)
PUBLIC_FIELDS: dict[UpstreamRoute, frozenset[str]] = {
    "chat": _SAMPLING
    | {"messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"},
    "completions": _SAMPLING | {"prompt"},
    "responses": frozenset(
        {
            *("model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs"),
            *("stream", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "include"),
        }
    ),
    "messages": frozenset(
        {
            *(
                "model",
                "messages",
                "system",
                "max_tokens",
                "stop_sequences",
                "stream",
                "temperature",
                "top_p",
            ),
            *("top_k", "tools", "tool_choice", "output_config", "thinking"),
        }
    ),
    "embeddings": frozenset({"model", "input", "dimensions", "encoding_format"}),
}

INTERNAL_FIELDS = frozenset({"cache_salt", "priority", "request_id"})

SHAPING_FIELDS = frozenset({"top_k", "min_p", "repetition_penalty", "ignore_eos"})
"""They shape how tokens are drawn, and an answer without them still answers the question: they are left out
where the upstream does not know them."""

PROMISE_FIELDS = frozenset({"min_tokens", "stop_token_ids", "allowed_token_ids", "bad_words"})
"""They promise something about the answer: refused where the upstream does not know them."""

_MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
"""The rest is what engines add to their answers and clients send back: thoughts, empty lists."""


def upstream_body(route: UpstreamRoute, body: Mapping[str, Any], upstream: UpstreamConfig) -> Body:
    """Raises InvalidRequest for what the upstream could not keep to."""
    known = PUBLIC_FIELDS[route]
    for name in PROMISE_FIELDS & body.keys() - known:
        if name not in upstream.engine_fields and body[name] not in ([], 0):
            raise InvalidRequest(f"{name} is not supported by this model.", param=name)
    sent = {name: value for name, value in body.items() if name in known or name in upstream.engine_fields}
    sent["model"] = upstream.model
    if route == "chat":
        sent["messages"] = [_message(each) for each in body["messages"]]
        if upstream.output_limit != "max_tokens" and "max_tokens" in sent:
            sent[upstream.output_limit] = sent.pop("max_tokens")
    if route in ("chat", "completions") and sent.get("stream"):
        sent["stream_options"] = {"include_usage": True}
    if route == "responses":
        sent["store"] = False  # some keep every answer unless told not to
    return sent


def _message(message: Mapping[str, Any]) -> Body:
    kept = {name: value for name, value in message.items() if name in _MESSAGE_FIELDS}
    if "tool_calls" in kept:
        calls = [
            {name: value for name, value in call.items() if name != "index"}
            for call in kept["tool_calls"] or []
        ]
        kept |= {"tool_calls": calls}
        if not calls:
            del kept["tool_calls"]
    if kept.get("refusal", "") is None:
        del kept["refusal"]
    return kept
