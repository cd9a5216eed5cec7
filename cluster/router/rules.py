"""The first policy: ordered rules from the YAML. The first match wins; its name is the reason."""

from __future__ import annotations

import re
from collections.abc import Callable

from cluster.config import RouterConfig, Rule
from cluster.router.policy import Choice
from cluster.router.view import FleetView
from cluster.types import RequestFeatures

Condition = Callable[[RequestFeatures], bool]


class RulesPolicy:
    """Patterns are the operator's; they are compiled once and see SYSTEM_PROMPT_LIMIT characters."""

    name = "rules"
    SYSTEM_PROMPT_LIMIT = 8192

    def __init__(self, config: RouterConfig) -> None:
        self._default = Choice(target=config.default_tier, reason=f"default:{config.default_tier}")
        self._rules = [
            (self._compile(rule), Choice(target=rule.to, reason=f"rule:{rule.name}")) for rule in config.rules
        ]

    def choose(self, features: RequestFeatures, view: FleetView) -> Choice:  # noqa: ARG002 (protocol)
        for conditions, choice in self._rules:
            for condition in conditions:
                if not condition(features):
                    break
            else:
                return choice
        return self._default

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
