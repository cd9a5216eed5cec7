"""Verifiers of the operator's own: Python functions, in a process beside the gateway. A function that hangs
cannot be ended in any other way, and one that crashes must not take the gateway along."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.config.verifiers import PythonVerifierConfig
from cluster.errors import ConfigError
from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Verdict, refused
from deployments.gateway.custom_verifier_child import CustomVerifierChild

logger = logging.getLogger("ray.serve")

MAX_CALLS = 128
"""That run or wait for their turn, each with a draft in memory; more are refused."""

LEAST_S_BETWEEN_STARTS = 1.0
"""A function that crashes whenever it is called must not keep a core busy with starting Python."""

REASON_CHARACTERS = 48
NOT_IN_A_REASON = re.compile(r"[^a-z0-9_.:<>=+-]+")


class CustomVerifierProcess:
    """One per gateway, for all functions; they run one after the other. Started again when it died, or was
    ended because a function took too long."""

    def __init__(self, functions: Iterable[str]) -> None:
        """`functions` are import paths, `module:function`."""
        self._functions = sorted(set(functions))
        self._starting: asyncio.Task[CustomVerifierChild] | None = None
        self._started_at_s = float("-inf")
        self._turn = asyncio.Lock()
        self._calls = 0
        self._closed = False

    async def check(self) -> None:
        """Start it. Raises ConfigError: a function cannot be imported."""
        await self._child()

    async def run(self, function: str, timeout_s: float, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What the child said of `arguments` (draft and expected as JSON values). Takes at most twice
        `timeout_s`: waiting, then running. Raises NotRun."""
        if self._calls >= MAX_CALLS or self._closed:
            raise NotRun("busy")
        child: CustomVerifierChild | None = None
        self._calls += 1
        try:
            async with asyncio.timeout(timeout_s) as limit, self._turn:
                child = await self._child()
                limit.reschedule(asyncio.get_running_loop().time() + timeout_s)
                return await child.ask({"function": function, "timeout_s": timeout_s, **arguments})
        except TimeoutError:
            if child is None:
                raise NotRun("busy") from None
            self._replace(child)
            raise NotRun("timeout") from None
        except (OSError, ValueError, ConfigError) as error:
            if child is not None:
                self._replace(child)
            raise NotRun("died") from error
        finally:
            self._calls -= 1

    async def close(self) -> None:
        self._closed = True
        starting, self._starting = self._starting, None
        if starting is None:
            return
        if not starting.done():
            starting.cancel()  # what was started by then ends with its socket
            await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None:
            await starting.result().end()

    @property
    def pid(self) -> int | None:
        """None: it does not run, or not yet."""
        task = self._starting
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        return task.result().pid

    async def _child(self) -> CustomVerifierChild:
        """The one that runs, or is being started; a caller who leaves does not end the start."""
        task = self._starting
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._start(None)
        return await asyncio.shield(task)

    def _replace(self, child: CustomVerifierChild) -> None:
        if not self._closed:
            self._start(child)

    def _start(self, before: CustomVerifierChild | None) -> asyncio.Task[CustomVerifierChild]:
        self._starting = asyncio.create_task(self._started(before))
        self._starting.add_done_callback(_log_failure)
        return self._starting

    async def _started(self, before: CustomVerifierChild | None) -> CustomVerifierChild:
        if before is not None:
            await before.end()
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._started_at_s + LEAST_S_BETWEEN_STARTS - loop.time())
        self._started_at_s = loop.time()
        return await CustomVerifierChild.start(self._functions)


class CustomVerifier:
    """One function of the YAML. A draft that it cannot judge is refused; `errors` counts those by reason:
    `busy`, `timeout`, `died`, `error` (it raised), `wrong_answer`."""

    def __init__(self, config: PythonVerifierConfig, process: CustomVerifierProcess) -> None:
        self._config = config
        self._process = process
        self.errors: Counter[str] = Counter()

    async def judge(self, draft: Draft, expected: Expected) -> Verdict:
        arguments = {"draft": _draft(draft), "expected": _expected(expected)}
        try:
            said = await self._process.run(self._config.function, self._config.timeout_s, arguments)
        except NotRun as error:
            return self._not_judged(str(error), "")
        if "raised" in said:
            return self._not_judged("error", said["raised"])
        if "returned" in said:
            return self._not_judged("wrong_answer", said["returned"])
        return ACCEPTED if said["accepted"] else refused(_reason(said["reason"]))

    def _not_judged(self, reason: str, why: str) -> Verdict:
        self.errors[reason] += 1
        times = self.errors[reason]
        if times & (times - 1) == 0:  # the 1st, 2nd, 4th, …: a broken function must not fill the log
            logger.warning(
                "the verifier %s did not judge a draft: %s %s (%d times by now)",
                *(self._config.function, reason, why, times),
            )
        return refused(f"python:{reason}")


class NotRun(Exception):
    """The function did not run to its end; the argument says why, in one word."""


def _log_failure(task: asyncio.Task[CustomVerifierChild]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("the process of custom verifiers does not start: %s", task.exception())


def _reason(text: str) -> str:
    """It goes into a header and into metrics: short, and of few characters."""
    return f"python:{NOT_IN_A_REASON.sub('_', text.lower())[:REASON_CHARACTERS].strip('_') or 'refused'}"


def _draft(draft: Draft) -> dict[str, Any]:
    return {
        "text": draft.text,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in draft.tool_calls],
        "finish_reason": draft.finish_reason,
        "token_logprobs": draft.token_logprobs,
        "others": [_draft(other) for other in draft.others],
    }


def _expected(expected: Expected) -> dict[str, Any]:
    return {
        "schema": expected.schema,
        "tools": [{"name": tool.name, "parameters": tool.parameters} for tool in expected.tools],
        "tool_choice": expected.tool_choice,
        "json": expected.json,
    }
