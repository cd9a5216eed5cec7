"""Fields that official clients send and that mean nothing here: checked, then left out.

Every other unknown field is an error. A field is in this table only if leaving it out changes no answer;
a setting that a model would have to obey is either passed on or refused.
"""

from __future__ import annotations

from deployments.gateway.endpoints.checks import (
    Check,
    boolean,
    integer,
    list_of,
    metadata,
    object_of,
    one_of,
    only_false,
    text,
)
from deployments.gateway.endpoints.tools import cache_control

ROUTING: dict[str, Check] = {
    "metadata": metadata,  # `metadata.task` is read by the router; no engine has a use for the rest
}

CALLER: dict[str, Check] = {
    "user": text(256),  # the caller's own customer: for OpenAI's abuse detection
    "safety_identifier": text(256),  # its successor
}

CACHING: dict[str, Check] = {
    # Prefix caches work by themselves here, each tenant's apart (our cache_salt).
    "prompt_cache_key": text(256),
    "prompt_cache_retention": one_of("in_memory", "in-memory", "24h"),
}

OPENAI: dict[str, Check] = {
    **ROUTING,
    **CALLER,
    **CACHING,
    "store": only_false,  # nothing is stored, so only those who do not ask for it are right
    "service_tier": one_of("auto", "default"),  # the tiers here are x-sprat-tier and x-sprat-class
}

CHAT: dict[str, Check] = {
    **OPENAI,
    "modalities": list_of(one_of("text"), 1, 1),  # what it is anyway
}

RESPONSES: dict[str, Check] = {
    **OPENAI,
    "background": only_false,
    "truncation": one_of("disabled"),
    "max_tool_calls": integer(1, 1000),  # of built-in tools, of which there are none
    "stream_options": object_of(
        {"include_obfuscation": boolean}
    ),  # padding against eavesdroppers: there is none
}

ANTHROPIC: dict[str, Check] = {
    "metadata": metadata,  # user_id, and our task
    "service_tier": one_of("auto", "standard_only"),
    "cache_control": cache_control,  # a prefix cache needs no marks here
}
