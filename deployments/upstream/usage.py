"""Tokens of a call at an upstream: as it reports them, else as we estimate them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.config.upstream import UpstreamRoute
from cluster.router.features import (
    BYTES_PER_TOKEN_ESTIMATE,
    chat_features,
    completion_features,
    embedding_features,
    message_features,
    response_features,
)
from cluster.types import RequestFeatures

_FEATURES = {
    "chat": chat_features,
    "completions": completion_features,
    "responses": response_features,
    "messages": message_features,
    "embeddings": embedding_features,
}
_NOT_GENERATED = frozenset({"role", "id", "type", "finish_reason", "stop_reason", "logprobs", "object"})
_USAGE = (
    *("prompt_tokens", "completion_tokens", "total_tokens"),
    *("prompt_tokens_details", "completion_tokens_details"),
)
_OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def features_of(route: UpstreamRoute, body: Mapping[str, Any]) -> RequestFeatures:
    """Of a body as the gateway sends it."""
    return _FEATURES[route](body, None)


def tokens_at_most(features: RequestFeatures, body: Mapping[str, Any]) -> int:
    """What the call is charged against a rate until it is over: prompt and longest output, estimated."""
    limit = next((body[name] for name in _OUTPUT_LIMITS if isinstance(body.get(name), int)), 0)
    return features.prompt_tokens_estimate + int(limit) * features.sequences


def reported_usage(usage: Any) -> dict[str, Any] | None:
    """What the upstream says of tokens, if it can be counted: whole numbers, none below 0."""
    if not isinstance(usage, dict):
        return None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens", 0))
    if all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in counts):
        return {name: usage[name] for name in _USAGE if name in usage}
    return None


def estimated_usage(prompt_tokens: int, output_bytes: int) -> dict[str, Any]:
    """In the place of a usage that never came. `estimated` tells it apart."""
    output_tokens = -(-output_bytes // BYTES_PER_TOKEN_ESTIMATE)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "estimated": True,
    }


def text_bytes(choices: list[Any]) -> int:
    """Of what was generated in choices: content, names and arguments of tool calls, thoughts."""
    size = 0
    left: list[Any] = [choices]  # no recursion: an upstream may nest as it likes
    while left:
        value = left.pop()
        if isinstance(value, str):
            size += len(value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, dict):
            left += [each for name, each in value.items() if name not in _NOT_GENERATED]
        elif isinstance(value, list):
            left += value
    return size
