"""No call in the package runs code from data: a scan of the syntax trees, with a short list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deitkit

PACKAGE = Path(deitkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Module and finding -> why it is safe.
ALLOWED = {
    ("settings.py", "import_module of a variable"): "names of registries, literals in config.py",
    ("teachers/sources/python_function.py", "import_module of a variable"): (
        "the user's own python: teacher, typed in this call; specs from files are refused (test_trust.py)"
    ),
    ("evaluation/side_by_side.py", "subprocess"): "this Python on a module of the package, without a shell",
    ("deploy/export_formats/ncnn.py", "subprocess"): "pnnx's converter, on a file that was just written",
}

# Modules that read pickles, or YAML and the like with constructors, or run code.
IMPORTS = {
    "cloudpickle", "code", "ctypes", "dill", "joblib", "marshal", "pickle", "pty", "runpy", "shelve", "yaml",
}  # fmt: skip
CALLS = {
    "__import__", "compile", "eval", "exec", "input",
    "importlib.metadata.entry_points", "jinja2.Template", "numpy.fromregex", "pandas.read_pickle",
    "os.execv", "os.execve", "os.popen", "os.spawnl", "os.spawnv", "os.startfile", "os.system",
    "tempfile.mktemp", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter",
    "webbrowser.open",
}  # fmt: skip
# Calls that need a keyword with this value.
KEYWORDS = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "jinja2.Environment": ("autoescape", True),
}
# Keywords that no call, and no parameter's default, has with this value.
VALUES = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}


def findings(source: str) -> set[str]:
    """What a module does that needs a reason."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found = {f"import {name}" for name in names.values() if name.split(".")[0] in IMPORTS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= set(in_call(node, dotted_name(node.func, names)))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= set(in_defaults(node.args))
    return found


def imported_names(tree: ast.AST) -> dict[str, str]:
    """`{"np": "numpy", "load": "torch.load"}`: what each imported name stands for."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted_name(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` as `numpy.load`; empty for a call of a call and the like."""
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value, names)
        return f"{base}.{node.attr}" if base else ""
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def in_call(call: ast.Call, name: str) -> Iterator[str]:
    keywords = {k.arg: k.value for k in call.keywords if k.arg is not None}
    if name in CALLS:
        yield name
    if name.startswith("subprocess."):
        yield "subprocess"
    if name == "importlib.import_module" and not is_own_module(call.args[0]):
        yield "import_module of a variable"
    if name in KEYWORDS:
        keyword, value = KEYWORDS[name]
        if not is_constant(keywords.get(keyword), value):
            yield f"{name} without {keyword}={value}"
    for keyword, value in VALUES.items():
        if is_constant(keywords.get(keyword), value):
            yield f"{keyword}={value}"


def in_defaults(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(positional[::-1], arguments.defaults[::-1], strict=False)]
    pairs += [
        (a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None
    ]
    for argument, default in pairs:
        if argument.arg in VALUES and is_constant(default, VALUES[argument.arg]):
            yield f"{argument.arg}={VALUES[argument.arg]} by default"


def is_own_module(name: ast.expr) -> bool:
    """Whether a module's name is a literal, or begins as those of this package: f"{__name__}.x" or f".x"."""
    if not isinstance(name, ast.JoinedStr):
        return isinstance(name, ast.Constant)
    first = name.values[0]
    if isinstance(first, ast.FormattedValue):
        return isinstance(first.value, ast.Name) and first.value.id == "__name__"
    return isinstance(first, ast.Constant) and str(first.value).startswith(".")


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_call_that_runs_code_from_data(path):
    module = path.relative_to(PACKAGE).as_posix()
    found = findings(path.read_text(encoding="utf-8"))
    assert {finding for finding in found if (module, finding) not in ALLOWED} == set()


def test_every_exception_is_still_needed():
    for module, finding in ALLOWED:
        assert finding in findings((PACKAGE / module).read_text(encoding="utf-8")), (module, finding)


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("import pickle", "import pickle"),
        ("from yaml import load", "import yaml.load"),
        ("import torch\ntorch.load('a.pth')", "torch.load without weights_only=True"),
        ("import torch as t\nt.load('a', weights_only=flag)", "torch.load without weights_only=True"),
        ("from torch import load\nload('a', weights_only=False)", "torch.load without weights_only=True"),
        ("def f():\n    from torch import load as read\n    read(p)", "torch.load without weights_only=True"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import os\nos.system(command)", "os.system"),
        ("import subprocess\nsubprocess.run(command, shell=True)", "shell=True"),
        ("import tempfile\ntempfile.mktemp()", "tempfile.mktemp"),
        ("import importlib\nimportlib.import_module(saved['module'])", "import_module of a variable"),
        ("from importlib import import_module\nimport_module(name)", "import_module of a variable"),
        ("import importlib\nimportlib.import_module(f'{name}.x')", "import_module of a variable"),
        ("Auto.from_pretrained(name, trust_remote_code=True)", "trust_remote_code=True"),
        ("def f(name, *, trust_remote_code=True): ...", "trust_remote_code=True by default"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("import jinja2\njinja2.Environment()", "jinja2.Environment without autoescape=True"),
    ],
)
def test_the_scan_finds(code, finding):
    assert finding in findings(code)


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "import torch\ntorch.load(path, weights_only=True)",
        "import importlib\nimportlib.import_module('timm')",
        "import importlib\nimportlib.import_module(f'{__name__}.{module.name}')",
        "import importlib\nimportlib.import_module(f'.{name}', __name__)",
        "from .evaluate import evaluate\nevaluate(model)",
        "def f(*, trust_remote_code: bool = False): ...",
        "re.compile(pattern)",
    ],
)
def test_the_scan_passes(code):
    assert findings(code) == set()
