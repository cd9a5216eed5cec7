"""Asks each model every case once, through the gateway, and keeps each answer as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp

from cluster.errors import StartError
from deployments.evaluation.answers import Answer, parse_answer
from deployments.evaluation.cases import Case

TRIES = 6
FIRST_PAUSE_S = 5.0
"""Doubled after each try: what a full or restarting engine needs."""

TIMEOUT_S = 900.0
"""Of one call: a large model on a busy core gives a token in seconds."""

PROGRESS_EVERY = 10

Keep = Callable[[Answer], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running gateway. `url` ends before `/chat/completions`."""

    url: str
    key: str


@dataclass(frozen=True, slots=True)
class Work:
    """Cases for one value of `model`, at most `in_flight` of them at a time."""

    asked: str
    cases: Sequence[Case]
    in_flight: int


async def collect(endpoint: Endpoint, works: Sequence[Work], keep: Keep, tell: Tell) -> None:
    """All works side by side. Raises StartError at the first case that is not answered after some tries;
    what was kept stays kept."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        headers={"authorization": f"Bearer {endpoint.key}"},
        connector=aiohttp.TCPConnector(limit=0),
    ) as session:
        caller = _Caller(session, f"{endpoint.url}/chat/completions")
        try:
            async with asyncio.TaskGroup() as group:
                for work in works:
                    queue = _Queue(work, tell)
                    for _ in range(min(work.in_flight, len(work.cases))):
                        group.create_task(_worker(caller, queue, keep))
        except* StartError as failed:
            raise failed.exceptions[0] from None


async def _worker(caller: _Caller, queue: _Queue, keep: Keep) -> None:
    """Takes the next case while there is one; its fellows take from the same queue."""
    for case in queue.left:
        keep(await caller.ask(case, queue.work.asked))
        queue.one_done()


class _Queue:
    """What is left of a work, and how far it is."""

    def __init__(self, work: Work, tell: Tell) -> None:
        self.work = work
        self.left = iter(work.cases)
        self._tell = tell
        self._done = 0
        self._began_s = perf_counter()

    def one_done(self) -> None:
        self._done += 1
        count = len(self.work.cases)
        if self._done % PROGRESS_EVERY == 0 or self._done == count:
            minutes = (perf_counter() - self._began_s) / 60
            self._tell(f"{self.work.asked}: {self._done} of {count} answered in {minutes:.1f} min")


@dataclass(frozen=True, slots=True)
class _Caller:
    session: aiohttp.ClientSession
    url: str

    async def ask(self, case: Case, asked: str) -> Answer:
        """Tries again what may pass. The latency is that of the try that was answered."""
        pause_s = FIRST_PAUSE_S
        for tries_left in reversed(range(TRIES)):
            began_s = perf_counter()
            try:
                async with self.session.post(self.url, json={**case.body, "model": asked}) as reply:
                    body = await reply.json()
                    if reply.status == 200:
                        latency_ms = (perf_counter() - began_s) * 1000
                        return parse_answer(case, asked, reply.headers, body, latency_ms)
                    problem, may_pass = _message(body), _may_pass(reply.status)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                problem, may_pass = f"{type(error).__name__} {error}".strip(), True
            if not (tries_left and may_pass):
                break
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise StartError(
            f"{case.id} was not answered by {asked!r}: {problem}. Answers so far are kept; the same command "
            "goes on with the rest."
        )


def _may_pass(status: int) -> bool:
    """Whether another try may succeed."""
    return status == 429 or status >= 500


def _message(body: Mapping[str, Any]) -> str:
    return str((body.get("error") or {}).get("message") or body)
