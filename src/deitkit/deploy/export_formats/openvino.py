"""openvino: an .xml file with its .bin beside it, OpenVINO's IR."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from ...errors import RunFolderError
from ...inference.backends import Backend, OpenVINOBackend, import_openvino, require, to_openvino
from ...inference.onnx_graph import require_onnx
from ..export_format import ExportFormat, ExportJob, metadata, register
from ..sample_code import python_sample
from .onnx import onnx_model


@register
class OpenVINO(ExportFormat):
    name = "openvino"
    about = "OpenVINO"
    suffix = ".xml"
    extra = "cpu"
    precisions = ("fp32", "fp16", "int8")
    batches = "any"
    takes_raw = True

    def require(self) -> None:
        require("openvino")

    def write(self, job: ExportJob, file: Path) -> None:
        """Int8 is quantised, and a graph with preprocessing is written, as ONNX, which OpenVINO reads."""
        openvino, classifier = import_openvino(), job.classifier
        graph = self.graph(job)
        if job.precision == "int8" or job.raw:
            require_onnx()
            # OpenVINO rounds weights to half precision itself.
            as_onnx = onnx_model(replace(job, precision="fp32") if job.precision == "fp16" else job, graph)
            model = openvino.Core().read_model(io.BytesIO(as_onnx.SerializeToString()))
        else:
            model = to_openvino(graph, classifier.image_size, job.batch)
            for output, name in zip(model.outputs, graph.output_names, strict=True):
                output.get_tensor().set_names({name})
            model.input(0).get_tensor().set_names({"views"})
        for key, value in metadata(classifier, raw=job.raw).items():
            model.set_rt_info(value, ["deitkit", key])
        try:
            openvino.save_model(model, file, compress_to_fp16=job.precision == "fp16")
        except RuntimeError as error:
            said = str(error).strip().splitlines()
            # OpenVINO does not pass the number of the operating system's error on.
            raise RunFolderError(
                f"the exported model cannot be written to {file.parent.parent} "
                f"({said[-1] if said else 'no reason given'}); free some space there, or choose another --out"
            ) from None

    def open(self, file: Path) -> Backend:
        return OpenVINOBackend(file)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return python_sample(
            name,
            job,
            packages="openvino",
            imports="import openvino",
            opening=f"""
model = openvino.Core().read_model(here / "{name}")
keys = ("classes", "task", "calibration", "preprocessing")
about = {{key: json.loads(model.get_rt_info(["deitkit", key]).astype(str)) for key in keys}}
# In float, as deitkit computes; OpenVINO would take bfloat16 on CPUs that have it.
compiled = openvino.compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
""",
            running='compiled(given)["probabilities"][0]',
        )
