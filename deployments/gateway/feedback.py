"""`POST /v1/feedback`: how good the answer to a call was, in the words of who called.

Decisions reach the log about a second after their call, and feedback may be faster: an id that is not there
yet is looked for again, for a while. Another tenant's call answers as one that never was.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cluster.clock import Clock, SystemClock
from cluster.decision_log import MAX_LABEL, Outcome, OutcomeSource
from cluster.errors import BodyTooLarge, InvalidRequest, RateLimited
from cluster.store.decisions import RETENTION_DAYS, DecisionLog
from deployments.gateway.endpoints.checks import Check, closed_object, described, fail, number, text

MAX_BODY_BYTES = 4096
REQUEST_ID = re.compile(r"req-[0-9a-f]{24}")
WAIT_S = 2.0
POLL_S = 0.2
MAX_AT_ONCE = 64
"""Of one tenant. Each that waits is a question to the database every `POLL_S`."""

THREADS = 2
"""Of their own: a database that hangs must not take those with which keys are checked and journals kept."""

T = TypeVar("T")


class UnknownCall(InvalidRequest):
    """No call of the tenant has this id, or none any more."""

    status = 404
    code = "request_not_found"


def _label(value: Any, name: str) -> None:
    if not (isinstance(value, str) and 0 < len(value) <= MAX_LABEL and value.isprintable()):
        raise fail(name, f"1 to {MAX_LABEL} characters on one line")


FIELDS: dict[str, Check] = {
    "request_id": text(128),
    "score": number(0, 1),
    "label": described(_label, {"type": "string", "minLength": 1, "maxLength": MAX_LABEL}),
}
REQUIRED = ("request_id", "score")


class Feedback:
    """One per gateway."""

    def __init__(
        self, log: DecisionLog, clock: Clock | None = None, *, wait_s: float = WAIT_S, poll_s: float = POLL_S
    ) -> None:
        self._log = log
        self._clock = clock or SystemClock()
        self._wait_s = wait_s
        self._poll_s = poll_s
        self._at_once: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="feedback")

    async def give(self, tenant: str, raw: bytes) -> dict[str, Any]:
        """Keeps what the body says, and returns that. Raises InvalidRequest, UnknownCall, RateLimited,
        StoreUnavailable."""
        if len(raw) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"Feedback takes at most {MAX_BODY_BYTES} bytes.")
        body = closed_object(raw, FIELDS, REQUIRED)
        if self._at_once[tenant] >= MAX_AT_ONCE:
            raise RateLimited("Too much feedback at once. Try again later.", retry_after_s=self._wait_s)
        self._at_once[tenant] += 1
        try:
            return await self._keep(tenant, body)
        finally:
            self._at_once[tenant] -= 1
            if not self._at_once[tenant]:
                del self._at_once[tenant]

    async def _keep(self, tenant: str, body: dict[str, Any]) -> dict[str, Any]:
        request_id = body["request_id"]
        if not REQUEST_ID.fullmatch(request_id) or not await self._is_of(tenant, request_id):
            raise UnknownCall(
                "You made no call with this request_id, or more than "
                f"{RETENTION_DAYS} days ago. It is the header x-sprat-request-id of the call's answer.",
                param="request_id",
            )
        outcome = Outcome(
            request_id, OutcomeSource.FEEDBACK, float(body["score"]), body.get("label"), self._clock.now_ms()
        )
        await self._asked(lambda: self._log.put_outcomes([outcome]))
        return {
            "object": "feedback",
            "request_id": request_id,
            "score": outcome.score,
            "label": outcome.label,
            "at_ms": outcome.at_ms,
        }

    async def _is_of(self, tenant: str, request_id: str) -> bool:
        """At once, or after `wait_s`, whoever else made that call."""
        until_s = time.monotonic() + self._wait_s
        while await self._asked(lambda: self._log.tenant_of(request_id)) != tenant:
            if time.monotonic() >= until_s:
                return False
            await asyncio.sleep(self._poll_s)
        return True

    async def _asked(self, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, question)
