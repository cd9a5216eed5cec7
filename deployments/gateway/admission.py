"""From an admission request to a slot: the scheduler's answer, the wait for it, or this gateway's own
decision while the scheduler is away.
"""

from __future__ import annotations

import time
from dataclasses import replace

from cluster.errors import (
    AtCapacity,
    BudgetExceeded,
    BudgetUnavailable,
    DeadlineExceeded,
    NoReplica,
    RateLimited,
    RequestTooLargeForLimit,
    SchedulerUnavailable,
    SpratError,
    StoreUnavailable,
)
from cluster.scheduler.guarded_scheduler import GuardedScheduler
from cluster.scheduler.local_admission import LocalAdmission
from cluster.scheduler.snapshot import FleetSnapshot
from cluster.types import AdmitRequest, Grant, Refusal, RefusalReason, Waiting
from deployments.gateway.budget_rebuild import BudgetRebuild
from deployments.gateway.tasks import raise_if_cancelled
from deployments.gateway.waiting_room import WaitingRoom


class Admission:
    """One per gateway. `snapshot` is kept fresh by the lease keeper. `may_wake`: some pool may sleep, so
    calls are welcome also while no replica is ready."""

    def __init__(
        self,
        scheduler: GuardedScheduler,
        local: LocalAdmission,
        room: WaitingRoom,
        rebuild: BudgetRebuild,
        *,
        may_wake: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._local = local
        self._room = room
        self._rebuild = rebuild
        self._may_wake = may_wake
        self.snapshot = FleetSnapshot()

    async def place(self, request: AdmitRequest, *, hard: bool) -> Grant:
        """A slot. `hard`: the call draws on a budget that must not be overspent, so without the scheduler
        it is refused. Raises the SpratError that the client gets."""
        asked_s = time.monotonic()
        try:
            answer = await self._ask(request)
        except SchedulerUnavailable:
            answer = self._local.admit(request, self.snapshot, hard=hard)
        except StoreUnavailable:
            answer = Refusal(RefusalReason.UNCHECKED, 1_000)
        if isinstance(answer, Waiting):
            answer = await self._wait(request, answer, asked_s)
        if isinstance(answer, Refusal):
            raise error_of(answer, request)
        return answer

    @property
    def epoch_id(self) -> str:
        """In which budgets are known to be exact."""
        return self._rebuild.epoch_id

    def affine_replica(self, pool: str, prefix: str) -> str:
        """`cluster.scheduler.terms.AffineReplica`."""
        return self.snapshot.affine_replica(pool, prefix)

    def ended(self, request_id: str) -> None:
        self._local.ended(request_id)

    async def _wait(self, request: AdmitRequest, place: Waiting, asked_s: float) -> Grant | Refusal:
        # Counted from before the store was asked, so the store's own deadline is never the earlier one:
        # what it grants in its last moment, and what takes long to arrive, is not started late.
        left_s = asked_s + request.deadline_ms / 1000 - time.monotonic()
        try:
            grant = await self._room.wait(place, left_s)
        except SchedulerUnavailable:
            # Nobody will tell of a slot now, but the money of this call is held, as that of a later step is.
            paid = replace(request, step=request.step + 1)
            alone = self._local.admit(paid, self.snapshot, hard=False)
            return replace(alone, step=request.step) if isinstance(alone, Grant) else alone
        raise_if_cancelled()  # `asyncio.wait_for` may have swallowed it
        if grant is None:
            raise DeadlineExceeded("The call waited for a slot until its deadline and was not started.")
        return grant

    def store_is_back(self) -> None:
        self._local.store_is_back()

    @property
    def may_serve(self) -> bool:
        """A replica is ready, or would be for a call. While Redis is away, nothing wakes."""
        return self.snapshot.any_ready or (self._may_wake and not self.store_is_away)

    @property
    def store_is_away(self) -> bool:
        return self._scheduler.breaker.is_open

    @property
    def decisions_without_redis(self) -> int:
        return self._local.decisions

    async def _ask(self, request: AdmitRequest) -> Grant | Waiting | Refusal:
        if request.budgets and request.step == 0 and self._rebuild.misses(request.budgets):
            await self._rebuild.ensure(request.budgets)
        if request.checked and request.epoch_id != self._rebuild.epoch_id:
            # No other epoch will do: there these budgets have not been raised to the ledger yet.
            request = replace(request, epoch_id=self._rebuild.epoch_id)
        return await self._scheduler.admit(request)


def error_of(refusal: Refusal, request: AdmitRequest) -> SpratError:
    """What a refusal is to the client: what is wrong, and what to do."""
    tiers = ", ".join(dict.fromkeys(candidate.tier for candidate in request.candidates))
    retry_after_s = refusal.retry_after_ms / 1000
    match refusal.reason:
        case RefusalReason.CAPACITY:
            return AtCapacity(
                f"All replicas of tier {tiers} are busy. Try again.", retry_after_s=retry_after_s
            )
        case RefusalReason.QUEUE_FULL:
            return AtCapacity(
                f"Too many calls wait for tier {tiers} already. Try again later.",
                code="queue_full",
                retry_after_s=retry_after_s,
            )
        case RefusalReason.WAIT:
            return AtCapacity(
                f"Tier {tiers} has no slot for this call in time. Try again later, or with a later deadline "
                "or a less urgent class.",
                code="wait_too_long",
                retry_after_s=retry_after_s,
            )
        case RefusalReason.RATE:
            kind, _, owner = refusal.detail.partition(":")
            return RateLimited(
                f"The limit of {kind} per minute of {owner} is reached. Try again in "
                f"{max(1, round(retry_after_s))} s.",
                retry_after_s=retry_after_s,
            )
        case RefusalReason.TOO_LARGE:
            kind, _, owner = refusal.detail.partition(":")
            return RequestTooLargeForLimit(
                f"This call alone needs more {kind} than {owner} may use at once. Lower max_tokens or "
                "shorten the prompt, or ask for a higher limit.",
                param="max_tokens",
            )
        case RefusalReason.BUDGET:
            owner, _, window = refusal.detail.partition(" ")
            return BudgetExceeded(
                f"The worst case of this call does not fit what is left of the budget of {owner} "
                f"for {window}. Lower max_tokens, wait for the next window, or ask for a higher budget."
            )
        case RefusalReason.REBUILDING | RefusalReason.UNCHECKED:
            return BudgetUnavailable(
                "The budget of this key cannot be checked now. Try again shortly.",
                retry_after_s=retry_after_s,
            )
        case RefusalReason.NO_REPLICA | RefusalReason.ENDED:
            return NoReplica(
                f"No replica of tier {tiers} is ready. `sprat status` says why.", retry_after_s=retry_after_s
            )
