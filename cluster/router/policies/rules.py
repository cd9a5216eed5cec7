"""Ordered rules from the YAML. The first match wins; its name is the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from cluster.config import Rule
from cluster.router.policies.policy import Choice, RoutingPolicy
from cluster.types import RequestFeatures

Condition = Callable[[RequestFeatures], bool]


class RulesPolicy:
    """Patterns are the operator's; they are compiled once and see SYSTEM_PROMPT_LIMIT characters."""

    SYSTEM_PROMPT_LIMIT = 8192

    def __init__(
        self,
        name: str,
        rules: Sequence[Rule],
        policy_of: Callable[[str], RoutingPolicy | None],
        otherwise: str,
    ) -> None:
        """`policy_of` gives the policy of a name, and None for a target."""
        self.name = name
        self._rules = [
            (self._compile(rule), Choice(rule.to, f"rule:{rule.name}"), policy_of(rule.to)) for rule in rules
        ]
        self._otherwise = Choice(otherwise, f"default:{otherwise}"), policy_of(otherwise)

    def choose(self, features: RequestFeatures, draw: float) -> Choice:
        for conditions, choice, policy in self._rules:
            for condition in conditions:
                if not condition(features):
                    break
            else:
                return choice if policy is None else _passed_on(choice, policy.choose(features, draw))
        choice, policy = self._otherwise
        return choice if policy is None else _passed_on(choice, policy.choose(features, draw))

    def _compile(self, rule: Rule) -> list[Condition]:
        when = rule.when
        conditions: list[Condition] = []
        if when.task is not None:
            tasks = frozenset(when.task)
            conditions.append(lambda f: f.task in tasks)
        if when.system_matches is not None:
            pattern = re.compile(when.system_matches)
            limit = self.SYSTEM_PROMPT_LIMIT
            conditions.append(lambda f: pattern.search(f.system_prompt[:limit]) is not None)
        if when.tools is not None:
            tools = when.tools
            conditions.append(lambda f: f.has_tools == tools)
        if when.schema_ is not None:
            schema = when.schema_
            conditions.append(lambda f: f.has_schema == schema)
        if when.prompt_tokens_over is not None:
            over = when.prompt_tokens_over
            conditions.append(lambda f: f.prompt_tokens_estimate > over)
        if when.prompt_tokens_up_to is not None:
            up_to = when.prompt_tokens_up_to
            conditions.append(lambda f: f.prompt_tokens_estimate <= up_to)
        if when.turns_over is not None:
            turns = when.turns_over
            conditions.append(lambda f: f.turns > turns)
        return conditions


def _passed_on(choice: Choice, chosen: Choice) -> Choice:
    return replace(chosen, reason=f"{choice.reason};{chosen.reason}")
