"""One side of `deitkit bench`, in a process of its own: python -m deitkit.deploy.bench_worker SPEC."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..classifier import load_folder
from ..evaluation.side_by_side import serve
from ..inference.backends import CONVERTED, Backend, PyTorchBackend, open_file


def create_side(spec: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """The side as `evaluation.side_by_side.serve` wants it.

    spec: `backend`, `precision`, `device`, `image_size`, and the `file` of the ONNX graph for
    ONNX Runtime and OpenVINO, or the `run` and `merge` for PyTorch.
    """
    device = torch.device(spec["device"])
    backend: Backend
    if spec["backend"] in CONVERTED:
        backend = open_file(spec["backend"], Path(spec["file"]))
    else:
        run = Path(spec["run"])
        classifier = load_folder(run, spec["device"], backend="pytorch", merge=spec["merge"])
        graph = classifier.as_graph()
        precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["precision"]]
        backend = PyTorchBackend(graph, device, precision=precision, compiled=spec["backend"] == "compiled")

    def passes(batch_size: int) -> Callable[[], object]:
        views = torch.rand(batch_size, 3, *spec["image_size"]).to(device)
        return lambda: backend(views)

    return passes


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    serve(lambda: create_side(asked), asked["device"])
