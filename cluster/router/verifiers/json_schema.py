"""Is a JSON value valid by a caller's schema? Answered in bounded time, whatever the schema is.

The gateway caps size, depth and alternatives of schemas and keeps their references inside them
(`deployments/gateway/endpoints/json_schema.py`). That does not bound validation: seventeen definitions that
each name the next one twice are 131,072 checks, and patterns may backtrack. So every keyword counts against a
budget of processor time here, patterns are RE2's, and what can neither be counted nor bounded is not judged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

from jsonschema import (
    Draft4Validator,
    Draft6Validator,
    Draft7Validator,
    Draft201909Validator,
    Draft202012Validator,
    ValidationError,
)
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from cluster.router.verifiers.canonical import canonical
from cluster.router.verifiers.linear_pattern import PatternNotSupported, found_in

BUDGET_S = 0.02
"""Processor time of one validation; usual ones take a hundredth of it. Not wall time: a busy machine must not
refuse drafts."""

KEYWORDS_PER_LOOK = 8
LONG_KEYWORDS = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
"""The clock is looked at for each of them: finding an anchor reads the whole schema."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]

DIALECTS: dict[str, type[Validator]] = {
    "http://json-schema.org/draft-04/schema": Draft4Validator,
    "http://json-schema.org/draft-06/schema": Draft6Validator,
    "http://json-schema.org/draft-07/schema": Draft7Validator,
    "https://json-schema.org/draft/2019-09/schema": Draft201909Validator,
    "https://json-schema.org/draft/2020-12/schema": Draft202012Validator,
}


class NotJudged(Exception):
    """The schema cannot be used to judge; the argument is the reason, in one word."""


class Budget:
    """Of processor time, from now on. A look at the clock costs 0.9 us, a keyword about 4: not each one
    looks."""

    __slots__ = ("_keywords", "_until_s")

    def __init__(self) -> None:
        self._until_s = time.thread_time() + BUDGET_S
        self._keywords = 0

    def count(self) -> None:
        self._keywords += 1
        if self._keywords % KEYWORDS_PER_LOOK == 0:
            self.check()

    def check(self) -> None:
        if time.thread_time() > self._until_s:
            raise NotJudged("too_complex")


def violation(schema: Mapping[str, Any], value: Any, budget: Budget | None = None) -> str | None:
    """The keyword of the schema that `value` violates first (`required`, `type`, …); None: it is valid.

    Raises NotJudged: `unsupported` (a reference that leads nowhere, a pattern with look-around, …) or
    `too_complex` (more work than the budget, nested too deeply). `budget` is given where it is shared.
    """
    token = _budget.set(budget or Budget())
    try:
        error = next(_validator(json.dumps(schema)).iter_errors(value), None)
    except (PatternNotSupported, Unresolvable) as cause:
        raise NotJudged("unsupported") from cause
    except RecursionError as cause:
        raise NotJudged("too_complex") from cause
    finally:
        _budget.reset(token)
    return None if error is None else _keyword_of(error)


def _keyword_of(error: ValidationError) -> str:
    """A schema that is just `false` allows nothing, and has no keyword."""
    return str(error.validator or "false_schema")


_budget: ContextVar[Budget] = ContextVar("validation_budget")


@lru_cache(maxsize=128)
def _validator(schema_text: str) -> Validator:
    """By the text of the schema: the same one comes with every call of an application."""
    schema = json.loads(schema_text)
    dialect = str(schema.pop("$schema", "")).rstrip("#")
    if _names_a_dialect(schema):
        raise NotJudged("unsupported")
    bounded = _bounded(DIALECTS.get(dialect, Draft202012Validator))
    return bounded(schema, registry=Registry())  # without one, the package would fetch references


def _names_a_dialect(value: Any) -> bool:
    """Below the top. The package would go on with that dialect's own keywords, which count nothing."""
    if isinstance(value, list):
        return any(map(_names_a_dialect, value))
    if isinstance(value, dict):
        return isinstance(value.get("$schema"), str) or any(map(_names_a_dialect, value.values()))
    return False


@cache
def _bounded(dialect: type[Validator]) -> type[Validator]:
    known = dialect.VALIDATORS | {name: own for name, own in OURS.items() if name in dialect.VALIDATORS}
    bounded: type[Validator] = extend(
        dialect, {name: _counted(keyword, long=name in LONG_KEYWORDS) for name, keyword in known.items()}
    )
    return bounded


def _counted(keyword: Keyword, *, long: bool) -> Keyword:
    count = Budget.check if long else Budget.count

    def counted(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError] | None:
        count(_budget.get())
        return keyword(validator, wanted, value, schema)

    return counted


def _found(pattern: str, text: str) -> bool:
    found = found_in(pattern, text)
    _budget.get().check()
    return found


def _pattern(validator: Any, pattern: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "string") and not _found(pattern, value):
        yield ValidationError("does not match")


def _pattern_properties(validator: Any, patterns: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        for pattern, schema in patterns.items():
            for name, held in value.items():
                if _found(pattern, name):
                    yield from validator.descend(held, schema, path=name, schema_path=pattern)


def _additional_properties(
    validator: Any, additional: Any, value: Any, schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(value, "object"):
        patterns = schema.get("patternProperties", ())
        for name, held in value.items():
            if name in schema.get("properties", ()) or any(_found(pattern, name) for pattern in patterns):
                continue
            if additional is False:
                yield ValidationError("is not expected")
            else:
                yield from validator.descend(held, additional, path=name)


def _unique_items(validator: Any, wanted: Any, value: Any, _schema: Any) -> Iterator[ValidationError]:
    """The package compares each with each."""
    if not wanted or not validator.is_type(value, "array"):
        return
    budget, seen = _budget.get(), set()
    for each in value:
        budget.count()
        text = canonical(each)
        if text in seen:
            yield ValidationError("holds something twice")
            return
        seen.add(text)


def _not_judged(_validator: Any, _wanted: Any, _value: Any, _schema: Any) -> Iterator[ValidationError]:
    raise NotJudged("unsupported")


OURS: dict[str, Keyword] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
    # The package finds out what was evaluated by evaluating it again, with Python's own patterns.
    "unevaluatedItems": _not_judged,
    "unevaluatedProperties": _not_judged,
}
