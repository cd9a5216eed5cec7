"""From the text of a YAML to a checked configuration, with every problem at its line.

Environment overrides: `SPRAT__GATEWAY__PORT=8001` sets `gateway.port` (values are parsed as YAML).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cluster.config.base import Strict
from cluster.config.checks import cross_check
from cluster.config.problems import ConfigProblems, Problem
from cluster.config.schema import ClusterConfig
from cluster.errors import ConfigError

ENV_PREFIX = "SPRAT__"

FILE_FIELDS = frozenset({"model", "topics"})
"""Settings of policies that name a file."""

MAY_HOLD_A_PASSWORD = frozenset({"url"})
"""Settings whose value no message repeats."""


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> ClusterConfig:
    """Read, override, validate and cross-check. Raises ConfigProblems, or ConfigError if unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {what}. Give the path of a cluster YAML.") from error
    config = parse_config(text, source=str(path), environ=environ or {})
    return _with_files_beside(config, path.resolve().parent)


def _with_files_beside(config: ClusterConfig, folder: Path) -> ClusterConfig:
    """Files that policies read, as absolute paths: other processes have other working directories."""
    policies = {
        name: policy.model_copy(
            update={
                field: str(folder / getattr(policy, field))
                for field in FILE_FIELDS & type(policy).model_fields.keys()
            }
        )
        for name, policy in config.router.policies.items()
    }
    return config.model_copy(update={"router": config.router.model_copy(update={"policies": policies})})


def parse_config(text: str, *, source: str, environ: Mapping[str, str] | None = None) -> ClusterConfig:
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 0
        what = getattr(error, "problem", None) or "not valid YAML"
        fix = "check the indentation and the colons around this line"
        raise ConfigProblems(source, [Problem("(file)", str(what), fix, line)]) from error
    except (ValueError, RecursionError) as error:  # a date that does not exist, a thousand brackets
        problem = Problem("(file)", f"cannot be read as YAML: {error}", "quote odd values, nest less")
        raise ConfigProblems(source, [problem]) from error
    if not isinstance(raw, dict):
        raise ConfigProblems(source, [Problem("(file)", "is not a mapping", "start from an example file")])

    lines: dict[tuple[str, ...], int] = {}
    problems = list(_index(tree, (), lines, set()))
    _apply_environment(raw, environ or {})
    try:
        config = ClusterConfig.model_validate(raw)
    except ValidationError as error:
        problems += [_from_pydantic(item, lines) for item in error.errors()]
        raise ConfigProblems(source, problems) from None
    problems += [_with_line(problem, lines) for problem in cross_check(config)]
    if problems:
        raise ConfigProblems(source, problems)
    return config


def _index(
    node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int], seen: set[int]
) -> Iterator[Problem]:
    """Remember the line of every path; report keys that stand twice (YAML would drop the first).

    What stands behind an alias is looked at once: an alias may stand inside what it names.
    """
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = str(key_node.value)
            child = (*path, key)
            line = key_node.start_mark.line + 1
            if child in lines:
                yield Problem(
                    ".".join(child), f"stands twice (first in line {lines[child]})", "keep one", line
                )
            lines[child] = line
            yield from _index(value_node, child, lines, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _index(item, (*path, str(index)), lines, seen)


def _line_of(path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0) if path else 0


def _with_line(problem: Problem, lines: Mapping[tuple[str, ...], int]) -> Problem:
    # Names of models contain dots, so the longest prefix that stands in the file is looked for.
    for path, line in sorted(lines.items(), key=lambda item: -len(item[0])):
        if path and (problem.path + ".").startswith(".".join(path) + "."):
            return Problem(problem.path, problem.message, problem.fix, line)
    return problem


def _from_pydantic(item: Any, lines: Mapping[tuple[str, ...], int]) -> Problem:
    tagged = tuple(str(part) for part in item["loc"] if part != "[key]")
    kind, message = item["type"], item["msg"].removeprefix("Value error, ")
    loc = _without_tags(tagged[:-1] if kind == "missing" else tagged, lines)
    loc += tagged[-1:] if kind == "missing" else ()
    path = ".".join(loc) or "(file)"
    line = _line_of(loc, lines)
    if kind == "extra_forbidden":
        fields = _fields_at(tagged[:-1])
        close = difflib.get_close_matches(loc[-1], fields, n=1)
        fix = f"did you mean {close[0]!r}" if close else f"remove it; known here: {', '.join(fields)}"
        return Problem(path, "unknown key", fix, line)
    if kind == "missing":
        field = _field_at(tagged)
        hint = f" ({field.description})" if field is not None and field.description else ""
        return Problem(path, "is missing", f"add {loc[-1]}{hint}", line)
    got = "" if loc and loc[-1] in MAY_HOLD_A_PASSWORD else f" (got {item['input']!r})"
    return Problem(path, f"{message}{got}", _fix_for(kind, item.get("ctx", {})), line)


def _without_tags(loc: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> tuple[str, ...]:
    """pydantic puts the `kind` of a section into the path to it, where the file has nothing."""
    path: tuple[str, ...] = ()
    for part in loc:
        is_tag = (*path, "kind") in lines and (*path, part) not in lines
        if not is_tag:
            path = (*path, part)
    return path


def _fix_for(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "string_pattern_mismatch":
        return f"use a name that matches {context.get('pattern')}"
    if kind == "literal_error":
        return f"use {context.get('expected')}"
    if "ge" in context or "gt" in context or "le" in context:
        return "use a value in that range"
    return "correct the value"


def _models_at(loc: tuple[str, ...]) -> type[Strict] | None:
    """The pydantic model that validates what stands at a path of the file."""
    model: type[Strict] | None = ClusterConfig
    index = 0
    while index < len(loc) and model is not None:
        field = model.model_fields.get(loc[index])
        if field is None:
            return None
        inner = _models_in(field.annotation)
        container = getattr(field.annotation, "__origin__", None)
        index += 2 if container in (dict, list) else 1
        model = inner[0] if inner else None
        if len(inner) > 1:  # the path names the `kind` of one of them
            model = next((each for each in inner if _kind_of(each) == loc[index : index + 1]), None)
            index += 1
    return model


def _models_in(annotation: Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [each for argument in getattr(annotation, "__args__", ()) for each in _models_in(argument)]


def _kind_of(model: type[Strict]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return () if field is None else tuple(getattr(field.annotation, "__args__", ()))


def _fields_at(loc: tuple[str, ...]) -> list[str]:
    model = _models_at(loc)
    return sorted(field.alias or name for name, field in model.model_fields.items()) if model else []


def _field_at(loc: tuple[str, ...]) -> FieldInfo | None:
    model = _models_at(loc[:-1])
    return model.model_fields.get(loc[-1]) if model else None


def _apply_environment(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        *parents, leaf = variable[len(ENV_PREFIX) :].lower().split("__")
        target = raw
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(
                    f"{variable} does not name a setting: {parent!r} is not a section of the file"
                )
        try:
            target[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            got = "" if leaf in MAY_HOLD_A_PASSWORD else f": {value!r}"
            raise ConfigError(f"{variable} is not YAML{got}. Quote it, or correct it.") from (
                None if leaf in MAY_HOLD_A_PASSWORD else error
            )
