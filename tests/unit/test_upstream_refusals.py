"""Statuses of an upstream, and which of its words may be passed on."""

from __future__ import annotations

import orjson
import pytest

from deployments.upstream.refusals import Meaning, redacted, refusal_of


def error(message: str, **more: object) -> bytes:
    return orjson.dumps({"error": {"message": message} | more})


@pytest.mark.parametrize(
    ("status", "raw", "meaning"),
    [
        (400, error("temperature is too high"), Meaning.INVALID),
        (422, b'{"detail": [{"loc": ["body"]}]}', Meaning.INVALID),
        (413, b"", Meaning.INVALID),
        (401, error("Incorrect API key"), Meaning.KEY_REFUSED),
        (402, b"", Meaning.KEY_REFUSED),
        (429, error("You exceeded your quota", code="insufficient_quota"), Meaning.KEY_REFUSED),
        (403, b"", Meaning.FORBIDDEN),
        (429, error("slow down", code="rate_limit_exceeded"), Meaning.BUSY),
        (500, b"<html>", Meaning.BROKEN),
        (529, b"[]", Meaning.BROKEN),
        (408, b"", Meaning.BROKEN),
        (404, error("no such model"), Meaning.WRONG),
        (302, b"", Meaning.WRONG),
        (204, b"", Meaning.WRONG),
    ],
)
def test_what_a_status_means(status, raw, meaning):
    assert refusal_of(status, raw, api_key_env="THE_KEY").meaning is meaning


@pytest.mark.parametrize(
    "raw",
    [
        error(
            "This model's maximum context length is 8192 tokens. However, …", code="context_length_exceeded"
        ),
        error("the request exceeds the available context size", type="exceed_context_size_error"),
        error("prompt is too long: 208310 tokens > 200000 maximum"),
        b'{"error": "input exceeds the context window"}',
        b'[{"error": {"message": "maximum context is reached"}}]',
    ],
)
def test_a_prompt_that_is_too_long_is_recognised(raw):
    refusal = refusal_of(400, raw, api_key_env=None)
    assert "context length" in refusal.message, "the words by which the gateway tries a larger context"
    assert refusal.code == "context_length_exceeded"


def test_an_operator_reads_which_variable_to_check():
    assert "check THE_KEY" in refusal_of(401, b"", api_key_env="THE_KEY").message
    assert "set api_key_env" in refusal_of(401, b"", api_key_env=None).message


@pytest.mark.parametrize(
    "secret",
    [
        "https://api.internal.example/v1?key=1",
        "sk-proj-abcd1234efgh5678",
        "sk-abc***xyz",
        "Bearer abc.def",
        "org-V4x9",
        "9f8e7d6c5b4a39281706f5e4d3c2b1a0",
        "ops@example.com",
        "node-7.rack.example.com:8443/v1",
        "the-secret-word",
    ],
)
def test_words_of_the_upstream_are_redacted(secret):
    line = redacted(f"bad value\nfor {secret} in messages.0.content", ["the-secret-word", ""])
    assert line == "bad value for … in messages.0.content"


def test_a_message_is_one_short_printable_line():
    line = redacted("a\x1b[31m\r\n\tb" + "x y " * 1000)
    assert line.startswith("a [31m bx")
    assert len(line) <= 300
