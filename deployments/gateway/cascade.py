"""Drafts of a cascade: judged before they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cluster.config import ClusterConfig
from cluster.config.policies import CascadeConfig
from cluster.config.verifiers import PythonVerifierConfig
from cluster.errors import EngineFailed
from cluster.router.verifiers.draft import Draft, Expected, Verdict
from cluster.router.verifiers.verification import Verification
from cluster.types import Candidate, Decision
from deployments.engine_client import MAX_ANSWER_BYTES
from deployments.gateway.custom_verifier import CustomVerifier, CustomVerifierProcess
from deployments.gateway.endpoints.endpoint import Body, Drafts, Endpoint, StreamReader


class DraftRefusedError(Exception):
    """A draft that must not leave."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class DraftJudge:
    """Of one cascade. `release_after_tokens` None: a stream begins when all of it has been judged."""

    verification: Verification
    custom: tuple[CustomVerifier, ...]
    release_after_tokens: int | None

    def engine_body(self, endpoint: Endpoint, body: Body, candidate: Candidate, cache_salt: str) -> bytes:
        return drafts_of(endpoint).engine_body(
            body,
            candidate,
            cache_salt,
            logprobs=self.verification.needs_logprobs,
            drafts=self.verification.drafts,
        )

    async def verified(self, endpoint: Endpoint, body: Body, raw: bytes) -> bytes:
        """What the client gets of a whole draft. Raises DraftRefusedError, EngineFailed."""
        drafts = drafts_of(endpoint)
        chosen = await self.choose(drafts.read(raw), drafts.expected(body))
        return drafts.shown(body, raw, chosen)

    async def choose(self, draft: Draft, expected: Expected) -> int:
        """Number of the draft that may leave. Raises DraftRefusedError."""
        verdict = self.verification.judge(draft, expected)
        if not verdict.accepted:
            raise DraftRefusedError(verdict)
        chosen = draft.others[verdict.chosen - 1] if verdict.chosen else draft
        for verifier in self.custom:
            said = await verifier.judge(chosen, expected)
            if not said.accepted:
                raise DraftRefusedError(said)
        return verdict.chosen


class HeldDraft:
    """A streamed draft, held back until it may leave."""

    def __init__(
        self,
        judge: DraftJudge,
        endpoint: Endpoint,
        body: Body,
        write: Callable[[bytes], None],
        released: Callable[[], None],
    ) -> None:
        """`released` is told when events pass through from now on: the client may be slower than the
        engine."""
        self._judge = judge
        self._drafts = drafts_of(endpoint)
        self._body = body
        self._write = write
        self._released = released
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_released = False

    def feed(self, reader: StreamReader, chunk: bytes) -> None:
        """Raises DraftRefusedError when the beginning is refused already."""
        events = reader.feed(chunk)
        if not events:
            return
        if self._is_released:
            self._show(events, 0)
            return
        self._held.append(events)
        self._held_bytes += len(events)
        if self._held_bytes > MAX_ANSWER_BYTES:
            raise EngineFailed("The engine sent an answer that is too large.")
        after = self._judge.release_after_tokens
        if after is not None and reader.outputs >= after:
            self._judge_beginning()

    async def end(self) -> None:
        """The stream is whole. Raises DraftRefusedError."""
        if self._is_released:
            return
        events = b"".join(self._held)
        draft = self._drafts.read_events(events)
        self._show(events, await self._judge.choose(draft, self._drafts.expected(self._body)))

    def _judge_beginning(self) -> None:
        events = b"".join(self._held)
        draft = self._drafts.read_events(events)
        verdict = self._judge.verification.judge_beginning(draft, self._drafts.expected(self._body))
        if not verdict.accepted:
            raise DraftRefusedError(verdict)
        self._is_released = True
        self._held.clear()
        self._released()
        self._show(events, 0)

    def _show(self, events: bytes, chosen: int) -> None:
        shown = self._drafts.shown_events(self._body, events, chosen)
        if shown:
            self._write(shown)


@dataclass(frozen=True, slots=True)
class Cascades:
    """All of a gateway, by name, and the process of their custom verifiers."""

    judges: Mapping[str, DraftJudge]
    process: CustomVerifierProcess | None

    @classmethod
    async def start(cls, config: ClusterConfig) -> Cascades:
        """Raises ConfigError for a custom verifier that cannot be imported."""
        policies = {
            name: policy
            for name, policy in config.router.policies.items()
            if isinstance(policy, CascadeConfig)
        }
        functions = [each.function for policy in policies.values() for each in _custom(policy)]
        process = CustomVerifierProcess(functions) if functions else None
        if process is not None:
            await process.check()
        return cls({name: _judge(policy, process) for name, policy in policies.items()}, process)

    async def close(self) -> None:
        if self.process is not None:
            await self.process.close()


def _judge(policy: CascadeConfig, process: CustomVerifierProcess | None) -> DraftJudge:
    return DraftJudge(
        Verification.of(policy.verify),
        () if process is None else tuple(CustomVerifier(each, process) for each in _custom(policy)),
        None if policy.release is None else policy.release.after_tokens,
    )


def _custom(policy: CascadeConfig) -> list[PythonVerifierConfig]:
    return [each for each in policy.verify if isinstance(each, PythonVerifierConfig)]


def without_drafts(decision: Decision, endpoint: Endpoint, body: Body) -> Decision:
    """The decision, or what follows its drafts where a draft cannot be judged: on routes that have no drafts,
    or none with what the verifiers need to see, and for calls that ask for several answers."""
    cascade = decision.cascade
    if cascade is None or (
        endpoint.drafts is not None
        and endpoint.drafts.can_be_judged(body, logprobs=cascade.logprobs, drafts=cascade.drafts)
    ):
        return decision
    return replace(cascade.then, reason=f"{decision.reason};not_verifiable", considered=(), probability=1.0)


def drafts_of(endpoint: Endpoint) -> Drafts:
    if endpoint.drafts is None:
        raise TypeError(f"{endpoint.path} has no drafts")
    return endpoint.drafts
