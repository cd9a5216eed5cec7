"""Who may import what (STYLE.md section 5), and what no source of ours may contain. Read, not run."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from cluster.scheduler import scripts

ROOT = Path(__file__).parents[1]
OURS = ("cluster", "deployments", "kernels", "loadtest")
LUA = sorted((ROOT / "cluster/scheduler/lua").glob("*.lua"))
LOCKS = sorted((ROOT / "locks").glob("*.txt"))


@dataclass(frozen=True)
class Import:
    """`from ray import serve` is `ray.serve`."""

    file: str
    line: int
    name: str

    def is_of(self, packages: tuple[str, ...]) -> bool:
        return any(f"{self.name}.".startswith(f"{package}.") for package in packages)

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def imports_in(source: str, file: str) -> Iterator[Import]:
    """All of them: also those inside functions, relative ones, and those by name (`import_module("x")`)."""
    package = PurePosixPath(file).parent.parts
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            parent = ".".join((*above, *filter(None, (node.module,))))
            for alias in node.names:
                yield Import(file, node.lineno, f"{parent}.{alias.name}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant):
                yield Import(file, node.lineno, str(first.value))


@cache
def sources() -> dict[str, str]:
    """Path from the root → text, of everything that we ship."""
    files = [file for package in OURS for file in sorted((ROOT / package).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(each for file, text in sources().items() for each in imports_in(text, file))


@dataclass(frozen=True)
class Rule:
    """Nothing in `inside` imports `what`. `but` are patterns of files that may."""

    what: tuple[str, ...]
    inside: tuple[str, ...] = OURS
    but: tuple[str, ...] = ()

    def broken_by(self, found: tuple[Import, ...]) -> list[str]:
        return [
            str(each)
            for each in found
            if each.is_of(self.what)
            and any(each.file == place or each.file.startswith(f"{place}/") for place in self.inside)
            and not any(PurePosixPath(each.file).match(pattern) for pattern in self.but)
        ]


RULES = {
    "cluster decides, and runs nothing": Rule(
        inside=("cluster",),
        what=(
            *("deployments", "kernels", "loadtest", "tests"),
            *("ray", "torch", "triton", "vllm", "transformers"),
            *("fastapi", "aiohttp", "locust", "click", "rich"),
        ),
    ),
    "kernels import nothing of ours": Rule(
        inside=("kernels",), what=("cluster", "deployments", "loadtest", "tests")
    ),
    "loadtest knows the gateway by HTTP only": Rule(
        inside=("loadtest",), what=("cluster", "deployments", "kernels", "tests")
    ),
    "deployments start loadtest as a subprocess": Rule(inside=("deployments",), what=("loadtest", "tests")),
    # What to run and where to run it change for different reasons.
    "the router does not know the scheduler": Rule(inside=("cluster/router",), what=("cluster.scheduler",)),
    "the scheduler does not know the router": Rule(inside=("cluster/scheduler",), what=("cluster.router",)),
    # A gateway reaches an engine by HTTP only, so it never waits for Ray and dies with no engine.
    "the gateway knows no engine": Rule(
        inside=("deployments/gateway",),
        what=(
            *("deployments.app", "deployments.supervisor", "deployments.cli", "deployments.sim"),
            *("deployments.engine_replica", "deployments.engine_sim", "deployments.engine_vllm"),
            *("deployments.engine_upstream", "deployments.upstream"),
        ),
    ),
    "vllm stands behind one module": Rule(
        what=("vllm",),
        but=(
            "deployments/engine_vllm.py",
            "deployments/residency/vllm_adapters.py",
            "kernels/plugin/*.py",
            "kernels/benchmark/*.py",
            "rivals/*.py",
            "kernels/cpu_comparison.py",
        ),
    ),
    # Gateway, command line, weights and the simulated engine run without a Ray cluster.
    "ray stays at the top of deployments": Rule(
        what=("ray",),
        # Rivals made of Ray.
        but=(
            "deployments/*.py",
            "deployments/bench/ray_capacity_queue.py",
            "deployments/bench/gateway_systems/ray_ingress.py",
        ),
    ),
    "sqlalchemy stands behind the store": Rule(
        what=("sqlalchemy", "alembic", "psycopg", "sqlite3"),
        but=("cluster/ledger.py", "cluster/store/*.py", "store/migrations/*.py", "migrations/versions/*.py"),
    ),
    # runtime.py names the client's type where it connects a scheduler.
    "redis stands behind the scheduler": Rule(
        what=("redis", "valkey", "hiredis"),
        but=("cluster/scheduler/*.py", "deployments/runtime.py", "deployments/bench/*.py"),
    ),
    # Reading a pickle runs whatever is in it (THREATS.md 19).
    "nothing unpickles": Rule(what=("pickle", "cloudpickle", "dill", "marshal", "shelve")),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=[name.replace(" ", "_") for name in RULES])
def test_nothing_is_imported_against_a_rule(rule: Rule) -> None:
    broken = rule.broken_by(all_imports())

    assert not broken, "\n".join(broken)


def test_a_rule_sees_every_form_of_import() -> None:
    source = """
import os, ray.serve
from ray import serve
from .. import scheduler
from ..scheduler.scripts import ADMIT
def late():
    import ray
    importlib.import_module("ray")
import rays
"""
    found = tuple(imports_in(source, "cluster/router/x.py"))

    assert [each.line for each in found if each.is_of(("ray",))] == [2, 3, 7, 8]
    assert Rule(inside=("cluster/router",), what=("cluster.scheduler",)).broken_by(found) == [
        "cluster/router/x.py:4 imports cluster.scheduler",
        "cluster/router/x.py:5 imports cluster.scheduler.scripts.ADMIT",
    ]
    assert Rule(what=("ray",), but=("cluster/*.py",)).broken_by(found), "a folder below is not the folder"
    assert not Rule(what=("ray",), but=("cluster/router/*.py",)).broken_by(found)


# Inside cluster. A line may import from the lines above it; names on one line are independent.
FOUNDATION = ("record", "types", "errors", "clock", "keys")
LINES = (
    FOUNDATION,
    ("sources", "tenants"),
    ("decision_log",),
    ("config",),
    ("adapters", "catalogue"),
    ("store",),
    ("registry", "ledger", "cost", "perf", "metrics"),
    ("router", "scheduler", "placement"),
    ("planner", "flywheel"),
)


def cluster_part(module: str) -> str:
    """`cluster.router.view` and cluster/router/view.py are `router`."""
    return module.removesuffix(".py").replace("/", ".").split(".")[1]


def test_the_foundation_imports_only_the_standard_library_and_itself() -> None:
    allowed = {*sys.stdlib_module_names, *(f"cluster.{name}" for name in FOUNDATION)}
    wrong = [
        str(each)
        for each in all_imports()
        if each.file in {f"cluster/{name}.py" for name in FOUNDATION} and not each.is_of(tuple(allowed))
    ]

    assert not wrong, "\n".join(wrong)


def test_the_lines_of_cluster_import_only_from_above() -> None:
    line_of = {name: number for number, names in enumerate(LINES) for name in names}
    parts = {cluster_part(file) for file in sources() if file.startswith("cluster/")} - {"__init__"}

    assert parts <= line_of.keys(), f"give {', '.join(parts - line_of.keys())} a place in LINES"
    wrong = []
    for each in all_imports():
        if each.file.startswith("cluster/") and each.is_of(("cluster",)) and "__init__" not in each.file:
            importer, imported = cluster_part(each.file), cluster_part(each.name)
            below = line_of[imported] < line_of[importer]
            if not (importer == imported or below or importer in FOUNDATION):
                wrong.append(f"{each}, which is not above {importer}")
    assert not wrong, "\n".join(wrong)


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    """`sprat status` answers in a second because of this."""
    heavy = ("ray", "torch", "vllm", "transformers", "triton")
    command = f"import sys, deployments.cli.main; print(*(n for n in {heavy} if n in sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []


# Redis keys and Lua.


def test_only_keys_py_formats_redis_keys() -> None:
    wrong = []
    for file, text in sources().items():
        if file == "cluster/keys.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{sch}" in node.value:
                wrong.append(f"{file}:{node.lineno} writes a key by hand")
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "keys.TAG":
                wrong.append(f"{file}:{node.lineno} uses keys.TAG")
    wrong += [str(each) for each in all_imports() if each.is_of(("cluster.keys.TAG",))]
    wrong += [f"{file.name} writes a key by hand" for file in LUA if "{sch}" in file.read_text()]

    assert not wrong, "\n".join(wrong)


OPERATIONS = [file for file in LUA if not file.name.startswith("_")]


@pytest.mark.parametrize("file", OPERATIONS, ids=lambda file: file.stem)
def test_a_script_says_what_it_takes_and_gives(file: Path) -> None:
    shebang, *rest = file.read_text().splitlines()
    header = []
    for line in rest:
        if not line.startswith("--"):
            break
        header.append(line)

    assert shebang.startswith("#!lua")
    for word in ("KEYS", "ARGV", "Reply", "Time"):
        assert any(re.match(rf"-- {word}\b +\S", line) for line in header), f"{file.name} does not say {word}"


def test_the_text_of_a_script_is_that_of_its_files() -> None:
    """A formatted value would be code (THREATS.md), and each value another script in Redis' cache."""
    loaded = {
        each.name: each.source for each in vars(scripts).values() if isinstance(each, scripts.LuaScript)
    }
    folder = ROOT / "cluster/scheduler/lua"

    assert loaded.keys() == {file.stem for file in OPERATIONS}
    for file in OPERATIONS:
        shebang, _, body = file.read_text().partition("\n")
        uses = re.match(r"-- Uses (.*)\n", body)
        parts = [folder / f"{name}.lua" for name in (uses[1].split() if uses else [])]
        assert loaded[file.stem] == shebang + "\n" + "".join(part.read_text() for part in parts) + body

    tree = ast.parse(sources()["cluster/scheduler/scripts.py"])
    made = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "source" in ast.unparse(node.targets[0])
    ]
    assert made
    for node in (inner for assignment in made for inner in ast.walk(assignment.value)):
        formats = isinstance(node, (ast.JoinedStr, ast.Mod)) or getattr(node, "attr", "") in {
            "format",
            "replace",
        }
        assert not formats, f"cluster/scheduler/scripts.py:{node.lineno} formats Lua"


def test_only_scripts_py_sends_lua_to_redis() -> None:
    senders = [
        f"{file}:{node.lineno} calls {node.attr}"
        for file, text in sources().items()
        if file != "cluster/scheduler/scripts.py"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in {"evalsha", "register_script", "script_load"}
    ]

    assert not senders, "\n".join(senders)


# What runs strangers' text.

FORBIDDEN_CALLS = frozenset(
    {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.load"}
)


def strange_calls(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).removeprefix("builtins.")
        if name in FORBIDDEN_CALLS or name.endswith(("pickle.load", "pickle.loads")):
            yield node.lineno, f"{name}("
        if any(each.arg == "shell" and ast.unparse(each.value) != "False" for each in node.keywords):
            yield node.lineno, "a shell"


def test_nothing_runs_strangers_text() -> None:
    wrong = [
        f"{file}:{line} uses {what}" for file, text in sources().items() for line, what in strange_calls(text)
    ]

    assert not wrong, "\n".join(wrong)


def test_the_scan_finds_what_it_looks_for() -> None:
    source = "eval(x)\nclient.eval(x)\nyaml.load(x)\nyaml.safe_load(x)\npickle.loads(x)\nrun(x, shell=True)\n"

    assert [line for line, _ in strange_calls(source)] == [1, 3, 5, 6]


# The package `kernels`: transformers probes for another one of that name (PLATFORM.md section 4).


def test_importing_kernels_can_do_nothing_wrong() -> None:
    tree = ast.parse(sources()["kernels/__init__.py"])

    for node in tree.body:
        plain = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, ast.ImportFrom):
            plain = node.module == "__future__"
        elif isinstance(node, ast.Expr):
            plain = isinstance(node.value, ast.Constant)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            ast.literal_eval(node.value)
            plain = True
        assert plain, f"kernels/__init__.py:{node.lineno} does more than name things: {ast.unparse(node)}"

    namespace: dict[str, object] = {"__name__": "kernels"}
    exec(compile(tree, "kernels/__init__.py", "exec"), namespace)
    assert namespace["__version__"] == "0.0.0"


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_our_version_stays_below_the_window_of_the_other_package() -> None:
    major, minor = map(int, str(project()["version"]).split(".")[:2])

    assert (major, minor) < (0, 9)


def requirement_names(lines: list[str]) -> set[str]:
    """`Foo_Bar[x]>=1; marker` is `foo-bar`."""
    found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def test_the_other_package_is_no_dependency() -> None:
    description = project()
    extras = description["optional-dependencies"].values()
    wanted = [*description["dependencies"], *(each for extra in extras for each in extra)]

    assert "kernels" not in requirement_names(wanted)
    assert {"ray", "transformers"} <= requirement_names(wanted)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_has_nothing_that_must_not_be_installed(lock: Path) -> None:
    """Why not torchvision and its kin: lock.sh."""
    locked = requirement_names(lock.read_text().splitlines())

    assert locked, f"{lock.name} is empty"
    assert locked.isdisjoint({"kernels", "torchvision", "torchaudio", "torchcodec"})


PROBE = """
import importlib.metadata, json, sys
if sys.argv[1] == "shipped":  # as Ray ships the tree to its workers: no distribution metadata
    known = dict(importlib.metadata.packages_distributions())
    del known["kernels"]
    importlib.metadata.packages_distributions = lambda: known
from transformers import AutoModelForCausalLM
from transformers.integrations import hub_kernels
import kernels
print(json.dumps({"taken": hub_kernels.is_kernels_available(), "file": kernels.__file__}))
"""


@pytest.mark.parametrize("how", ["installed", "shipped"])
def test_transformers_does_not_take_our_kernels_for_the_other_ones(how: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}

    done = subprocess.run(
        [sys.executable, "-c", PROBE, how],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["taken"] is False
    assert found["file"] == str(ROOT / "kernels/__init__.py")
