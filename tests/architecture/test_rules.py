"""Rules of the house that a reviewer should not have to look for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("decentral/**/*.py"), *ROOT.glob("workers/**/*.py"), *ROOT.glob("scripts/**/*.py")])
MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 70

#: Whole rooms, and single modules of others, that decide without clock, network and chance.
PURE = [
    "decentral/codecs/*.py",
    "decentral/outer/*.py",
    "decentral/schedule/*.py",
    "decentral/tensors/*.py",
    "decentral/swarm/*.py",
    "decentral/exchange/allreduce/answers.py",
    "decentral/exchange/wire.py",
    "decentral/exchange/shard.py",
    "decentral/exchange/allreduce/messages.py",
    "decentral/exchange/progress.py",
    "decentral/exchange/allreduce/participants.py",
    "decentral/monitor/figures.py",
    "decentral/monitor/report.py",
    "decentral/monitor/stages.py",
    "decentral/monitor/status.py",
    "decentral/pipeline/assignment.py",
    "decentral/pipeline/cut.py",
    "decentral/pipeline/ledger.py",
    "decentral/pipeline/packets.py",
    "decentral/pipeline/recovery.py",
    "decentral/pipeline/routing.py",
    "decentral/pipeline/shares.py",
    "decentral/types.py",
    "decentral/errors.py",
]
IMPURE_LIBRARIES = {"asyncio", "threading", "time", "datetime", "random", "secrets", "socket", "os", "subprocess"}


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 50
    assert all(any(ROOT.glob(pattern)) for pattern in PURE)


def test_rooms_import_whom_they_may() -> None:
    """The contracts of pyproject.toml, as in scripts/check."""
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every module by its path."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in MODULES}


def test_sizes(trees: dict[str, ast.Module]) -> None:
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in trees}
    assert {path: num for path, num in lines.items() if num > MAX_MODULE_LINES} == {}
    functions = {
        f"{path}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: num for name, num in functions.items() if num > MAX_FUNCTION_LINES} == {}


def test_every_module_says_what_it_is_for(trees: dict[str, ast.Module]) -> None:
    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_what_is_pure_imports_nothing_that_is_not() -> None:
    paths = [path for pattern in PURE for path in ROOT.glob(pattern)]
    assert {
        str(p.relative_to(ROOT)): bad for p in paths if (bad := imported(ast.parse(p.read_text())) & IMPURE_LIBRARIES)
    } == {}
