"""The provenance in every benchmark's JSON: machine, versions, date and command."""

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
    """libraries: to record beside PyTorch and deitkit. on_gpu: whether the GPU was measured."""
    return {
        "machine": torch.cuda.get_device_name() if on_gpu else describe_machine(),
        "versions": {module.__name__: module.__version__ for module in (deitkit, torch, *libraries)},
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }
