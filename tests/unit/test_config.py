"""Every mistake is named with its path and a fix; a good file passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import ConfigProblems, load_config, parse_config
from cluster.errors import ConfigError
from tests.configs import config_of, simulated

EXAMPLES = sorted((Path(__file__).parents[2] / "deployments" / "examples").glob("*.yaml"))


def problems_of(raw: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigProblems) as caught:
        config_of(raw)
    return {problem.path: f"{problem.message} | {problem.fix}" for problem in caught.value.problems}


def test_a_good_file_passes() -> None:
    assert config_of(simulated()).tiers == ["small", "large"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_pass(path: Path) -> None:
    assert load_config(path).pools


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        (
            {"pools__specialist__contxt_tokens": 5},
            "pools.specialist.contxt_tokens",
            "did you mean 'context_tokens'",
        ),
        ({"gatewy": {}}, "gatewy", "did you mean 'gateway'"),
        ({"pools__specialist__tier": "smal"}, "pools.specialist.tier", "did you mean 'small'"),
        ({"pools__specialist__base_model": "zzz"}, "pools.specialist.base_model", "use one of huge, tiny"),
        ({"pools__specialist__node_class": None}, "pools.specialist.node_class", "is missing"),
        (
            {"pools__specialist__context_tokens": -1},
            "pools.specialist.context_tokens",
            "greater than or equal",
        ),
        ({"pools__specialist__default_max_tokens": 256}, "pools.specialist.default_max_tokens", "no room"),
        ({"pools__specialist__simulated": None}, "pools.specialist", "needs a timing"),
        ({"base_models__tiny__source": "ftp://x"}, "base_models.tiny.source", "use one of the forms"),
        ({"base_models__tiny__source": "pypi:a==1"}, "base_models.tiny", "sha256"),
        ({"adapters__intent@1__rank": 64}, "pools.specialist.max_rank", "set max_rank: 64"),
        ({"adapters__intent@1__base_model": "huge"}, "pools.specialist.adapters", "move it to a pool"),
        ({"router__default_tier": "medium"}, "router.default_tier", "is not defined"),
        ({"tiers": ["small", "middle", "large"]}, "tiers", "'middle' has no pool"),
        ({"pools__specialist__task": "embed"}, "tiers", "'small' has no pool that generates"),
        ({"pools__specialist__task": "embed"}, "pools.specialist.adapters", "takes no adapters"),
        ({"pools__specialist__task": "embed"}, "router.rules.1.to", "no pool serves 'intent'"),
        (
            {"pools__specialist__task": "embed", "pools__reserve__base_model": "tiny"},
            "pools.specialist.task",
            "one task per base model",
        ),
    ],
)
def test_each_mistake_is_named_with_a_fix(change: dict[str, Any], path: str, words: str) -> None:
    found = problems_of(simulated(**change))

    assert path in found, found
    assert words in found[path]


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems_of(
        simulated(pools__specialist__tier="a", pools__reserve__tier="b", router__default_tier="c")
    )

    assert {"pools.specialist.tier", "pools.reserve.tier", "router.default_tier"} <= set(found)


@pytest.mark.parametrize("name", ["auto", "small", "intent", "huge"])
def test_a_name_may_mean_one_thing_only(name: str) -> None:
    raw = simulated()
    raw["base_models"][name] = raw["base_models"].pop("tiny")
    raw["pools"]["specialist"]["base_model"] = name
    for adapter in raw["adapters"].values():
        adapter["base_model"] = name
    if name == "huge":  # not a clash: one base model of that name
        raw["tiers"] = ["huge", "large"]
        raw["pools"]["specialist"]["tier"] = "huge"
        raw["router"]["rules"] = []

    assert "rename all but one" in problems_of(raw)["names"]


def test_rules_are_checked() -> None:
    raw = simulated()
    raw["router"]["rules"] = [
        {"name": "a", "when": {}, "to": "small"},
        {"name": "a", "when": {"system_matches": "("}, "to": "nothing"},
    ]

    found = problems_of(raw)

    assert "is empty" in found["router.rules.0.when"]
    assert "used twice" in found["router.rules.1.name"]
    assert "regular expression" in found["router.rules.1.when.system_matches"]
    assert "not defined" in found["router.rules.1.to"]


def test_lines_are_given_and_doubled_keys_found() -> None:
    text = yaml.safe_dump(simulated(pools__specialist__tier="nope"), sort_keys=False) + "name: again\n"

    with pytest.raises(ConfigProblems) as caught:
        parse_config(text, source="x.yaml")

    by_path = {problem.path: problem for problem in caught.value.problems}
    lines = text.splitlines()
    assert lines[by_path["pools.specialist.tier"].line - 1].strip() == "tier: nope"
    assert by_path["name"].message.startswith("stands twice")


def test_broken_yaml_names_the_line() -> None:
    with pytest.raises(ConfigProblems, match="line 2"):
        parse_config("a: 1\n b: [", source="x.yaml")


def test_a_missing_file_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="Give the path"):
        load_config(Path("/nowhere.yaml"))


def test_the_environment_overrides_with_one_prefix() -> None:
    text = yaml.safe_dump(simulated())

    config = parse_config(text, source="x", environ={"SPRAT__GATEWAY__PORT": "8123", "PATH": "/bin"})

    assert config.gateway.port == 8123
    with pytest.raises(ConfigProblems, match="gatway"):
        parse_config(text, source="x", environ={"SPRAT__GATWAY__PORT": "8123"})
