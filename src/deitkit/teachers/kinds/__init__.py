"""The kinds of teachers, a module each: `check` is quick and early, `open_model` loads the weights."""

from __future__ import annotations

import importlib
from typing import cast

from ..pretrained import Kind

NAMES = ("timm", "torchvision", "hf", "onnx", "run", "python")


def kind(name: str) -> Kind:
    """The module of that name, imported when it is first asked for."""
    return cast(Kind, importlib.import_module(f".{name}", __name__))
