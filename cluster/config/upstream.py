"""An external OpenAI-compatible endpoint as a pool: the YAML's `upstream` section, and what is wrong with it.

Two of its values could hold a key by mistake (`base_url`, `api_key_env`): no message repeats them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field

from cluster.config.base import Strict
from cluster.config.problems import Problem

UpstreamRoute = Literal["chat", "completions", "responses", "messages", "embeddings"]
EngineField = Literal[
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "allowed_token_ids",
    "bad_words",
]
"""Fields of the gateway's schema that OpenAI's own API does not have."""

ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class ListPrices(Strict):
    """What the provider charges. 0 (it costs nothing) counts as the smallest price that is not 0."""

    prompt_usd_per_mtok: float = Field(ge=0, le=1e6)
    output_usd_per_mtok: float = Field(ge=0, le=1e6)


class UpstreamConfig(Strict):
    """Where the calls of a pool go. The limits are those of the account; the pool's replicas share them."""

    base_url: str = Field(description="up to and with the version: https://api.example.com/v1")
    model: str = Field(min_length=1, max_length=256, description="its name there; clients never see it")
    api_key_env: str | None = Field(
        None, description="environment variable of the replica's process that holds the key; None: no key"
    )
    prices: ListPrices
    routes: list[UpstreamRoute] = Field(["chat", "completions"], min_length=1)
    engine_fields: list[EngineField] = Field(
        [], description="fields beyond OpenAI's that it understands (vLLM: all of them)"
    )
    output_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what chat calls it; newer hosted models take max_completion_tokens only"
    )
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="prompt and output tokens together")
    longest_wait_s: float = Field(
        2.0,
        ge=0,
        le=60,
        description="for a free request or the next attempt; beyond it the call goes elsewhere",
    )
    max_attempts: int = Field(3, ge=1, le=8, description="while it has sent no byte of an answer")
    connect_timeout_s: float = Field(5.0, gt=0, le=60)
    silence_timeout_s: float = Field(120.0, gt=0, description="longest wait for the next byte of an answer")
    timeout_s: float = Field(600.0, gt=0, description="longest a call may take here")
    failures_to_open: int = Field(5, ge=1, le=100, description="in a row, until it gets no more calls")
    cooldown_s: float = Field(5.0, gt=0, le=300, description="until it is tried again; doubled each time")
    check: bool = Field(default=True, description="ask it for its models before the first call")
    allow_plain_http: bool = Field(default=False, description="http to an address that is not private")


def upstream_problems(path: str, upstream: UpstreamConfig) -> Iterator[Problem]:
    """What single fields cannot know. `path`: of the section."""
    why = _url_problem(upstream.base_url, allow_plain_http=upstream.allow_plain_http)
    if why is not None:
        yield Problem(f"{path}.base_url", *why)
    if upstream.api_key_env is not None and not ENVIRONMENT_NAME.fullmatch(upstream.api_key_env):
        yield Problem(
            f"{path}.api_key_env",
            "is not the name of an environment variable",
            "write a name such as OPENAI_API_KEY here and put the key itself into that variable",
        )
    if not upstream.model.isprintable():
        yield Problem(f"{path}.model", "has characters that cannot be printed", "use the provider's name")


def _url_problem(url: str, *, allow_plain_http: bool) -> tuple[str, str] | None:
    """Message and fix."""
    example = "use https://HOST/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL", example
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        return "is not an http(s) URL", example
    if "@" in parts.netloc:
        return "holds a user or a password", "put the key into an environment variable, named by api_key_env"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "has a query or a fragment", "end it with the path of the API's version"
    if parts.scheme == "http" and not allow_plain_http and not _is_private(host):
        return (
            "is plain http to an address that is not private: key and prompts would be readable on the way",
            "use https, or set allow_plain_http: true if the network between is yours",
        )
    return None


def _is_private(host: str) -> bool:
    """Loopback, private and link-local addresses. Names are not looked up: their address may change."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_private
    except ValueError:
        return False
