"""`deitkit export`: a model for another runtime: ONNX, or OpenVINO's IR, float or int8; or a web page."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import log
from ..classifier import Classifier, ModelChoice, TeacherClassifier, load_folder, model_folder
from ..config import resized_side
from ..errors import DependencyError, RunFolderError, SettingError
from ..evaluation.evaluate import evaluate_backends
from ..evaluation.run_images import calibration_views, pixel_batches, run_splits
from ..inference.backends import (
    Backend,
    PyTorchBackend,
    import_openvino,
    open_file,
    require,
    to_openvino,
)
from ..inference.int8 import quantise
from ..inference.joint_classifier import ClassifierGraph
from ..inference.onnx_graph import require_onnx, to_onnx
from ..inference.selection import STUDENT_TOLERANCE, agrees
from ..io import refuse_occupied
from .model_card import ModelCard, read_card
from .web import GRAPH as WEB_GRAPH
from .web import web_graph, write_site
from .web_runtime import web_runtime


@dataclass(frozen=True)
class Exported:
    """The files, and for int8 the score of both models (top-1 or mAP, percent) on the validation images."""

    files: list[Path]
    images: int = 0
    int8: float | None = None
    fp32: float | None = None


def export_run(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    model: ModelChoice = "recommended",
    int8: bool = False,
    data: str | Path | None = None,
    merge: int = 0,
    runtime: str | None = None,
) -> Exported:
    """Writes a model of `run`, or the fitted teacher in that folder, in the format `to`; see `export`.

    int8: calibrated on training images of the run, or of the folder `data`, and measured on the validation
    images beside the float model. merge: patch tokens to merge in each block. runtime: see
    `web_runtime.web_runtime`. Raises a DeitkitError for anything the caller can fix.
    """
    out = Path(out)
    if data is not None and not int8:
        raise SettingError("--data calibrates int8 and nothing else; add --int8 or leave --data out")
    check_target(to, out)
    _check_options(to, int8=int8, runtime=runtime)
    folder = model_folder(Path(run), model)
    classifier = load_folder(folder, device="cpu", backend="pytorch", merge=merge)
    if int8 and isinstance(classifier, TeacherClassifier):
        raise SettingError(
            "int8 is for students: a teacher's convolutions stay float; leave out --int8, or add "
            "--model student"
        )
    job = ExportJob(classifier, partial(read_card, folder, classifier), runtime)
    if not int8:
        with log.activity("exporting"):
            return Exported(export(job, to, out)[1])
    splits = run_splits(folder, classifier, Path(data) if data is not None else None)
    with log.activity("calibrating and exporting"):
        job = replace(job, calibration=calibration_views(classifier, splits.train))
        backend, files = export(job, to, out)
    backends = {"int8": backend, "fp32": classifier.backend}
    with log.progress_bar("measuring", len(splits.val)) as advance:
        found = evaluate_backends(backends, pixel_batches(classifier, splits.val), advance)
    return Exported(files, len(splits.val), **found)


@dataclass(frozen=True)
class ExportJob:
    """What an export is made of.

    card: reads the model card, which a web page shows. runtime: where a web page's runtime is; see
    `web_runtime.web_runtime`. calibration: views to quantise the graph to int8 by; None keeps it float.
    """

    classifier: Classifier
    card: Callable[[], ModelCard]
    runtime: str | None = None
    calibration: Iterable[Tensor] | None = None


def export(job: ExportJob, to: str, out: Path) -> tuple[Backend, list[Path]]:
    """Writes a classifier as one graph. Returns a backend that runs the written file, and the files.

    The graph's input is `views` (B, 3, H, W), float in [0, 1], of any B; normalisation is inside. Its outputs
    are `probabilities` (of a student, both heads joined), `class_logits` and, for a distilled student,
    `distill_logits`, each (B, K), and of a calibrated model `unfamiliarity`, (B,). The probabilities are
    calibrated, the logits as trained. JSON in the metadata: `classes`, `preprocessing`, `calibration` and
    `task`, where "multilabel" means that each probability is a label's own.

    to: a name of FORMATS, whose suffix `out` has. A float graph's outputs are compared with PyTorch's before
    it is written.

    Raises SettingError if `out` ends otherwise, DependencyError if a package is missing, the model cannot be
    converted, or the outputs differ.
    """
    check_target(to, out)
    target = FORMATS[to]
    with tempfile.TemporaryDirectory(dir=_folder(out)) as folder:
        written = Path(folder) / out.name
        target.write(job, written)
        if job.calibration is None:
            backend = open_file(target.runtime, written / target.graph_file)
            _check(backend, target.graph(job.classifier), job.classifier.image_size, out)
        # The .bin before the .xml that names it.
        files = [f.replace(out.parent / f.name) for f in sorted(Path(folder).iterdir())]
    return open_file(target.runtime, out / target.graph_file), files


def check_target(to: str, out: Path) -> None:
    """Raises SettingError for an unknown format or a file name that does not fit it, DependencyError for a
    missing package."""
    if to not in FORMATS:
        raise SettingError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    target = FORMATS[to]
    if target.graph_file:
        refuse_occupied(out)
    elif out.suffix != target.suffix:
        raise SettingError(
            f"a file for {to} ends in {target.suffix}, and {out} does not; "
            f"give --out {out.stem}{target.suffix}"
        )
    target.require()


def _check_options(to: str, *, int8: bool, runtime: str | None) -> None:
    """Raises SettingError for options that the format does not have."""
    if int8 and to == "web":
        raise SettingError("a web page has the float model, of a few MB; leave out --int8")
    if runtime is not None and to != "web":
        raise SettingError("--runtime is for --to web; leave it out")


def metadata(classifier: Classifier) -> dict[str, str]:
    """The metadata of an exported file, as JSON texts."""
    mean, std = classifier.normalisation()
    return {
        # A folder's name may be no UTF-8; its bytes become escapes of JSON.
        "classes": json.dumps(list(classifier.classes), ensure_ascii=False)
        .encode("utf-8", "backslashreplace")
        .decode(),
        "task": json.dumps(classifier.task),
        "calibration": json.dumps(
            {
                "temperature": classifier.calibration.temperature,  # applied to `probabilities`
                "head_temperatures": classifier.calibration.head_temperatures,  # to divide logits by
                "familiar_up_to": classifier.calibration.familiar_up_to,  # of `unfamiliarity`
            }
        ),
        "preprocessing": json.dumps(
            {
                "resize": [resized_side(side, classifier.crop) for side in classifier.image_size],
                "image_size": list(classifier.image_size),
                "crop": classifier.crop,
                "interpolation": "bicubic",
                "input": "RGB, float in [0, 1], (B, 3, H, W); normalised inside the graph",
                "mean": mean,
                "std": std,
            }
        ),
    }


def _onnx_model(job: ExportJob, graph: ClassifierGraph) -> bytes:
    """An ONNX file's content, in int8 if there are views to calibrate on."""
    classifier = job.classifier
    model = to_onnx(graph, classifier.image_size, graph.output_names, metadata(classifier))
    content: bytes = (
        model if job.calibration is None else quantise(model, job.calibration)
    ).SerializeToString()
    return content


def _write_onnx(job: ExportJob, file: Path) -> None:
    file.write_bytes(_onnx_model(job, job.classifier.as_graph()))


def _write_web(job: ExportJob, folder: Path) -> None:
    runtime = web_runtime(job.runtime)
    graph = _onnx_model(job, web_graph(job.classifier))
    write_site(folder, job.classifier, graph, job.card(), runtime)


def _write_openvino(job: ExportJob, file: Path) -> None:
    """Writes an .xml file with a .bin beside it. Int8 is quantised as ONNX, which OpenVINO then reads."""
    openvino, classifier = import_openvino(), job.classifier
    graph = classifier.as_graph()
    if job.calibration is None:
        model = to_openvino(graph, classifier.image_size)
        for output, name in zip(model.outputs, graph.output_names, strict=True):
            output.get_tensor().set_names({name})
        model.input(0).get_tensor().set_names({"views"})
    else:
        model = openvino.Core().read_model(io.BytesIO(_onnx_model(job, graph)))
    for key, value in metadata(classifier).items():
        model.set_rt_info(value, ["deitkit", key])
    try:
        openvino.save_model(model, file, compress_to_fp16=False)
    except RuntimeError as error:
        said = str(error).strip().splitlines()
        # OpenVINO does not pass the number of the operating system's error on.
        raise RunFolderError(
            f"the exported model cannot be written to {file.parent.parent} "
            f"({said[-1] if said else 'no reason given'}); free some space there, or choose another --out"
        ) from None


def _own_graph(classifier: Classifier) -> ClassifierGraph:
    return classifier.as_graph()


@dataclass(frozen=True)
class ExportFormat:
    """An entry of FORMATS.

    suffix: of the file. runtime: the inference backend that runs it. require: raises DependencyError if a
    package is missing. write: writes a file, or a folder with the graph in `graph_file`. graph: the
    classifier as the graph that is written.
    """

    suffix: str
    runtime: str
    require: Callable[[], None]
    write: Callable[[ExportJob, Path], None]
    graph: Callable[[Classifier], ClassifierGraph] = _own_graph
    graph_file: str = ""


FORMATS: Mapping[str, ExportFormat] = {
    "onnx": ExportFormat(".onnx", "onnxruntime", require_onnx, _write_onnx),
    "openvino": ExportFormat(".xml", "openvino", partial(require, "openvino"), _write_openvino),
    "web": ExportFormat("", "onnxruntime", require_onnx, _write_web, web_graph, WEB_GRAPH),
}


def _check(backend: Backend, graph: ClassifierGraph, image_size: tuple[int, int], out: Path) -> None:
    """Compares with PyTorch on random views of two batch sizes, neither of them the one traced."""
    eager = PyTorchBackend(graph, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for B in (1, 3):
        views = torch.rand(B, 3, *image_size, generator=generator)
        expected, found = eager(views), backend(views)
        if not agrees(expected, found, STUDENT_TOLERANCE):
            difference = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
            raise DependencyError(
                f"{out} was not written: its outputs differ from PyTorch's by {difference:.2g}; "
                "use another --to, or convert the weights instead"
            )


def _folder(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent
