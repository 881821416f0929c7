"""web: a folder of static files, a page that classifies in the browser."""

from __future__ import annotations

from pathlib import Path

from ...inference.backends import Backend, OnnxRuntimeBackend
from ...inference.joint_classifier import ClassifierGraph
from ...inference.onnx_graph import require_onnx
from ..export_format import ExportFormat, ExportJob, register
from ..web import GRAPH, web_graph, write_site
from ..web_runtime import web_runtime
from .onnx import onnx_model

_SAMPLE = """<!doctype html>
<meta charset="utf-8">
<title>The model in a page of your own</title>
<link rel="icon" href="data:,">
<input type="file" accept="image/*" disabled> <output></output>
<script type="module">
  import { openLocalModel } from "./local_model.js"; // in a worker, with ONNX Runtime Web

  const facts = await (await fetch("model.json")).json(); // classes, preprocessing, model card
  const model = await openLocalModel(facts);
  const input = document.querySelector("input");
  input.onchange = async () => {
    const [file] = input.files;
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const { probabilities } = await model.classify(bitmap, { isJpeg: file.type === "image/jpeg" });
    const best = probabilities.indexOf(Math.max(...probabilities));
    document.querySelector("output").textContent = `${facts.classes[best]} ${probabilities[best].toFixed(3)}`;
  };
  input.disabled = false;
</script>
"""


@register
class WebSite(ExportFormat):
    name = "web"
    about = "any browser, as a page"
    suffix = ""
    extra = "onnx"
    batches = "any"
    is_folder = True
    brings_runtime = True

    def require(self) -> None:
        require_onnx()

    def graph(self, job: ExportJob) -> ClassifierGraph:
        return web_graph(job.classifier)

    def write(self, job: ExportJob, file: Path) -> None:
        runtime = web_runtime(job.runtime)
        graph = onnx_model(job, self.graph(job)).SerializeToString()
        write_site(file, job.classifier, graph, job.card(), runtime)
        (file / "sample.html").write_text(_SAMPLE, encoding="utf-8")

    def open(self, file: Path) -> Backend:
        return OnnxRuntimeBackend(file / GRAPH)

    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        return {}  # sample.html, which is in the folder: it needs the files there
