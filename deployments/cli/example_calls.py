"""What `sprat up` shows at the end: how to call, and two calls that were made."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from cluster.config import ClusterConfig
from cluster.errors import StartError

TIMEOUT_S = 300.0

NARROW = {
    "model": "auto",
    "metadata": {"task": "classify"},
    "messages": [
        {
            "role": "system",
            "content": "Classify the sentiment of the message as positive or negative. Answer one word.",
        },
        {"role": "user", "content": "The delivery was two weeks late and the box was broken."},
    ],
    "max_tokens": 8,
    "temperature": 0,
}
HARD = {
    "model": "auto",
    "messages": [
        {
            "role": "user",
            "content": "Write a Python function gcd(a, b) without imports. Answer with the code only.",
        }
    ],
    "max_tokens": 48,
    "temperature": 0,
}


def run(endpoint: str, key: str, config: ClusterConfig) -> list[dict[str, Any]]:
    """One narrow and one hard call through the front door. The time is what a client sees."""
    calls = [("narrow", NARROW), ("hard", HARD)] if len(config.tiers) > 1 else [("narrow", NARROW)]
    return [_call(endpoint, key, name, body) for name, body in calls]


def _call(endpoint: str, key: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 (our own endpoint)
        f"{endpoint}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    started_s = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            answer = json.load(response)
            headers = response.headers
    except urllib.error.HTTPError as error:
        raise StartError(
            f"the {name} example call failed: {error.read().decode(errors='replace')}"
        ) from error
    except OSError as error:
        raise StartError(
            f"the {name} example call failed: {error}. `sprat status` says what runs."
        ) from error
    return {
        "call": name,
        "tier": headers["x-sprat-tier"],
        "model": headers["x-sprat-model"],
        "reason": headers["x-sprat-reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "output_tokens": answer["usage"]["completion_tokens"],
        "time_s": round(time.monotonic() - started_s, 2),
        "cost_usd": float(headers["x-sprat-cost-usd"]),
        "saved_usd": float(headers["x-sprat-saved-usd"]),
        "answer": answer["choices"][0]["message"]["content"],
    }


def describe(calls: list[dict[str, Any]]) -> str:
    lines = []
    for call in calls:
        lines.append(f"  {call['call']:<7} {call['tier']} tier, {call['model']}, because {call['reason']}")
        lines.append(
            f"          {call['prompt_tokens']} + {call['output_tokens']} tokens in {call['time_s']:.2f} s, "
            f"cost {call['cost_usd']:.6f} USD, saved {call['saved_usd']:.6f} USD"
        )
        lines += [f"          | {line}" for line in call["answer"].strip().splitlines()]
    lines.append(
        "  Costs follow from declared node prices. "
        "Saved: the same tokens at the large tier's price, minus the cost."
    )
    return "\n".join(lines)


def welcome(endpoint: str, key: str, ready_s: float) -> str:
    return f"""
sprat is ready after {ready_s:.0f} s.

  endpoint   {endpoint}
  API key    {key}

  curl {endpoint}/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "auto", "metadata": {{"task": "classify"}}, "max_tokens": 8,
         "messages": [{{"role": "user", "content": "Positive or negative? I love it."}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{endpoint}", api_key="{key}")
  answer = client.chat.completions.create(
      model="auto", max_tokens=32, messages=[{{"role": "user", "content": "Name three primes."}}])
  print(answer.choices[0].message.content)

`sprat status` shows what runs, `make down` stops it.
"""
