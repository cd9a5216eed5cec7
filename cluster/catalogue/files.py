"""Reads `families/*.yaml`. Each entry is its family's `defaults` with its own keys over them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.catalogue.entry import Entry, Family
from cluster.errors import ConfigError

FAMILIES = Path(__file__).parent / "families"


@cache
def families(folder: Path = FAMILIES) -> tuple[Family, ...]:
    """Sorted by name. Raises ConfigError with file, key and fault."""
    found = tuple(_family(path) for path in sorted(folder.glob("*.yaml")))
    seen: dict[str, str] = {}
    for family in found:
        for entry in family.entries:
            if entry.model in seen:
                raise ConfigError(f"{entry.model} stands in {seen[entry.model]} and in {family.family}")
            seen[entry.model] = family.family
    return found


def entry_named(model: str, folder: Path = FAMILIES) -> tuple[Family, Entry]:
    """Raises ConfigError for a model that no family has."""
    for family in families(folder):
        for entry in family.entries:
            if entry.model == model:
                return family, entry
    raise ConfigError(f"the catalogue has no model {model!r}; `sprat models list` shows those it has")


def _family(path: Path) -> Family:
    try:
        raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = raw.pop("defaults", {})
        raw["entries"] = [{**defaults, **entry} for entry in raw["entries"]]
        family = Family.model_validate(raw)
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ConfigError(f"{path.name}: not a family of models: {error!r}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path.name}: {where}: {first['msg']}") from error
    if family.family != path.stem:
        raise ConfigError(f"{path.name}: family {family.family!r} belongs into {family.family}.yaml")
    return family
