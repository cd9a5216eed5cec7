"""Who asks, and for which task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from loadtest.bad_input import BadInput

FIELDS = {"name", "key", "weight", "task"}


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    key: str
    weight: float = 1.0
    task: str | None = None


@dataclass(frozen=True, slots=True)
class TaskShare:
    """This share of the calls names the task; a tenant's own task goes before."""

    task: str
    share: float


@dataclass(frozen=True, slots=True)
class Mix:
    tenants: tuple[Tenant, ...]
    tasks: tuple[TaskShare, ...] = ()

    def draw(self, random: Random) -> tuple[Tenant, str | None]:
        tenant = random.choices(self.tenants, [each.weight for each in self.tenants])[0]
        point = random.random()
        for each in self.tasks:
            point -= each.share
            if point < 0:
                return tenant, tenant.task or each.task
        return tenant, tenant.task

    def key_of(self, tenant: str) -> str:
        return next(each.key for each in self.tenants if each.name == tenant)


def parse_task(text: str) -> TaskShare:
    """`NAME` is all calls, `NAME=0.3` is 30 % of them."""
    name, _, share = text.partition("=")
    try:
        parsed = TaskShare(name, float(share or 1))
    except ValueError as error:
        raise BadInput(f"--task {text!r}: use NAME or NAME=SHARE with a share between 0 and 1") from error
    if not name or not 0 < parsed.share <= 1:
        raise BadInput(f"--task {text!r}: use NAME or NAME=SHARE with a share between 0 and 1")
    return parsed


def checked_tasks(tasks: Sequence[TaskShare]) -> tuple[TaskShare, ...]:
    total = sum(each.share for each in tasks)
    if total > 1 + 1e-9:
        raise BadInput(f"--task: the shares add up to {total:g}, which is more than 1")
    return tuple(tasks)


def read_mix(file: Path) -> tuple[Tenant, ...]:
    """YAML: a list of `{name, key, weight, task}`; weight and task may be missing."""
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"--mix {file}: {error}") from error
    if not isinstance(listed, list) or not listed:
        raise BadInput(f"--mix {file}: has to be a list of tenants with name, key, weight, task")
    tenants = tuple(_tenant(file, each) for each in listed)
    names = [tenant.name for tenant in tenants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"--mix {file}: {', '.join(twice)} is listed twice")
    return tenants


def _tenant(file: Path, entry: Any) -> Tenant:
    if not isinstance(entry, dict) or not {"name", "key"} <= entry.keys() <= FIELDS:
        shown = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise BadInput(f"--mix {file}: a tenant needs name and key, may have weight and task; found {shown}")
    weight = entry.get("weight", 1)
    if not isinstance(weight, (int, float)) or not weight > 0:
        raise BadInput(f"--mix {file}: the weight of {entry['name']} is {weight!r}; it is a number above 0")
    task = entry.get("task")
    return Tenant(str(entry["name"]), str(entry["key"]), float(weight), None if task is None else str(task))
