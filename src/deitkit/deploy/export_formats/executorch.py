"""executorch: a .pte file for Android and iOS, in XNNPACK's kernels for CPUs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...inference.backends import Backend
from ...inference.exported_program import to_program
from ..export_format import ExportFormat, ExportJob, register, write_facts
from ..sample_code import python_sample


class ExecuTorchBackend:
    """A .pte file on the CPU."""

    name = "executorch"

    def __init__(self, file: Path):
        from executorch.runtime import Runtime

        self.program = Runtime.get().load_program(file)  # the method does not keep it alive
        self.method = self.program.load_method("forward")

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        # Copied, because the next call overwrites the runtime's buffers.
        return tuple(out.clone() for out in self.method.execute([views.contiguous()]))


@register
class ExecuTorch(ExportFormat):
    name = "executorch"
    about = "ExecuTorch on phones"
    suffix = ".pte"
    extra = "executorch"
    packages = ("executorch",)

    def write(self, job: ExportJob, file: Path) -> None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        graph = self.graph(job)
        program = to_program(graph, job.classifier.image_size, job.batch)
        with torch.no_grad():
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        file.write_bytes(lowered.to_executorch().buffer)
        write_facts(job, graph, file)

    def open(self, file: Path) -> Backend:
        return ExecuTorchBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return python_sample(
            name,
            job,
            packages="executorch",
            imports="import torch\nfrom executorch.runtime import Runtime",
            opening=f"""
program = Runtime.get().load_program(here / "{name}")
method = program.load_method("forward")
about = json.loads((here / "{name}.json").read_text(encoding="utf-8"))
""",
            running="method.execute([torch.from_numpy(given)])[0][0].numpy()",
        )
