"""What is known of one planned call after it ended, well or badly: one row of the results."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    OK = "ok"

    REFUSED = "refused"
    """A complete answer with a status other than 200."""

    FAILED = "failed"
    """No connection, a broken or empty answer, an error inside a stream, no end in time."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Times are in seconds. `intended_s` counts from the start of the run; `ttft_s`, `e2e_s` and
    `lateness_s` from `intended_s` in an open loop and from the sending of the request in a closed one.

    ttft_s    → first chunk with non-empty content; None for whole answers
    e2e_s     → last chunk with content, or the end of a whole answer; for a call that is not ok its end
    gaps_s    every gap between two chunks with content (ITL)
    lateness_s  how much later than intended the request was handed to the network

    Token counts are the server's usage, None where it sent none. Costs and the five names are what sprat
    puts on its answers, None for other servers.
    """

    index: int
    worker: int
    tenant: str
    task: str | None
    intended_s: float
    lateness_s: float
    outcome: Outcome
    reason: str
    message: str
    status: int
    ttft_s: float | None
    e2e_s: float
    gaps_s: tuple[float, ...]
    planned_prompt_tokens: int
    planned_output_tokens: int
    prompt_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    saved_usd: float | None
    tier: str | None
    model: str | None
    replica: str | None
    route: str | None
    request_id: str | None

    @property
    def is_ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def ended_s(self) -> float:
        return self.intended_s + self.e2e_s

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) ÷ (output tokens - 1); None below two tokens: there is no gap to measure."""
        if not self.is_ok or self.ttft_s is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    def as_message(self) -> list[Any]:
        """Plain values in the order of the fields, for the way from a worker to the master."""
        return [getattr(self, name) for name in FIELDS]

    @classmethod
    def from_message(cls, values: list[Any]) -> CallRecord:
        named = dict(zip(FIELDS, values, strict=True))
        return cls(**(named | {"outcome": Outcome(named["outcome"]), "gaps_s": tuple(named["gaps_s"])}))


FIELDS = tuple(field.name for field in fields(CallRecord))
