"""torch-export: a .pt2 file of torch.export, for PyTorch without deitkit, and for AOTInductor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...inference.backends import Backend
from ...inference.exported_program import to_program
from ..export_format import ExportFormat, ExportJob, metadata, register
from ..sample_code import python_sample


class ProgramBackend:
    """An exported program in PyTorch."""

    name = "torch-export"

    def __init__(self, file: Path):
        self.run: Callable[[Tensor], tuple[Tensor, ...]] = torch.export.load(file).module()

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run(views))


@register
class TorchExport(ExportFormat):
    name = "torch-export"
    about = "PyTorch, without deitkit"
    suffix = ".pt2"
    batches = "any"
    takes_raw = True

    def write(self, job: ExportJob, file: Path) -> None:
        program = to_program(self.graph(job), None if job.raw else job.classifier.image_size, job.batch)
        torch.export.save(program, file, extra_files=metadata(job.classifier, raw=job.raw))

    def open(self, file: Path) -> Backend:
        return ProgramBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return python_sample(
            name,
            job,
            packages="torch",
            imports="import torch",
            opening=f"""
about = {{"classes": "", "task": "", "calibration": "", "preprocessing": ""}}
model = torch.export.load(here / "{name}", extra_files=about).module()  # opens only files that you trust
about = {{key: json.loads(text) for key, text in about.items()}}
""",
            running="model(torch.from_numpy(given))[0][0].detach().numpy()",
        )
