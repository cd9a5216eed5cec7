"""Verifiers of a cascade: `verify` of a policy of kind `cascade`. All of them must accept a draft.

They judge in the order in which they stand, and the first refusal ends it: write the cheap and likely ones
first. `agreement` comes before all others wherever it stands, because it chooses the draft that the others
judge; `python` comes after them, because it leaves the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from cluster.config.base import Strict

IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"

Share = Annotated[float, Field(ge=0, le=1)]
LogProbability = Annotated[float, Field(le=0, allow_inf_nan=False)]


class SchemaVerifierConfig(Strict):
    """The answer is JSON where JSON was asked for, and valid by the caller's schema."""

    kind: Literal["schema"]


class ToolsVerifierConfig(Strict):
    """Calls of tools are what the caller's definitions and `tool_choice` allow."""

    kind: Literal["tools"]


class ConfidenceVerifierConfig(Strict):
    """How sure the engine was of its tokens. Each bound that is given must hold."""

    kind: Literal["confidence"]
    mean_logprob: LogProbability | None = Field(
        None, description="least mean over the draft's tokens, in nats"
    )
    min_logprob: LogProbability | None = Field(None, description="least of any single token, in nats")
    min_p: float | None = Field(None, ge=0, le=1, description="least P(right) by `calibration`")
    calibration: tuple[tuple[LogProbability, Share], ...] = Field(
        (), description="rising points: mean logprob → share of such drafts that were right"
    )

    @model_validator(mode="after")
    def _has_bounds(self) -> ConfidenceVerifierConfig:
        if self.mean_logprob is None and self.min_logprob is None and self.min_p is None:
            raise ValueError("give at least one of mean_logprob, min_logprob and min_p")
        if self.min_p is not None and not self.calibration:
            raise ValueError("min_p needs calibration: points [mean logprob, share of right drafts]")
        if any(low[0] >= high[0] or low[1] > high[1] for low, high in pairwise(self.calibration)):
            raise ValueError("calibration must rise: larger mean logprobs, and shares that do not fall")
        return self


class RefusalVerifierConfig(Strict):
    """The draft answers at all: it is not empty, not an apology, and not cut off."""

    kind: Literal["refusal"]
    allow_cut_off: bool = Field(
        default=False,
        description="accept drafts that end at max_tokens; for callers who set it low on purpose",
    )


class AgreementVerifierConfig(Strict):
    """Several drafts of the same call say the same. Costs each of them."""

    kind: Literal["agreement"]
    drafts: int = Field(3, ge=2, le=8)
    share: float = Field(0.6, gt=0, le=1, description="least share of the drafts that must agree")


class PythonVerifierConfig(Strict):
    """A function of yours, in a process beside the gateway: `function(draft, expected)` gets two dicts and
    returns a bool, or a bool and a reason."""

    kind: Literal["python"]
    function: str = Field(pattern=IMPORT_PATH, max_length=256, description="module:function")
    timeout_s: float = Field(
        0.5, gt=0, le=30, description="longest run; a draft that takes longer is refused"
    )


VerifierConfig: TypeAlias = Annotated[
    SchemaVerifierConfig
    | ToolsVerifierConfig
    | ConfidenceVerifierConfig
    | RefusalVerifierConfig
    | AgreementVerifierConfig
    | PythonVerifierConfig,
    Field(discriminator="kind"),
]


class Evidence(NamedTuple):
    """What verifiers need to see: how many drafts of a call, and whether with logprobs of their tokens."""

    drafts: int
    logprobs: bool


def drafts_of(configs: Sequence[VerifierConfig]) -> int:
    """How many drafts of a call they judge."""
    return max((each.drafts for each in configs if isinstance(each, AgreementVerifierConfig)), default=1)


def evidence_for(configs: Sequence[VerifierConfig]) -> Evidence:
    return Evidence(drafts_of(configs), any(isinstance(each, ConfidenceVerifierConfig) for each in configs))


def _each_once(configs: list[VerifierConfig]) -> list[VerifierConfig]:
    kinds = [config.kind for config in configs if config.kind != "python"]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands twice: keep one of each kind (python may repeat)")
    return configs


VerifierConfigs: TypeAlias = Annotated[list[VerifierConfig], Field(min_length=1), AfterValidator(_each_once)]
