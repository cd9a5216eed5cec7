"""The Dockerfile against the tree: no daemon builds it in tests, but nothing that it names may be missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
COPIES = [
    line.split()[1:] for line in TEXT.splitlines() if line.startswith("COPY ") and "--from=" not in line
]


def ignored(path: str) -> bool:
    """What .dockerignore keeps out of the build: everything but the lines with an exclamation mark."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    return path.split("/", maxsplit=1)[0] not in kept


def test_every_path_that_it_copies_exists_and_reaches_the_build() -> None:
    sources = [source for *sources, _ in COPIES for source in sources]

    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_it_copies_every_package_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }

    assert packages <= {target.rstrip("/") for *_, target in COPIES}


def test_nothing_secret_or_local_reaches_the_build() -> None:
    assert all(ignored(name) for name in (".sprat", ".git", ".venv", "tests", "sprat.env"))


def test_bases_are_pinned_and_the_user_is_not_root() -> None:
    bases = re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE)
    python = re.search(r"^ARG PYTHON=(\S+)", TEXT, re.MULTILINE)

    assert bases == ["python:${PYTHON}"] * 2
    assert python is not None
    assert re.fullmatch(r"3\.1[123]\.\d+-slim-\w+", python[1])
    assert re.findall(r"^USER (\S+)", TEXT, re.MULTILINE) == ["1000"]
