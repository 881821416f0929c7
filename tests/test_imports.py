"""Imports run one way, and asking for help loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import deitkit

PACKAGE = Path(deitkit.__file__).parent

# From the top down; a part may import those of lower layers only.
LAYERS: tuple[str, ...] = (
    "__main__",
    "cli",
    "study",
    "training",
    "deploy",
    "report",
    "evaluation",
    "classifier",
    "decision",
    "distillation",
    "soft_labels",
    "teachers",
    "data",
    "weights",
    "run_folder",
    "run_schema",
    "inference",
    "preprocessing",
    "models",
    "recipes",
    "keywords",
    "config",
    "settings",
    "locks",
    "io",
    "log",
    "distributed",
    "errors",
    "tasks",
)
LEVEL = {part: level for level, part in enumerate(LAYERS)}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path: Path) -> set[str]:
    """Parts of the package that a module imports, wherever in it the import stands."""
    package = ("deitkit", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        found |= {name[1] for name in names if name[0] == "deitkit" and len(name) > 1}
    return found - {part_of(path)}


def test_every_part_has_a_layer():
    assert {part_of(p) for p in MODULES} == set(LEVEL)


def test_no_two_modules_have_the_same_file_name():
    names = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert len(names) > 150 and [name for name, count in names.items() if count > 1] == []


def test_imports_are_read_at_all():
    found = imported_parts(PACKAGE / "distillation" / "objective.py")
    assert found == {"config", "models", "soft_labels", "teachers", "tasks"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path):
    own = LEVEL[part_of(path)]
    assert [part for part in imported_parts(path) if LEVEL.get(part, -1) <= own] == []


@pytest.mark.parametrize(
    "code",
    [
        "import deitkit",
        "from deitkit import cli\ntry: cli.main(['train', '--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_loads_nothing_heavy(code: str):
    heavy = "{'torch', 'torchvision', 'timm', 'matplotlib', 'PIL', 'numpy', 'openvino', 'onnxruntime'}"
    check = f"{code}\nimport sys\nfound = {heavy} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "deitkit", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"deitkit {deitkit.__version__}"), done.stderr
