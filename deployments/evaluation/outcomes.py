"""What is kept of an answer in the repository: right or not, tokens, latency, and what verifiers say of it.
No text of a case or an answer."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from cluster.config.verifiers import RefusalVerifierConfig, SchemaVerifierConfig, ToolsVerifierConfig
from cluster.router.verifiers.draft import ACCEPTED, Draft, Expected, Tool
from cluster.router.verifiers.verification import Verification
from cluster.types import Price
from deployments.evaluation.answers import Answer
from deployments.evaluation.cases import Case, Suite
from deployments.evaluation.intent_scoring import is_right_intent
from deployments.evaluation.tool_scoring import is_right_call

FORM = Verification.of(
    [
        ToolsVerifierConfig(kind="tools"),
        SchemaVerifierConfig(kind="schema"),
        RefusalVerifierConfig(kind="refusal"),
    ]
)
"""What can be seen without knowing how sure the model was: is the call one of the offered tools with valid
arguments, is the answer valid by the schema that was asked for, is it there, whole and no apology."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one answer. The latency is what the client saw. `mean_logprob` and `min_logprob` are over the output
    tokens; None where the engine told none. `form` is the verifiers' reason: `accepted`, or why not
    (`tools:not_json`, `tools:unknown_name`, `tools:required`, …)."""

    case: str
    suite: Suite
    model: str
    right: bool
    prompt_tokens: int
    output_tokens: int
    cost_micro_usd: int
    latency_ms: float
    finish_reason: str
    mean_logprob: float | None
    min_logprob: float | None
    tool_calls: int
    form: str

    @property
    def has_form(self) -> bool:
        return self.form == ACCEPTED.reason


def outcome_of(case: Case, answer: Answer, price: Price) -> Outcome:
    """Scored, with the cost of its tokens at `price`."""
    return Outcome(
        case=case.id,
        suite=case.suite,
        model=answer.model,
        right=is_right(case, answer),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        cost_micro_usd=price.cost_micro_usd(answer.prompt_tokens, answer.output_tokens),
        latency_ms=answer.latency_ms,
        finish_reason=answer.finish_reason,
        mean_logprob=round(fmean(answer.logprobs), 4) if answer.logprobs else None,
        min_logprob=min(answer.logprobs, default=None),
        tool_calls=len(answer.tool_calls),
        form=FORM.judge(draft_of(answer), expected_of(case)).reason,
    )


def is_right(case: Case, answer: Answer) -> bool:
    """By the rules of the case's suite."""
    if case.suite is Suite.INTENT:
        return is_right_intent(case.expected, answer.content)
    return is_right_call(case.functions, case.expected, answer.tool_calls)


def draft_of(answer: Answer) -> Draft:
    """The answer as verifiers see it."""
    return Draft(answer.content, answer.tool_calls, answer.finish_reason, answer.logprobs or None)


def expected_of(case: Case) -> Expected:
    """What the case asks for, as verifiers see it."""
    functions = [tool["function"] for tool in case.body.get("tools", ())]
    answer_format = case.body.get("response_format")
    return Expected(
        schema=answer_format["json_schema"]["schema"] if answer_format else None,
        tools=tuple(Tool(function["name"], function["parameters"]) for function in functions),
        tool_choice=case.body.get("tool_choice", "auto"),
    )
