"""The clockwork: takes a slot and says when each token is due. Knows nothing of HTTP or of texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployments.sim.profile import LatencyProfile, inter_token_s, ttft_s
from deployments.sim.slots import Slots


class SimEngine:
    """Counts are public so that a replica can report its load without asking over HTTP."""

    def __init__(self, profile: LatencyProfile) -> None:
        self.profile = profile
        self.slots = Slots(profile.max_concurrency)
        self.prompt_tokens_total = 0
        self.output_tokens_total = 0

    @asynccontextmanager
    async def sequence(self, prompt_tokens: int) -> AsyncIterator[Pace]:
        """One running sequence. The slot is free again when the block ends, cancelled or not."""
        await self.slots.acquire()
        try:
            self.prompt_tokens_total += prompt_tokens
            yield Pace(self, prompt_tokens)
        finally:
            self.slots.release()


class Pace:
    """When the tokens of one sequence come.

    Due times build on each other and not on the moment of waking up, so a late event loop does not
    stretch an answer: it catches up.
    """

    def __init__(self, engine: SimEngine, prompt_tokens: int) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time()
        self._gap_s = ttft_s(engine.profile, prompt_tokens, engine.slots.running)

    async def next_token(self) -> None:
        """Returns when the next token is due. Gives way once even if it is due already: others get
        their turn and a disconnect is noticed."""
        self._due_s += self._gap_s
        await asyncio.sleep(max(0.0, self._due_s - self._loop.time()))
        self._engine.output_tokens_total += 1
        self._gap_s = inter_token_s(self._engine.profile, self._engine.slots.running)

    async def prefill(self) -> None:
        """Returns when the prompt has been read and nothing else is to come."""
        await asyncio.sleep(self._gap_s)

    async def tokens(self, count: int) -> None:
        """`count` tokens that nobody looks at one by one: with no time between them one wait is enough."""
        for index in range(count):
            await self.next_token()
            if self._gap_s == 0:
                self._engine.output_tokens_total += count - index - 1
                return
