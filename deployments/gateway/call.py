"""The life of one call: decision → admission → engine → settlement, with retries before the first byte.

A draft of a cascade that its verifiers refuse is one more step, paid with the rest. Whatever ends a call
(answer, error, client gone, timeout), it is settled exactly once.
"""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson

from cluster.clock import SystemClock
from cluster.cost import usd
from cluster.errors import (
    AtCapacity,
    BudgetExceeded,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    NoReplica,
    RateLimited,
    RequestTooLargeForLimit,
)
from cluster.router.router import escalation
from cluster.scheduler.key_terms import KeyTerms
from cluster.scheduler.terms import AdmissionTerms, tokens_at_most
from cluster.tenants import ApiKey
from cluster.types import (
    AdmitRequest,
    Candidate,
    Cascade,
    Decision,
    Grant,
    PriorityClass,
    RequestFeatures,
    RequestKind,
    SettleRequest,
    Usage,
)
from deployments.engine_client import EngineAnswer, EngineClient
from deployments.gateway.admission import Admission
from deployments.gateway.cascade import DraftJudge, DraftRefusedError, HeldDraft
from deployments.gateway.decision_record import SpentDraft, decision_record, step_record
from deployments.gateway.endpoints import sse
from deployments.gateway.endpoints.endpoint import Endpoint, StreamReader
from deployments.gateway.http.message import Reply
from deployments.gateway.leases import LeaseKeeper
from deployments.gateway.settling import Settling
from deployments.gateway.suspects import Suspects
from deployments.residency.engine import NOT_LOADED

logger = logging.getLogger("ray.serve")


CLOCK = SystemClock()

_IDS = random.Random(secrets.randbits(256))  # noqa: S311
"""Ids are unique, not secret, and the system's own generator costs a system call each."""

NOTHING = Usage(0, 0)
"""What is owed for a call that no engine took; not the same as one that costs nothing."""


STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache"}

REFUSED = (AtCapacity, BudgetExceeded, NoReplica, RateLimited, RequestTooLargeForLimit)
"""Answers of the scheduler that leave nothing behind."""


@dataclass(frozen=True, slots=True)
class CallContext:
    """What all calls of a gateway share."""

    terms: AdmissionTerms
    admission: Admission
    leases: LeaseKeeper
    settling: Settling
    engines: EngineClient
    suspects: Suspects
    max_attempts: int
    judges: Mapping[str, DraftJudge]
    """By the name of the cascade."""


@dataclass(slots=True)
class Call:
    """One client request. `usage` grows while a stream runs and is exact once the engine reported it."""

    context: CallContext
    key: ApiKey
    endpoint: Endpoint
    body: dict[str, Any]
    features: RequestFeatures
    decision: Decision
    cache_salt: str
    wanted_class: PriorityClass | None = None
    deadline_ms: int | None = None
    request_id: str = field(default_factory=lambda: f"req-{_IDS.getrandbits(96):024x}")
    grant: Grant | None = None
    _request: AdmitRequest | None = None
    _granted_s: float = 0.0
    _step: int = 0
    _failures: int = 0
    _excluded: tuple[str, ...] = ()
    _known_cause: EngineFailed | None = None
    _usage: Usage = NOTHING
    _reader: StreamReader | None = None
    _admitted_ms: int = 0
    _drafts: list[SpentDraft] = field(default_factory=list)
    _is_draft_accepted: bool = False
    _routed: Decision = field(init=False)

    def __post_init__(self) -> None:
        self._routed = self.decision

    # Running.

    async def answer(self) -> bytes:
        """The whole body of a call that is not streamed, as the engine wrote it."""
        while True:
            grant = await self._admit()
            answer: EngineAnswer | None = None
            try:
                answer = await self._engine(grant)
                raw = await answer.read()
                self._usage = self.endpoint.usage_of(raw)
                judge = self._judge(grant)
                if judge is not None:
                    raw = await judge.verified(self.endpoint, self.body, raw)
                    self._is_draft_accepted = True
            except UNANSWERED as failure:
                self._recover(grant, failure)
            else:
                return raw
            finally:
                if answer is not None:
                    answer.close()

    async def stream(self, reply: Reply) -> None:
        """The events of a streamed call, passed on in the moment in which they come. Our headers leave with
        the first of them: until then an error is a status, and another replica may answer. Later errors
        raise, with `reply` started."""
        streams = self.endpoint.stream
        if streams is None:
            raise InvalidRequest(f"{self.endpoint.path} is not streamed.", param="stream")
        while True:
            grant = await self._admit()
            answer: EngineAnswer | None = None
            try:
                answer = await self._engine(grant)
                reader = self._reader = streams(self.body, self._last_words)
                judge = self._judge(grant)
                if judge is None:
                    reply.take_from(answer)
                    await answer.relay(partial(self._pass_on, reader, reply))
                else:
                    held = HeldDraft(
                        judge,
                        self.endpoint,
                        self.body,
                        write=partial(self._write, reply),
                        released=partial(self._release, reply, answer),
                    )
                    await answer.relay(partial(held.feed, reader))
                if not reader.finished:
                    raise EngineFailed("The engine ended the stream early.")
                if judge is not None:
                    await held.end()
                    self._is_draft_accepted = True
            except UNANSWERED as failure:
                if reply.started:
                    logger.warning("engine of %s was lost in mid-stream", self.request_id)
                    raise
                self._recover(grant, failure)
            else:
                return
            finally:
                if answer is not None:
                    answer.close()

    def settle(self) -> None:
        """Once, when the call is over. The answer never waits for Redis or the ledger."""
        request, self._request = self._request, None
        if request is None:
            return
        self.context.leases.release(self.request_id)
        self._read_usage()
        budgets = request.budget_names
        if self._usage is NOTHING and all(draft.usage is NOTHING for draft in self._drafts):
            refunds = self._key_terms().rate_refunds(self._charged_tokens())
            self.context.settling.cancel(
                SettleRequest(self.request_id, self._pools(), rates=refunds, budgets=budgets, cancelled=True)
            )
            return
        usages = [self._usage, *[draft.usage for draft in self._drafts]]
        prompt_tokens = sum([usage.prompt_tokens for usage in usages])
        output_tokens = sum([usage.output_tokens for usage in usages])
        candidate = self._candidate()
        cost, saved = self.charges_micro_usd()
        # The hold is an upper bound; should an engine report more, the budget still wins (Redis counts it).
        charged = min(cost, request.hold_micro_usd) if budgets else cost
        settle = SettleRequest(
            request_id=self.request_id,
            pools=self._pools(),
            tier=candidate.tier,
            cost_micro_usd=cost,
            saved_micro_usd=saved,
            rates=self._key_terms().rate_corrections(self._charged_tokens(), prompt_tokens + output_tokens),
            budgets=budgets,
        )
        entry = {
            "request_id": self.request_id,
            "kind": "settled",
            "tenant": self.key.tenant,
            "key_id": self.key.key_id,
            "tier": candidate.tier,
            "pool": candidate.pool,
            "model": candidate.model,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "estimated": any(usage.estimated for usage in usages),
            "cost_micro_usd": charged,
            "saved_micro_usd": saved + cost - charged,
            "engine_ms": round((time.monotonic() - self._granted_s) * 1000),
            "admitted_at_ms": self._admitted_ms,
            "settled_at_ms": CLOCK.now_ms(),
        }
        decision = None
        if self.features.kind is RequestKind.GENERATE:
            decision = decision_record(
                entry, self._routed, self.features, self._steps(cost), large_micro_usd=saved + cost
            )
        self.context.settling.settle(settle, entry, decision)

    # Telling.

    def charges_micro_usd(self) -> tuple[int, int]:
        """Cost, refused drafts included, and what was saved: the answer's tokens at the large tier's price,
        minus the cost; may be negative."""
        usage = self._usage
        cost = self._candidate().price.cost_micro_usd(usage.prompt_tokens, usage.output_tokens)
        if self._drafts:
            cost += self._spent_on_drafts_micro_usd
        large = self.decision.large_price.cost_micro_usd(usage.prompt_tokens, usage.output_tokens)
        return cost, large - cost

    def headers(self) -> dict[str, str]:
        headers = {"x-sprat-request-id": self.request_id, "x-sprat-reason": self.decision.reason}
        if self.grant is not None:
            candidate = self.grant.candidate
            headers["x-sprat-tier"] = candidate.tier
            headers["x-sprat-model"] = candidate.model
            headers["x-sprat-replica"] = self.grant.replica_id
        return headers

    def money_headers(self) -> dict[str, str]:
        cost, saved = self.charges_micro_usd()
        return {"x-sprat-cost-usd": f"{usd(cost):.6f}", "x-sprat-saved-usd": f"{usd(saved):.6f}"}

    # Parts.

    async def _admit(self) -> Grant:
        if self._failures >= self.context.max_attempts:
            if self._known_cause is not None:
                raise self._known_cause
            raise EngineFailed(f"The engine failed {self._failures} times for this call. Try again.")
        # From here on Redis may hold something for us, also when this call is cancelled before the reply.
        request = self._request = self._admission_request()
        try:
            grant = await self.context.admission.place(request, hard=self._key_terms().is_hard)
        except REFUSED as refusal:
            if self._step == 0:
                self._request = None  # nothing was taken
            elif isinstance(refusal, NoReplica) and self._excluded:
                raise (
                    self._known_cause
                    or EngineFailed("The engine failed and no other replica can take this call. Try again.")
                ) from refusal
            raise
        self.grant = grant
        self._granted_s = time.monotonic()
        self.context.leases.hold(request, grant)
        return grant

    def _admission_request(self) -> AdmitRequest:
        """Later steps run inside the hold, the rates and the windows of the first."""
        if self._request is None:
            self._admitted_ms = CLOCK.now_ms()
            request = self.context.terms.request(
                self.request_id,
                self.key,
                self.decision,
                self.features,
                now_ms=self._admitted_ms,
                wanted=self.wanted_class,
                deadline_ms=self.deadline_ms,
                epoch_id=self.context.admission.epoch_id,
                affine_replica=self.context.admission.affine_replica,
            )
            if self.context.suspects:
                avoided = self.context.suspects.to_avoid(
                    [each.pool for each in request.candidates], self.context.admission.snapshot
                )
                request = replace(request, exclude_replicas=avoided)
            return request
        candidates = self.decision.candidates
        return replace(
            self._request,
            step=self._step,
            candidates=candidates,
            exclude_replicas=self._excluded,
            placements=self.context.terms.placements(
                candidates, self.features, self._request.priority, self.context.admission.affine_replica
            ),
        )

    async def _engine(self, grant: Grant) -> EngineAnswer:
        """An answer of 200; refusals of the engine raise ours."""
        # Owed from now on, should nothing more be learned: the prompt.
        self._usage = Usage(self.features.prompt_tokens_estimate, 0, estimated=True)
        self.context.leases.dispatched(self.request_id)
        judge = self._judge(grant)
        if judge is None:
            body = self.endpoint.engine_body(self.body, grant.candidate, self.cache_salt)
        else:
            body = judge.engine_body(self.endpoint, self.body, grant.candidate, self.cache_salt)
        answer = await self.context.engines.post(
            grant.address, self.endpoint.path, body, grant.candidate.adapter
        )
        self.context.suspects.answered(grant.replica_id)
        if answer.status != HTTPStatus.OK:
            try:
                raise _refusal(answer.status, await answer.read())
            finally:
                answer.close()
        return answer

    def _pass_on(self, reader: StreamReader, reply: Reply, chunk: bytes) -> None:
        """Of every piece of every stream: as little as possible."""
        events = reader.feed(chunk)
        if events:
            self._write(reply, events)

    def _write(self, reply: Reply, events: bytes) -> None:
        if not reply.started:
            reply.start(200, self.headers() | STREAM_HEADERS)
        reply.write(events)

    def _release(self, reply: Reply, answer: EngineAnswer) -> None:
        """The beginning of a draft passed: the rest is handed on as it comes."""
        self._is_draft_accepted = True
        reply.take_from(answer)

    def _last_words(self, usage: Usage | None) -> bytes:
        """The comment before the last event of a stream."""
        if usage is not None:
            self._usage = usage
        return sse.comment("sprat", self._money())

    def _read_usage(self) -> None:
        """Of a stream: exact once the engine has reported it, until then what has come."""
        reader, self._reader = self._reader, None
        if reader is not None:
            counted = Usage(self.features.prompt_tokens_estimate, reader.outputs, estimated=True)
            self._usage = reader.usage or counted

    def _money(self) -> dict[str, float]:
        cost, saved = self.charges_micro_usd()
        return {"cost_usd": usd(cost), "saved_usd": usd(saved)}

    def _recover(self, grant: Grant, failure: Exception) -> None:
        """Make ready for the next attempt, or raise what the client gets. Nothing is owed for this one, as no
        answer came of it; but a refused draft is owed."""
        cascade = self.decision.cascade
        if cascade is not None and isinstance(failure, DraftRefusedError | EngineFailed):
            self._go_up(grant, cascade, failure)
            return
        self._usage = NOTHING
        self._reader = None
        if isinstance(failure, InvalidRequest):
            raise failure
        if isinstance(failure, PromptTooLongError):
            # The engine counted more tokens than the estimate: a larger context, where there is one.
            left = escalation(self.decision, grant.candidate)
            if left is None:
                raise ContextLengthExceeded(str(failure), param="messages") from None
            self.decision = left
        else:
            logger.warning("attempt %d of %s failed: %s", self._step, self.request_id, failure)
            if isinstance(failure, AdapterMissingError | EngineBusyError):
                self._known_cause = failure
            if not isinstance(failure, AdapterMissingError):
                self.context.suspects.failed(grant.replica_id)
            self._excluded = (*self._excluded, grant.replica_id)
            self._failures += 1
        self._step += 1

    def _go_up(self, grant: Grant, cascade: Cascade, failure: Exception) -> None:
        """The draft was refused, or its engine failed: what follows it in the cascade."""
        if isinstance(failure, DraftRefusedError):
            self._read_usage()
            why = failure.verdict.reason
        else:
            self._usage, self._reader, why = NOTHING, None, "draft_failed"
            self.context.suspects.failed(grant.replica_id)
            self._excluded = (*self._excluded, grant.replica_id)
        self._drafts.append(SpentDraft(grant, self._usage, why))
        self._usage = NOTHING
        self.decision = replace(cascade.then, reason=f"{self.decision.reason};{why}")
        self._step += 1

    def _judge(self, grant: Grant) -> DraftJudge | None:
        """Of a draft. None where the answer is that of the cascade's last target, or there is no cascade."""
        cascade = self.decision.cascade
        if cascade is None or grant.candidate.runs_like_one_of(cascade.then.candidates):
            return None
        return self.context.judges[cascade.policy]

    def _steps(self, cost_micro_usd: int) -> list[dict[str, Any]]:
        """Of the decision log: refused drafts, and the run that gave the answer or was the last to try. What
        is settled with a cost has run, so there is a grant."""
        steps = [draft.step() for draft in self._drafts]
        if self.grant is not None:
            left_micro_usd = cost_micro_usd - self._spent_on_drafts_micro_usd
            verdict = "accepted" if self._is_draft_accepted else None
            steps.append(step_record(self.grant, left_micro_usd, verdict))
        return steps

    @property
    def _spent_on_drafts_micro_usd(self) -> int:
        return sum([draft.cost_micro_usd for draft in self._drafts])

    def _charged_tokens(self) -> int:
        """What the rates were charged at the first step."""
        return tokens_at_most(self._routed, self.features)

    def _candidate(self) -> Candidate:
        return self.grant.candidate if self.grant is not None else self.decision.first

    def _pools(self) -> tuple[str, ...]:
        pools = dict.fromkeys([self._candidate().pool])
        for candidate in self.decision.candidates:
            pools[candidate.pool] = None
        return tuple(pools)

    def _key_terms(self) -> KeyTerms:
        return self.context.terms.of_key(self.key)


class AdapterMissingError(EngineFailed):
    """The replica lives, and cannot load the call's adapter."""

    status = 503
    code = NOT_LOADED


class EngineBusyError(EngineFailed):
    """The replica lives and takes no calls now: its upstream's limits are reached (429), or its upstream is
    away (503). Others are asked; when there are none, the client learns when to come back."""

    def __init__(self, status: int, message: str, retry_after_s: float | None) -> None:
        super().__init__(message, code="engine_busy", retry_after_s=retry_after_s)
        self.status = status
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.error_type = "rate_limit_error"


class PromptTooLongError(Exception):
    """The engine's own count of the prompt does not fit its context."""


UNANSWERED = (EngineFailed, PromptTooLongError, InvalidRequest, DraftRefusedError)
"""What can come of an attempt in place of an answer."""


def _refusal(status: int, raw: bytes) -> Exception:
    try:
        error = orjson.loads(raw)["error"]
        message, code, retry_after_s = str(error["message"]), error.get("code"), error.get("retry_after_s")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        message, code, retry_after_s = "", None, None
    if code == NOT_LOADED:
        return AdapterMissingError("The adapter cannot be loaded. An operator sees why: sprat adapters show.")
    if status == 400 and "context length" in message:
        return PromptTooLongError(_public(message))
    if status in (400, 422):
        return InvalidRequest(f"The engine refused the request: {_public(message)}", code="refused_by_engine")
    if status in (429, 503) and isinstance(retry_after_s, int | float):
        return EngineBusyError(status, _public(message), float(retry_after_s))
    return EngineFailed(f"The engine answered with status {status}.")


def _public(message: str) -> str:
    """Library messages may hold addresses and paths; they do not leave the cluster (THREATS.md 3)."""
    line = " ".join(message.split())[:300]
    return re.sub(r"(/[\w.-]+){2,}|\b\d{1,3}(\.\d{1,3}){3}(:\d+)?|0x[0-9a-fA-F]+", "…", line)
