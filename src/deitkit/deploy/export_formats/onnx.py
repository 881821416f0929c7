"""onnx: one file for ONNX Runtime, and for all that reads ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...inference.backends import Backend, OnnxRuntimeBackend
from ...inference.int8 import quantise
from ...inference.joint_classifier import ClassifierGraph
from ...inference.onnx_graph import half_weights, require_onnx, to_onnx
from ..export_format import ExportFormat, ExportJob, metadata, register
from ..sample_code import python_sample


def onnx_model(job: ExportJob, graph: ClassifierGraph) -> Any:
    """The classifier as an onnx.ModelProto in the job's precision."""
    about = metadata(job.classifier, raw=job.raw)
    size = None if job.raw else job.classifier.image_size
    model = to_onnx(graph, size, graph.output_names, about, batch=job.batch)
    if job.precision == "int8":
        assert job.calibration is not None
        return quantise(model, job.calibration())
    return half_weights(model) if job.precision == "fp16" else model


@register
class Onnx(ExportFormat):
    name = "onnx"
    about = "ONNX Runtime"
    suffix = ".onnx"
    extra = "onnx"
    precisions = ("fp32", "fp16", "int8")
    batches = "any"
    takes_raw = True

    def require(self) -> None:
        require_onnx()

    def write(self, job: ExportJob, file: Path) -> None:
        file.write_bytes(onnx_model(job, self.graph(job)).SerializeToString())

    def open(self, file: Path) -> Backend:
        return OnnxRuntimeBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return python_sample(
            name,
            job,
            packages="onnxruntime",
            imports="import onnxruntime",
            opening=f"""
session = onnxruntime.InferenceSession(here / "{name}")
about = {{key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}}
""",
            running=f'session.run(["probabilities"], {{"{"image" if job.raw else "views"}": given}})[0][0]',
        )
