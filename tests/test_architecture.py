"""The rules of the package, read from its source: floors, no prints, no asserts, short files and functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mmtune"
FLOORS = {
    **{"core": 0, "nn": 1, "hosts": 2, "modalities": 2, "methods": 3, "model": 4, "data": 4},
    **{"train": 5, "evaluation": 5, "convert": 5, "report": 5, "nano": 5, "testing": 5, "cli": 6},
}
FRONT_DOOR = 6  # files beside the floors: the public names and `python -m mmtune` reach everything, lazily
FILES = sorted(PACKAGE.rglob("*.py"))
DATA_LEAVES = {"mmtune.data.sample", "mmtune.data.messages", "mmtune.data.markers", "mmtune.data.items"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


def identify(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], FRONT_DOOR) if len(parts) > 1 else FRONT_DOOR


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module of mmtune that a file imports, also inside functions."""
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found = [origin if origin != "mmtune" else f"mmtune.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in found if name.split(".")[0] == "mmtune")


def test_every_part_has_a_floor() -> None:
    parts = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert parts <= set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_go_downwards(path: Path) -> None:
    module = module_name(path)
    for name, line in imports(path):
        assert floor_of(name) <= floor_of(module), f"{path}:{line}: {module} imports {name}, which is above it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").rglob("*.py")), ids=identify)
def test_the_model_knows_only_samples_of_the_data(path: Path) -> None:
    """Both stand on floor 4; the model may use the data's leaves, which know nothing but each other."""
    for name, line in imports(path):
        assert not name.startswith("mmtune.data") or name in DATA_LEAVES, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("leaf", sorted(DATA_LEAVES))
def test_leaves_of_the_data_stay_leaves(leaf: str) -> None:
    path = PACKAGE.parent / (leaf.replace(".", "/") + ".py")
    for name, line in imports(path):
        assert name in DATA_LEAVES or name.startswith("mmtune.core"), f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_source_habits(path: Path) -> None:
    is_cli = path.relative_to(PACKAGE).parts[0] == "cli"
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines"
    for node in ast.walk(parse(path)):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert in the source; raise an error of core.errors"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert is_cli or node.func.id != "print", f"{where}: print outside cli"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{where}: {node.name} has {length} lines"
        if isinstance(node, ast.ExceptHandler):
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not silent, f"{where}: an error is swallowed"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_no_catch_all_names(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "misc", "common"}


@pytest.mark.parametrize("module", ["mmtune", "mmtune.cli.app"])
def test_light_imports(module: str) -> None:
    """Help and versions answer at once: nothing heavy is imported before a verb begins its work."""
    heavy = "('torch', 'transformers', 'numpy', 'datasets', 'peft', 'accelerate', 'matplotlib', 'PIL')"
    code = f"import sys, {module}; sys.exit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, f"import {module} also imports: {done.stderr.strip()}"
