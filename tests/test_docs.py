"""The docs name what is there: files, verbs, settings, fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deployments.cli.main import sprat

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = ["cluster", "deployments", "kernels", "loadtest", "tests"]
OUTAGES = (ROOT / "cluster" / "scheduler" / "README.md").read_text()


def named_files(text: str) -> set[str]:
    return set(re.findall(r"`([\w./-]+\.(?:py|md|yaml|lua))`", text))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_that_a_folder_readme_names_exists(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()

    missing = [
        name
        for name in named_files(text)
        if not any((base / name).exists() for base in (ROOT / folder, ROOT))
        and not list((ROOT / folder).rglob(name))
    ]

    assert missing == []


@pytest.mark.parametrize("folder", ["cluster", "deployments"])
def test_every_module_is_named_in_its_folder_readme(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()

    modules = [path.name for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    packages = [path.parent.name for path in (ROOT / folder).glob("*/__init__.py")]

    assert [name for name in modules if name not in text] == []
    assert [name for name in packages if f"{name}/" not in text] == []


def test_the_tree_of_the_readme_is_on_disk() -> None:
    tree = README.split("## The tree")[1].split("```")[1]

    top = re.findall(r"^(\w+)/", tree, flags=re.MULTILINE)
    assert sorted(top) == sorted([*FOLDERS, "locks"])
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert list((ROOT / "cluster").rglob(name)) or list((ROOT / "deployments").rglob(name)), name


@pytest.mark.parametrize("verb", sorted(sprat.commands))
def test_every_verb_is_in_the_readme(verb: str) -> None:
    assert f"`sprat {verb}" in README


def test_every_verb_takes_json() -> None:
    for name, command in sprat.commands.items():
        commands = getattr(command, "commands", {name: command}).values()
        for each in commands:
            assert any("--json" in parameter.opts for parameter in each.params), name


def test_the_two_commands_of_the_readme_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_every_test_that_the_outage_table_names_exists() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))

    named = re.findall(r"`(test_\w+)`", OUTAGES)
    assert len(named) > 15
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_script_and_module_of_the_scheduler_is_in_its_readme() -> None:
    folder = ROOT / "cluster" / "scheduler"
    files = [*folder.glob("*.py"), *folder.glob("lua/*.lua")]

    assert [file.name for file in files if file.name != "__init__.py" and file.name not in OUTAGES] == []
