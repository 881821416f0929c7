"""What ends every benchmark's JSON: where, with what, when and by which command its numbers came about."""

from __future__ import annotations

import datetime
import shlex
import sys
from types import ModuleType
from typing import Any

import torch

import deitkit
from deitkit.evaluation.speed import describe_machine


def provenance(*libraries: ModuleType, on_gpu: bool = False) -> dict[str, Any]:
    """libraries: whose versions count beside PyTorch's and deitkit's; on_gpu: what it was measured on."""
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else describe_machine(),
        "versions": {module.__name__: module.__version__ for module in (deitkit, torch, *libraries)},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }
