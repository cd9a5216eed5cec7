"""Policies of the router: `router.policies` of a cluster YAML.

A target is a tier, a base model or an adapter. Where a policy takes another one (`otherwise`, `policy`), the
name of a policy stands for what that policy chooses, and a target for itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.config.base import Name, Strict
from cluster.config.verifiers import AgreementVerifierConfig, VerifierConfigs

MAX_EXPLORATION = 0.2


class RuleCondition(Strict):
    """All conditions that are given must hold."""

    task: list[str] | None = None
    system_matches: str | None = Field(None, max_length=512)
    tools: bool | None = None
    schema_: bool | None = Field(None, alias="schema")
    prompt_tokens_over: int | None = Field(None, ge=0)
    prompt_tokens_up_to: int | None = Field(None, ge=0)
    turns_over: int | None = Field(None, ge=0)


class Rule(Strict):
    """`to` is a target or a policy."""

    name: Name
    when: RuleCondition
    to: str


class RulesConfig(Strict):
    """Ordered rules; the first match decides."""

    kind: Literal["rules"]
    rules: list[Rule]
    otherwise: str = Field(description="target or policy for calls that no rule knows")


class RandomConfig(Strict):
    """One of the targets by chance, each as likely as the others."""

    kind: Literal["random"]
    targets: list[str] = Field([], description="empty: all tiers")


class PromptLengthConfig(Strict):
    """The longer the prompt, the larger the tier."""

    kind: Literal["prompt_length"]
    over_tokens: list[Annotated[int, Field(ge=0)]] = Field(
        [256], min_length=1, description="a prompt longer than the n-th goes n tiers up"
    )

    @model_validator(mode="after")
    def _rising(self) -> PromptLengthConfig:
        if sorted(set(self.over_tokens)) != self.over_tokens:
            raise ValueError("over_tokens must rise")
        return self


class LabelledConfig(Strict):
    """What policies have in common that go by P(success), learned from labels."""

    model: str = Field(description="file made by `sprat router train`; relative to this YAML")
    targets: dict[str, str] = Field(min_length=2, description="label column → target")


class LearnedConfig(LabelledConfig):
    """The cheapest target per successful answer, among those that are nearly as likely to succeed as the best
    one."""

    kind: Literal["learned"]
    tolerance: float = Field(0.05, ge=0, le=1, description="chance of success that may be given up")
    wrong_answer_usd: float = Field(0.0, ge=0, le=1e3, description="what a wrong answer costs you, besides")


class BudgetConfig(LabelledConfig):
    """The most quality for a spend, or the least spend for a quality; one of the two is given."""

    kind: Literal["budget"]
    spend: float | None = Field(None, gt=0, le=1, description="share of what the dearest target alone costs")
    quality: float | None = Field(None, gt=0, le=1, description="share of the best quality that is reachable")

    @model_validator(mode="after")
    def _one_aim(self) -> BudgetConfig:
        if (self.spend is None) == (self.quality is None):
            raise ValueError("give either spend or quality")
        return self


class EmbeddingConfig(Strict):
    """The topic whose examples are nearest; unknown work goes to `otherwise`."""

    kind: Literal["embedding"]
    topics: str = Field(description="file made by `sprat router topics`; relative to this YAML")
    targets: dict[str, str] = Field(min_length=1, description="topic → target; others go to `otherwise`")
    otherwise: str = Field(description="target or policy for other topics and for what is out of scope")


class ReleaseConfig(Strict):
    """When the text of a streamed draft may leave: after it is verified, or, with `after_tokens`, as soon as
    that much of it looks right. What has left is not taken back."""

    after_tokens: int = Field(ge=1, le=4096)


class CascadeConfig(Strict):
    """What `policy` chooses gives a draft; drafts that a verifier refuses go to `to`."""

    kind: Literal["cascade"]
    policy: str = Field("always_small", description="policy or target that gives the draft")
    to: str
    verify: VerifierConfigs
    release: ReleaseConfig | None = Field(None, description="None: a stream begins after it is verified")

    @model_validator(mode="after")
    def _release_of_one(self) -> CascadeConfig:
        if self.release is not None and any(
            isinstance(each, AgreementVerifierConfig) for each in self.verify
        ):
            raise ValueError("release needs one draft: remove it, or the verifier agreement")
        return self


class ExploreConfig(Strict):
    """What `policy` chooses, but at this rate one of the targets by chance: for `sprat replay`."""

    kind: Literal["explore"]
    policy: str
    rate: float = Field(gt=0, le=MAX_EXPLORATION)
    targets: list[str] = Field([], description="empty: all tiers")


PolicyConfig = Annotated[
    RulesConfig
    | RandomConfig
    | PromptLengthConfig
    | LearnedConfig
    | BudgetConfig
    | EmbeddingConfig
    | CascadeConfig
    | ExploreConfig,
    Field(discriminator="kind"),
]

ALWAYS_SMALL, ALWAYS_LARGE = "always_small", "always_large"
BUILT_IN = ("rules", "random", ALWAYS_SMALL, ALWAYS_LARGE, "prompt_length")
"""Policies that every cluster has, without a section of their own."""
