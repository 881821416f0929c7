"""`deitkit export`: a run written for another runtime, and what int8 costs in accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import log
from ..classifier import load
from ..errors import SettingError
from ..evaluation.evaluate import evaluate_backends
from ..evaluation.run_images import calibration_views, pixel_batches, run_splits
from .exporter import Target, check_target, export


@dataclass(frozen=True)
class Exported:
    """The files, and for int8 the top-1 (or mAP) of both in percent over so many validation images."""

    files: list[Path]
    images: int = 0
    int8: float | None = None
    fp32: float | None = None


def export_run(
    run: str | Path,
    to: Target,
    out: str | Path,
    *,
    int8: bool = False,
    data: Path | None = None,
    merge: int = 0,
) -> Exported:
    """Writes `run` as ONNX or OpenVINO; see `delivery.export`.

    int8: calibrated on training images of the run, or of the folder `data`, and measured on the
    validation images beside the float model. merge: patch tokens merged away in each block.
    Raises DeitkitError for anything the caller can mend.
    """
    run, out = Path(run), Path(out)
    if data is not None and not int8:
        raise SettingError("--data calibrates int8 and nothing else; add --int8 or leave --data out")
    check_target(to, out)
    classifier = load(run, device="cpu", backend="pytorch", merge=merge)
    if not int8:
        return Exported(export(classifier, to, out)[1])
    splits = run_splits(run, data)
    backend, files = export(classifier, to, out, calibration_views(classifier, splits.train))
    backends = {"int8": backend, "fp32": classifier.backend}
    with log.progress_bar("measuring", len(splits.val)) as advance:
        found = evaluate_backends(backends, pixel_batches(classifier, splits.val), advance)
    return Exported(files, len(splits.val), **found)
