"""Measures the structure of the source: sizes, names, and how far a config travels before training
starts.

    python benchmarks/house.py src                     # this tree
    python benchmarks/house.py OLD/src src             # before and after, as a Markdown table
    python benchmarks/house.py src --path none         # every stop of a config on its way

A config's way is traced with a profiler, from the command line to the construction of the optimizer, in
one small `deitkit train` without a teacher and one with a timm teacher. Two ways are counted:

- passed: calls that get a settings object (`Config`, a resolved one, or a section) as an argument;
- read along: these, and every call made by a function that has the whole config, as an argument or in an
  attribute of one. It is what a reader opens who follows the config; a function that has a section only
  ends that reading.

Stops in a row in one module count once. A climb is a stop in a higher layer than the stop before it, with
the layers of tests/test_imports.py, unless its caller is in its own module; an upward call is one whose
caller is in a lower layer. A return is a stop in a module that was left before. Methods of the settings
themselves, and what those call, are no stops. The tree may be of version 0.1.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

SETTINGS = {"Config", "ResolvedConfig"}  # classes that hold all settings
SMALL, MANY, LONG = 60, 5, 60  # lines of a module, parameters, lines of a function
TEACHERS = ("none", "timm")
WAYS = ("passed", "read along")
KINDS = ("modules", "climbs", "upward calls", "returns")


# Counts


def parsed(package: Path) -> dict[str, ast.Module]:
    """Every module of the package by its path below it."""
    files = sorted(package.rglob("*.py"))
    return {str(f.relative_to(package)): ast.parse(f.read_text(encoding="utf-8")) for f in files}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods, nested ones too."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
    """All but self and cls."""
    a = function.args
    found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [p for p in found if p.arg not in ("self", "cls")]


def is_whole(annotation: ast.expr | None) -> bool:
    """Whether an annotation names a class that holds all settings."""
    if annotation is None:
        return False
    return any(isinstance(n, ast.Name) and n.id in SETTINGS for n in ast.walk(annotation))


def receives_whole(tree: ast.Module) -> bool:
    """Whether a function, or a dataclass's constructor, takes all settings."""
    taken = any(is_whole(p.annotation) for f in functions(tree) for p in parameters(f))
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name not in SETTINGS]
    held = (f for c in classes for f in c.body if isinstance(f, ast.AnnAssign))
    return taken or any(is_whole(f.annotation) for f in held)


def counts(root: Path) -> dict[str, Any]:
    """Numbers of the package `deitkit` below `root`, by what they count."""
    package = root / "deitkit"
    modules = parsed(package)
    lines = {name: len((package / name).read_text(encoding="utf-8").splitlines()) for name in modules}
    named = {n: c for n, c in lines.items() if Path(n).name not in ("__init__.py", "__main__.py")}
    twice = {k: c for k, c in Counter(Path(n).name for n in named).items() if c > 1}
    all_functions = [(n, f) for n, tree in modules.items() for f in functions(tree)]
    length = {f"{n}:{f.name}": (f.end_lineno or 0) - f.lineno + 1 for n, f in all_functions}
    longest = max(length, key=length.__getitem__)
    many = [n for n, f in all_functions if len(parameters(f)) > MANY]
    text = {n: (package / n).read_text(encoding="utf-8") for n in modules}
    return {
        "modules": len(named),
        "lines": sum(lines.values()),
        f"modules under {SMALL} lines": sum(c < SMALL for c in named.values()),
        "duplicate file names": len(twice),
        "modules that receive the whole config": sum(receives_whole(t) for t in modules.values()),
        f"functions with more than {MANY} parameters": len(many),
        "of them outside cli/": sum(not n.startswith("cli") for n in many),
        "lines with dict[str, Any]": sum(
            "dict[str, Any]" in line for t in text.values() for line in t.splitlines()
        ),
        "casts": sum(t.count("cast(") for t in text.values()),
        f"functions over {LONG} lines": sum(c > LONG for c in length.values()),
        "longest function": f"{length[longest]} lines, {longest}",
    }


# The way of a config


class OptimizerBuilt(BaseException):
    """Ends the traced training: what follows is the training loop."""


@dataclass
class Way:
    """Stops, in order, and what is counted of them."""

    levels: dict[str, int]
    stops: list[str] = field(default_factory=list)
    climbs: list[str] = field(default_factory=list)
    upward_calls: int = 0

    def stop(self, module: str, caller: str | None) -> None:
        """Notes a call into `module`."""
        if self.stops and self.stops[-1] == module:
            return
        if caller is not None and self.level(module) < self.level(caller):
            self.upward_calls += 1
        if self.stops and caller != module and self.level(module) < self.level(self.stops[-1]):
            self.climbs.append(f"{self.stops[-1]} -> {module}, called by {caller}")
        self.stops.append(module)

    def level(self, module: str) -> int:
        """The layer of the longest known prefix, 0 the highest."""
        parts = module.split(".")
        known = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        return next(self.levels[name] for name in known if name in self.levels)

    def summary(self) -> dict[str, Any]:
        """Counts, and the stops."""
        distinct = len(set(self.stops))
        return {
            "modules": distinct,
            "stops": len(self.stops),
            "climbs": len(self.climbs),
            "upward calls": self.upward_calls,
            "returns": len(self.stops) - distinct,
            "way": self.stops,
            "climbed": self.climbs,
        }


def layers(tests: Path) -> dict[str, int]:
    """LAYERS of tests/test_imports.py as levels, whether each layer is one name or several."""
    for node in ast.walk(ast.parse((tests / "test_imports.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAYERS" and node.value:
            rows = ast.literal_eval(node.value)
            return {n: i for i, row in enumerate(rows) for n in ([row] if isinstance(row, str) else row)}
    raise SystemExit(f"there are no LAYERS in {tests / 'test_imports.py'}")


@dataclass
class Tracer:
    """A profiler for `sys.setprofile` that follows settings objects through the package."""

    package: str
    ways: dict[str, Way]
    resumed: set[FrameType] = field(default_factory=set)  # of generators, whose every step is a call event

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame in self.resumed or (module := self.module_of(frame)) is None:
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:
            self.resumed.add(frame)
        above, caller = frame.f_back, None
        while above is not None and (caller := self.module_of(above)) is None:
            above = above.f_back
        if is_method_of_settings(frame) or (above is not None and is_method_of_settings(above)):
            return
        if any(map(is_settings, arguments(frame))):
            self.ways["passed"].stop(module, caller)
            self.ways["read along"].stop(module, caller)
        elif above is not None and any(is_whole_config(v) or holds_config(v) for v in arguments(above)):
            self.ways["read along"].stop(module, caller)

    def module_of(self, frame: FrameType) -> str | None:
        """The module of a frame as "folder.file"; None outside the package."""
        name = frame.f_code.co_filename
        if not name.startswith(self.package) or frame.f_code.co_name in ("<module>",):
            return None
        inner = name[len(self.package) :].strip(os.sep).removesuffix(".py").replace(os.sep, ".")
        return inner.removesuffix("__init__").removesuffix(".") or None


def arguments(frame: FrameType) -> list[Any]:
    """The values of a function's arguments, `self` among them."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [frame.f_locals.get(name) for name in names]


def is_method_of_settings(frame: FrameType) -> bool:
    """Whether a frame runs a method of a settings object or a class method of its class."""
    first = frame.f_code.co_varnames[:1]
    owner = frame.f_locals.get(first[0]) if first in (("self",), ("cls",)) else None
    return is_settings(owner) or (isinstance(owner, type) and owner.__name__.endswith("Config"))


def class_names(value: Any) -> set[str]:
    """The names of a value's class and its base classes, those of deitkit only."""
    return {kind.__name__ for kind in type(value).__mro__ if kind.__module__.startswith("deitkit.")}


def is_settings(value: Any) -> bool:
    """Whether a value is a settings object of deitkit, whole or a section."""
    return any(name.endswith("Config") for name in class_names(value))


def is_whole_config(value: Any) -> bool:
    """Whether a value holds all settings."""
    return not SETTINGS.isdisjoint(class_names(value))


def holds_config(value: Any) -> bool:
    """Whether a value is an object of deitkit with all settings in an attribute."""
    if not type(value).__module__.startswith("deitkit."):
        return False
    return any(map(is_whole_config, getattr(value, "__dict__", {}).values()))


def stop_at_optimizer() -> None:
    """Raises OptimizerBuilt when the student's optimizer is constructed, which is built from a section."""
    from torch.optim import Optimizer

    built = Optimizer.__init__

    def init(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        frame = sys._getframe(1)
        for _ in range(3):  # the subclass's constructor, then the function that builds it
            if any(type(v).__name__ == "OptimConfig" for v in frame.f_locals.values()):
                raise OptimizerBuilt
            if frame.f_back is None:
                break
            frame = frame.f_back
        built(self, *args, **kwargs)

    Optimizer.__init__ = init  # type: ignore[method-assign]


def trace(root: Path, teacher: str, folder: Path) -> dict[str, Any]:
    """Follows the config of one small training of the package below `root`, in this process."""
    sys.path.insert(0, str(root))
    os.environ["DEITKIT_CACHE"] = str(folder / "cache")
    write_images(folder / "images")
    spec = write_teacher(folder / "teacher.safetensors") if teacher == "timm" else "none"
    import deitkit
    from deitkit.cli import main

    package = str(Path(deitkit.__file__).parent)
    assert package == str(root / "deitkit"), f"another deitkit was imported: {package}"
    stop_at_optimizer()
    import_all(deitkit)
    levels = layers(root.parent / "tests")
    tracer = Tracer(package, {kind: Way(levels) for kind in WAYS})
    command = ["train", str(folder / "images"), "--out", str(folder / "run"), f"--teacher={spec}"]
    command += [
        "--image-size=16",
        "--patch-size=8",
        "--batch-size=8",
        "--epochs=2",
        "--device=cpu",
        "--init=none",
    ]
    if (root / "deitkit/training/teacher_sizes.py").exists():  # not in version 0.1
        command.append("--set=teacher.deploy_sizes=none")  # which fits the teacher again, once per size
    if teacher == "none":
        command.append("--distillation=none")
    sys.setprofile(tracer)
    try:
        main(command)
    except OptimizerBuilt:
        return {kind: way.summary() for kind, way in tracer.ways.items()}
    finally:
        sys.setprofile(None)
    raise SystemExit("the training ended without an optimizer")


def import_all(package: ModuleType) -> None:
    """Imports every module now, so that the trace has no calls made while importing."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(module.name)


def write_images(folder: Path) -> None:
    """Two classes of 12 small images, told apart by their mean colour."""
    import numpy as np
    from PIL import Image

    rng = np.random.RandomState(0)
    for k, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.randint(0, 120, (24, 24, 3)) + 130 * k
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def write_teacher(path: Path) -> str:
    """The spec of a small timm model with random weights."""
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return f"timm:test_efficientnet@{path}"


# The table


def measured(root: Path) -> dict[str, Any]:
    """Counts of the tree, and the ways of its config, each traced in a process of its own."""
    found: dict[str, Any] = {"counts": counts(root), "ways": {}}
    for teacher in TEACHERS:
        command = [sys.executable, __file__, str(root), "--trace", teacher]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"the training in {root} failed:\n{done.stderr}")
        found["ways"][teacher] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(found: dict[str, Any]) -> dict[str, Any]:
    """What `measured` gave, flat: one row of the table each."""
    flat = dict(found["counts"])
    for teacher, kinds in found["ways"].items():
        for kind, way in kinds.items():
            shown = ", ".join(f"{way[what]} {what}" for what in KINDS)
            flat[f"config's way, teacher {teacher}, {kind}"] = shown
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", type=Path, nargs="+", help="folders that hold the package deitkit")
    parser.add_argument("--path", choices=TEACHERS, help="print the way of this training, read along")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--trace", choices=TEACHERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    roots = [root.resolve() for root in options.roots]
    if options.trace:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(trace(roots[0], options.trace, Path(folder))))
        return
    found = [measured(root) for root in roots]
    if options.json:
        print(json.dumps(found, indent=1))
        return
    if options.path:
        for one in found:
            way = one["ways"][options.path]["read along"]
            print(" ".join(way["way"]), *way["climbed"], sep="\n", end="\n\n")
    columns = [rows(one) for one in found]
    print("| |" + "".join(f" {root.parent.name} |" for root in roots))
    print("|---|" + "---|" * len(roots))
    for name in dict.fromkeys(name for column in columns for name in column):
        print(f"| {name} |" + "".join(f" {column.get(name, '')} |" for column in columns))


if __name__ == "__main__":
    main()
