"""What it is worth that a conversation stays with its replica: time to first token of each turn, with and
without.

    python -m deployments.bench.conversation_affinity --state FOLDER [--pool specialist]

Asks the replicas of a running cluster directly, so that the arms differ in nothing but the choice of the
replica: `affine` goes where the gateway's hash ring would send the conversation, `random` anywhere. Both
replay the same conversations, in turn, each under a cache salt of its own. The pool needs two replicas, and
`--enable-prompt-tokens-details` among its engine options for the cached tokens to be told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cluster.router.features import chat_features
from cluster.scheduler.snapshot import FleetSnapshot
from cluster.types import PoolLoad, ReplicaPhase, ReplicaState
from deployments.cluster_status import cluster_status
from deployments.state_folder import StateFolder

TURNS = 6
SYSTEM_WORDS, QUESTION_WORDS = 200, 120
ANSWER_TOKENS = 16
WORDS = ("river", "stone", "green", "seven", "paper", "cloud", "table", "north", "light", "copper")


@dataclass(frozen=True, slots=True)
class Turn:
    arm: str
    number: int
    ttft_ms: float
    prompt_tokens: int
    cached_tokens: int | None


@dataclass(frozen=True, slots=True)
class Engines:
    """The replicas of one pool. `snapshot` holds their ring."""

    session: aiohttp.ClientSession
    model: str
    pool: str
    addresses: dict[str, str]
    snapshot: FleetSnapshot

    def replica(self, arm: str, body: dict[str, Any], chance: random.Random) -> str:
        if arm == "random":
            return chance.choice(sorted(self.addresses))
        return self.snapshot.affine_replica(self.pool, chat_features(body).conversation)

    async def ask(self, replica: str, body: dict[str, Any]) -> tuple[float, str, dict[str, Any]]:
        """TTFT in ms, text of the answer, usage."""
        started_s = time.perf_counter()
        first_s = 0.0
        text = ""
        usage: dict[str, Any] = {}
        url = f"http://{self.addresses[replica]}/v1/chat/completions"
        async with self.session.post(url, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                usage = event.get("usage") or usage
                content = event["choices"][0]["delta"].get("content") if event["choices"] else None
                if content:
                    first_s = first_s or time.perf_counter()
                    text += content
        return (first_s - started_s) * 1000, text, usage


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


async def conversation(engines: Engines, arm: str, seed: int) -> list[Turn]:
    texts, chance = random.Random(seed), random.Random(f"{arm} {seed}")  # noqa: S311 (no secret)
    messages = [{"role": "system", "content": words(texts, SYSTEM_WORDS)}]
    salt = secrets.token_urlsafe(32)
    turns = []
    for number in range(1, TURNS + 1):
        messages.append({"role": "user", "content": words(texts, QUESTION_WORDS)})
        body = {
            "model": engines.model,
            "messages": messages,
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "cache_salt": salt,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        ttft_ms, text, usage = await engines.ask(engines.replica(arm, body, chance), body)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        turns.append(Turn(arm, number, ttft_ms, usage["prompt_tokens"], cached))
        messages.append({"role": "assistant", "content": text})
    return turns


async def measure(state: StateFolder, pool: str, conversations: int) -> list[Turn]:
    status = await cluster_status(state)
    found = next(each for each in status["pools"] if each["name"] == pool)
    addresses = {each["id"]: each["address"] for each in found["replicas"] if each["state"] == "ready"}
    if len(addresses) < 2:
        raise SystemExit(f"pool {pool!r} has {len(addresses)} ready replicas; this needs 2 or more")
    ready = tuple(ReplicaState(each, pool, ReplicaPhase.READY) for each in addresses)
    headers = {"authorization": f"Bearer {state.secrets().gateway_token}"}
    async with aiohttp.ClientSession(headers=headers, read_bufsize=2**20) as session:
        snapshot = FleetSnapshot.of({pool: PoolLoad(replicas=ready)}, 1)
        engines = Engines(session, found["base_model"], pool, addresses, snapshot)
        turns = []
        for seed in range(conversations):
            for arm in ("affine", "random"):
                turns += await conversation(engines, arm, seed)
        return turns


def summary(turns: list[Turn]) -> list[dict[str, Any]]:
    """One row per turn: medians over the conversations."""
    rows = []
    for number in range(1, TURNS + 1):
        row: dict[str, Any] = {"turn": number}
        for arm in ("affine", "random"):
            own = [turn for turn in turns if (turn.arm, turn.number) == (arm, number)]
            row["prompt_tokens"] = round(statistics.median(turn.prompt_tokens for turn in own))
            row[f"{arm}_ttft_ms"] = round(statistics.median(turn.ttft_ms for turn in own))
            told = [turn.cached_tokens for turn in own if turn.cached_tokens is not None]
            row[f"{arm}_cached_tokens"] = round(statistics.mean(told)) if told else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments.bench.conversation_affinity")
    parser.add_argument("--state", type=Path, required=True, help="state folder of the running cluster")
    parser.add_argument("--pool", default="specialist")
    parser.add_argument("--conversations", type=int, default=6)
    options = parser.parse_args()
    turns = asyncio.run(measure(StateFolder(options.state), options.pool, options.conversations))
    for row in summary(turns):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
