"""One chat call over HTTP → an `Answer`, with every error as a value. Nothing is retried.

Lines are taken from the socket as they come: `readline` returns as soon as a line is complete. A reader that
fills blocks first (Locust's `iter_lines`: 1,024 bytes) reports a first token seconds late.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import gevent
import orjson
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPSocketPoolResponse

from loadtest.bad_input import BadInput
from loadtest.generator.answer import Answer
from loadtest.workloads.planned_call import PlannedCall

# Open calls are limited by the plan, never by the pool: a full pool would delay arrivals unseen.
MAX_CONNECTIONS = 100_000
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What all calls have in common. `endpoint` is an OpenAI base URL, with or without `/v1`."""

    endpoint: str
    model: str
    streamed: bool
    timeout_s: float

    def body(self, call: PlannedCall, prompt: str) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": call.output_tokens,
            "temperature": 0,
        }
        if self.streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if call.task is not None:
            body["metadata"] = {"task": call.task}
        return orjson.dumps(body)

    def path(self) -> str:
        prefix = urlsplit(self.endpoint).path.rstrip("/")
        return f"{prefix if prefix.endswith('/v1') else prefix + '/v1'}/chat/completions"


class ChatClient:
    """Keep-alive connections; a call takes an idle one or opens its own."""

    def __init__(self, shape: RequestShape) -> None:
        parts = urlsplit(shape.endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadInput(f"--endpoint {shape.endpoint!r}: use http://HOST:PORT/v1")
        self._timeout_s = shape.timeout_s
        self._path = shape.path()
        self._http = HTTPClient.from_url(
            f"{parts.scheme}://{parts.netloc}",
            concurrency=MAX_CONNECTIONS,
            connection_timeout=min(CONNECT_TIMEOUT_S, shape.timeout_s),
            network_timeout=None,  # a timer for each read; `call` has one for all
        )

    def call(self, body: bytes, key: str) -> tuple[Answer, dict[str, str]]:
        """The answer and its headers (lower case), complete when this returns."""
        answer, headers = Answer(), dict[str, str]()
        sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            with gevent.Timeout(self._timeout_s):
                response = self._http.request("POST", self._path, body, sent)
                headers = {name.lower(): str(value) for name, value in response.items()}
                _read(answer, response, headers)
        except gevent.Timeout:
            answer.fail("timeout", f"no end within {self._timeout_s:g} s")
        except ConnectionRefusedError as error:
            answer.fail("connect", str(error))
        except TimeoutError:
            answer.fail("connect", f"no connection within {CONNECT_TIMEOUT_S:g} s")
        except (OSError, HTTPParseError) as error:
            answer.fail("broken", str(error) or type(error).__name__)
        return answer, headers

    def close(self) -> None:
        self._http.close()


def _read(answer: Answer, response: HTTPSocketPoolResponse, headers: dict[str, str]) -> None:
    answer.status = response.status_code
    if answer.status != 200:
        answer.read_refusal(response.read())
    elif headers.get("content-type", "").startswith("text/event-stream"):
        while line := response.readline(b"\n"):
            answer.read_line(line, perf_counter())
        answer.end_stream()
    else:
        answer.read_whole(response.read())
        answer.cost = {
            "cost_usd": headers.get("x-sprat-cost-usd"),
            "saved_usd": headers.get("x-sprat-saved-usd"),
        }
