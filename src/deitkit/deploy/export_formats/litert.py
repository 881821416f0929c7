"""litert: a .tflite file for LiteRT, formerly TensorFlow Lite, on Android, iOS and small boards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...inference.backends import Backend
from ..export_format import ExportFormat, ExportJob, quiet, register, write_facts
from ..sample_code import python_sample


class LiteRTBackend:
    """A .tflite file on the CPU, for the batch size that it was written for."""

    name = "litert"

    def __init__(self, file: Path):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(file), num_threads=torch.get_num_threads())
        self.run = self.interpreter.get_signature_runner()

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        found = self.run(args_0=np.ascontiguousarray(views.numpy()))
        return tuple(torch.from_numpy(found[f"output_{i}"].copy()) for i in range(len(found)))


@register
class LiteRT(ExportFormat):
    name = "litert"
    about = "LiteRT on phones and small boards"
    suffix = ".tflite"
    extra = "litert"
    packages = ("litert_torch", "ai_edge_litert")

    def write(self, job: ExportJob, file: Path) -> None:
        with quiet():
            import litert_torch

        graph = self.graph(job)
        example = torch.zeros(job.batch or 1, 3, *job.classifier.image_size)
        with quiet():
            litert_torch.convert(graph.cpu().eval(), (example,)).export(str(file))
        write_facts(job, graph, file)

    def open(self, file: Path) -> Backend:
        return LiteRTBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return python_sample(
            name,
            job,
            packages="ai-edge-litert",
            imports="from ai_edge_litert.interpreter import Interpreter",
            opening=f"""
model = Interpreter(str(here / "{name}"))
runner = model.get_signature_runner()
about = json.loads((here / "{name}.json").read_text(encoding="utf-8"))
""",
            running='runner(args_0=given)["output_0"][0]',
        )
