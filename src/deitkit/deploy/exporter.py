"""`deitkit export`: a model as one file for another runtime: ONNX, or OpenVINO's IR; float or int8."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from ..inference.onnx_graph import require_onnx, to_onnx
from ..inference.selection import STUDENT_TOLERANCE, agrees


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
) -> Exported:
    """Writes a model of `run`, or the fitted teacher in that folder, in the format `to`; see `export`.

    int8: calibrated on training images of the run, or of the folder `data`, and measured on the validation
    images beside the float model. merge: patch tokens to merge in each block. Raises a DeitkitError for
    anything the caller can fix.
    """
    out = Path(out)
    if data is not None and not int8:
        raise SettingError("--data calibrates int8 and nothing else; add --int8 or leave --data out")
    check_target(to, out)
    folder = model_folder(Path(run), model)
    classifier = load_folder(folder, device="cpu", backend="pytorch", merge=merge)
    if int8 and isinstance(classifier, TeacherClassifier):
        raise SettingError(
            "int8 is for students: a teacher's convolutions stay float; leave out --int8, or add "
            "--model student"
        )
    if not int8:
        with log.activity("exporting"):
            return Exported(export(classifier, to, out)[1])
    splits = run_splits(folder, classifier, Path(data) if data is not None else None)
    with log.activity("calibrating and exporting"):
        backend, files = export(classifier, to, out, calibration_views(classifier, splits.train))
    backends = {"int8": backend, "fp32": classifier.backend}
    with log.progress_bar("measuring", len(splits.val)) as advance:
        found = evaluate_backends(backends, pixel_batches(classifier, splits.val), advance)
    return Exported(files, len(splits.val), **found)


def export(
    classifier: Classifier, to: str, out: Path, calibration: Iterable[Tensor] | None = None
) -> tuple[Backend, list[Path]]:
    """Writes a classifier as one graph. Returns a backend that runs the written file, and the files.

    The graph's input is `views` (B, 3, H, W), float in [0, 1], of any B; normalisation is inside. Its outputs
    are `probabilities` (of a student, both heads joined), `class_logits` and, for a distilled student,
    `distill_logits`, each (B, K), and of a calibrated model `unfamiliarity`, (B,). The probabilities are
    calibrated, the logits as trained. JSON in the metadata: `classes`, `preprocessing`, `calibration` and
    `task`, where "multilabel" means that each probability is a label's own.

    to: a name of FORMATS, whose suffix `out` has. calibration: views to quantise the graph to int8 by; None
    keeps it float, and then its outputs are compared with PyTorch's before it is written.

    Raises SettingError if `out` ends otherwise, DependencyError if a package is missing, the model cannot be
    converted, or the outputs differ.
    """
    check_target(to, out)
    target = FORMATS[to]
    with tempfile.TemporaryDirectory(dir=_folder(out)) as folder:
        written = Path(folder) / out.name
        target.write(classifier, calibration, written)
        if calibration is None:
            _check(open_file(target.runtime, written), classifier, out)
        # The .bin before the .xml that names it.
        files = [f.replace(out.parent / f.name) for f in sorted(Path(folder).iterdir())]
    return open_file(target.runtime, out), files


def check_target(to: str, out: Path) -> None:
    """Raises SettingError for an unknown format or a file name that does not fit it, DependencyError for a
    missing package."""
    if to not in FORMATS:
        raise SettingError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    target = FORMATS[to]
    if out.suffix != target.suffix:
        raise SettingError(
            f"a file for {to} ends in {target.suffix}, and {out} does not; "
            f"give --out {out.stem}{target.suffix}"
        )
    target.require()


def metadata(classifier: Classifier) -> dict[str, str]:
    """The metadata of an exported file, as JSON texts."""
    mean, std = classifier.normalisation()
    return {
        "classes": json.dumps(list(classifier.classes), ensure_ascii=False),
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


def _onnx_model(classifier: Classifier, calibration: Iterable[Tensor] | None) -> Any:
    """An onnx.ModelProto, in int8 if there are views to calibrate on."""
    graph = classifier.as_graph()
    model = to_onnx(graph, classifier.image_size, graph.output_names, metadata(classifier))
    return model if calibration is None else quantise(model, calibration)


def _write_onnx(classifier: Classifier, calibration: Iterable[Tensor] | None, file: Path) -> None:
    file.write_bytes(_onnx_model(classifier, calibration).SerializeToString())


def _write_openvino(classifier: Classifier, calibration: Iterable[Tensor] | None, file: Path) -> None:
    """Writes an .xml file with a .bin beside it. Int8 is quantised as ONNX, which OpenVINO then reads."""
    openvino = import_openvino()
    if calibration is None:
        graph = classifier.as_graph()
        model = to_openvino(graph, classifier.image_size)
        for output, name in zip(model.outputs, graph.output_names, strict=True):
            output.get_tensor().set_names({name})
        model.input(0).get_tensor().set_names({"views"})
    else:
        model = openvino.Core().read_model(
            io.BytesIO(_onnx_model(classifier, calibration).SerializeToString())
        )
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


@dataclass(frozen=True)
class ExportFormat:
    """An entry of FORMATS.

    suffix: of the file. runtime: the inference backend that runs it. require: raises DependencyError if a
    package is missing. write: classifier, views to calibrate int8 on or None for float, file.
    """

    suffix: str
    runtime: str
    require: Callable[[], None]
    write: Callable[[Classifier, Iterable[Tensor] | None, Path], None]


FORMATS: Mapping[str, ExportFormat] = {
    "onnx": ExportFormat(".onnx", "onnxruntime", require_onnx, _write_onnx),
    "openvino": ExportFormat(".xml", "openvino", partial(require, "openvino"), _write_openvino),
}


def _check(backend: Backend, classifier: Classifier, out: Path) -> None:
    """Compares with PyTorch on random views of two batch sizes, neither of them the one traced."""
    eager = PyTorchBackend(classifier.as_graph(), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for B in (1, 3):
        views = torch.rand(B, 3, *classifier.image_size, generator=generator)
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
