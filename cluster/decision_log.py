"""What is kept of a routing decision, and what came of it: for `sprat explain` and `sprat replay`.

No text of a prompt or an answer is in it. `cluster.store.decisions` keeps both kinds of records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.tenants import MAX_MICRO_USD

MAX_LABEL = 256

Text = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
"""PostgreSQL keeps no NUL."""

Id = Annotated[Text, Field(min_length=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
MicroUsd = Annotated[int, Field(ge=0, le=MAX_MICRO_USD)]
Feature = Text | bool | int | float | None


class _Kept(BaseModel):
    """`true` is no number, and a field that is not known here was written by a newer gateway."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class Weighed(_Kept):
    """One thing that the policy weighed: a target, or `DRAFT>TARGET` where a draft is verified first.
    `p_success` and the costs are None where the policy has no estimate; `expected_micro_usd` is the cost per
    successful answer."""

    target: Id
    probability: Probability
    p_success: Probability | None = None
    cost_micro_usd: MicroUsd | None = None
    expected_micro_usd: MicroUsd | None = None


class Step(_Kept):
    """One run of the call on an engine; `verdict` is that of the verifiers, `why` their reason."""

    tier: Text
    model: Text
    pool: Text = ""
    replica: Text = ""
    verdict: Literal["accepted", "refused"] | None = None
    why: Text | None = None
    cost_micro_usd: MicroUsd = 0


class LoggedDecision(_Kept):
    """Why one call ran where it did. `probability` is that with which `target` was chosen among the
    `considered` ones (the propensity); `large_micro_usd` is what the same tokens cost on the largest tier.
    `at_ms` is in ms since the Unix epoch."""

    request_id: Id
    tenant: Id
    key_id: Id
    at_ms: int = Field(ge=0, le=MAX_MICRO_USD)
    policy: Text
    reason: Text
    target: Id
    probability: float = Field(gt=0, le=1)
    features: dict[Annotated[str, Field(max_length=64)], Feature] = Field({}, max_length=64)
    considered: tuple[Weighed, ...] = Field((), max_length=64, strict=False)
    steps: tuple[Step, ...] = Field((), max_length=64, strict=False)
    large_micro_usd: MicroUsd | None = None

    @property
    def cost_micro_usd(self) -> int:
        """Of all steps, refused drafts too."""
        return sum(step.cost_micro_usd for step in self.steps)

    @property
    def asked_for(self) -> bool:
        """The caller named the model or the tier: no policy decided."""
        return self.reason.startswith(("model:", "header:"))


DETAILS = {"features", "considered", "steps", "large_micro_usd"}
"""Fields that are kept as one JSON text."""


def logged_decision(fields: Mapping[str, Any]) -> LoggedDecision:
    """From JSON. ValueError for what no database would take: one such decision must not hold up others."""
    try:
        return LoggedDecision.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the decision"
        raise ValueError(f"{where}: {first['msg']}") from None


class DecisionRow(NamedTuple):
    """A decision as the store keeps it. Flat, unlike what it is made of: a batch of nested ones makes the
    interpreter look for garbage for longer than the database takes to write them."""

    request_id: str
    tenant: str
    key_id: str
    at_ms: int
    policy: str
    reason: str
    target: str
    probability: float
    details: str


_columns_of = attrgetter(*DecisionRow._fields[:-1])


def row_of(decision: LoggedDecision) -> DecisionRow:
    return DecisionRow._make((*_columns_of(decision), decision.model_dump_json(include=DETAILS)))


def decision_of(row: DecisionRow) -> LoggedDecision:
    columns = row._asdict()
    return LoggedDecision.model_validate(columns | orjson.loads(columns.pop("details")))


class OutcomeSource(StrEnum):
    """Who judged an answer, the most trusted first."""

    GOLD = "gold"
    FEEDBACK = "feedback"
    VERIFIER = "verifier"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How good the answer to a call was: `score` from 0 to 1. Of each source the newest counts."""

    request_id: str
    source: OutcomeSource
    score: float
    label: str | None
    at_ms: int


def best_outcome(outcomes: Mapping[OutcomeSource, Outcome]) -> Outcome | None:
    """That of the most trusted source."""
    return next((outcomes[source] for source in OutcomeSource if source in outcomes), None)
