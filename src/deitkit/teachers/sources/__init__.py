"""Where teachers come from, one module per source: `check` is quick, `open_model` loads the weights."""

from __future__ import annotations

import importlib
from typing import cast

from ..pretrained import Kind

# As in `timm:NAME`, and the module that opens it.
_MODULES = {
    "timm": "timm_model",
    "torchvision": "torchvision_model",
    "hf": "hugging_face",
    "onnx": "onnx_file",
    "run": "deitkit_run",
    "python": "python_function",
}
NAMES = tuple(_MODULES)


def kind(name: str) -> Kind:
    """The source called `name`; its module is imported on first use."""
    return cast(Kind, importlib.import_module(f".{_MODULES[name]}", __name__))
