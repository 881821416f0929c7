"""`deitkit export`: a model for another runtime, opened again and compared before it stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import log
from ..classifier import Classifier, ModelChoice, TeacherClassifier, load_folder, model_folder
from ..data.decode import center_crop, open_rgb
from ..data.image_set import ImageSet, evenly_spread
from ..errors import DeitkitError, DependencyError, SettingError
from ..evaluation.comparison import compare
from ..evaluation.metrics import score_and_interval
from ..evaluation.run_images import (
    CALIBRATION_IMAGES,
    FileBatches,
    calibration_views,
    pixel_batches,
    run_splits,
)
from ..inference.backends import PyTorchBackend
from ..inference.selection import STUDENT_TOLERANCE, agrees
from ..io import create_folder, refuse_occupied
from ..run_schema import Difference
from ..tasks import SCORES, THRESHOLD
from .export_format import PRECISIONS, ExportFormat, ExportJob, Precision, check_options
from .export_formats import FORMATS
from .model_card import read_card
from .reopened import OpenedFile, Reopened, open_again, run_inputs

_COMPARED = 128  # validation images, spread over the set
_MEASURED = 1000  # for int8: enough to see the points that it loses
_RAW = 32  # whole images, which are large
_MOST_ROUNDED = 0.05  # that fp16, or resizing inside the graph, may move a probability
_SAME_ANSWERS = 0.98


@dataclass(frozen=True)
class Reopening:
    """What a file's own runtime said, beside PyTorch.

    images: that were compared; of_run: whether they are validation images, or noise. largest_difference: of
    a probability. same_answers: images with the same class, or the same labels. ms_per_image: one at a time,
    or at the fixed batch; images_per_s: at the largest batch that was timed. Times hold for the threads that
    PyTorch has.
    """

    images: int
    of_run: bool
    largest_difference: float
    same_answers: int
    ms_per_image: float
    images_per_s: float
    threads: int


@dataclass(frozen=True)
class Int8Cost:
    """Scores of int8 and of the float file on validation images, in percent, and their paired difference."""

    metric: str
    int8: float
    fp32: float
    difference: Difference
    fp32_images_per_s: float


@dataclass(frozen=True)
class Exported:
    """The files and the bytes of those that a program needs. reopening: None if the runtime is not here."""

    files: list[Path]
    size: int
    reopening: Reopening | None
    int8: Int8Cost | None = None


def export_run(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    model: ModelChoice = "recommended",
    precision: Precision = "fp32",
    batch: int | None = None,
    raw: bool = False,
    data: str | Path | None = None,
    merge: int = 0,
    runtime: str | None = None,
) -> Exported:
    """Writes a model of `run`, or the fitted teacher in that folder, in the format `to`, a name of FORMATS.

    The graph's input is `views` (B, 3, H, W), float in [0, 1]; normalisation is inside. Its outputs are
    `probabilities` (of a student, both heads joined), `class_logits` and, for a distilled student,
    `distill_logits`, each (B, K), and of a calibrated model `unfamiliarity`, (B,). The probabilities are
    calibrated, the logits as trained. Metadata, in the file or in a JSON file beside it: `classes`,
    `preprocessing`, `calibration` and `task`, where "multilabel" means that each probability is a label's
    own.

    precision: int8 is calibrated on training images of the run, or of the folder `data`. batch: images at a
    time; None for any number, or for one where the format has to know. raw: the input is `image` (H, W, 3)
    uint8, of any size. merge: patch tokens to merge in each block. runtime: see `web_runtime.web_runtime`.

    The file is opened by its own runtime in another process, run on validation images (on noise, if they are
    gone) and compared with PyTorch; one that differs does not stay. Raises a DeitkitError for anything the
    caller can fix.
    """
    out = Path(out)
    if precision not in PRECISIONS:
        raise SettingError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if data is not None and precision != "int8":
        raise SettingError("--data calibrates int8 and nothing else; add --precision int8 or leave it out")
    target = check_target(to, out)
    folder = model_folder(Path(run), model)
    classifier = load_folder(folder, device="cpu", backend="pytorch", merge=merge)
    if batch is None and target.batches != "any":
        batch = 1
    job = ExportJob(
        classifier, partial(read_card, folder, classifier), precision, batch, raw=raw, runtime=runtime
    )
    check_options(target, job)
    if precision == "int8" and isinstance(classifier, TeacherClassifier):
        raise SettingError(
            "int8 is for students: a teacher's convolutions stay float; leave out --precision int8, or add "
            "--model student"
        )
    images, labels = None, None
    if precision == "int8":
        splits = run_splits(folder, classifier, Path(data) if data is not None else None)
        job = replace(job, calibration=partial(_calibration, job, splits.train))
        images = splits.val.subset(evenly_spread(len(splits.val), _MEASURED))
    else:
        images = _validation_images(folder, classifier, _RAW if raw else _COMPARED)
    inputs, references, labels = _inputs(job, images)
    with tempfile.TemporaryDirectory(dir=_folder(out)) as written, tempfile.TemporaryDirectory() as aside:
        file = Path(written) / out.name
        with log.activity("calibrating and exporting" if precision == "int8" else "exporting"):
            _write(target, job, file)
            sizes = [f.stat().st_size for f in Path(written).rglob("*") if f.is_file()]
            for name, text in target.sample(out.name, job).items():
                (Path(written) / name).write_text(text, encoding="utf-8")
        sides: dict[str, OpenedFile] = {precision: OpenedFile(to, file, batch, raw)}
        if precision == "int8":
            plain = Path(aside) / out.name
            _write(target, replace(job, precision="fp32"), plain)
            sides["fp32"] = OpenedFile(to, plain, batch, raw)
        reopening = cost = None
        if target.runs_here:
            with log.activity("opening it again"):
                found = open_again(sides, inputs, Path(aside))
            graph = target.graph(replace(job, raw=False))
            expected = run_inputs(PyTorchBackend(graph, torch.device("cpu")), references, raw=False)
            _refuse_other_answers(job, out, expected, found)
            reopening = _reopening(found[precision], expected, classifier, of_run=labels is not None)
            if precision == "int8" and labels is not None:
                cost = _int8_cost(found, labels, classifier)
        # The .bin before the .xml that names it.
        files = [f.replace(out.parent / f.name) for f in sorted(Path(written).iterdir())]
    return Exported(files, sum(sizes), reopening, cost)


def check_target(to: str, out: Path) -> ExportFormat:
    """The format. Raises SettingError for an unknown one or a file name that does not fit it, DependencyError
    for a missing package."""
    if to not in FORMATS:
        hint = "; deitkit convert writes weights for it" if to in ("timm", "transformers") else ""
        raise SettingError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}{hint}")
    target = FORMATS[to]
    if target.is_folder:
        refuse_occupied(out)
    if target.suffix and out.suffix != target.suffix:
        raise SettingError(
            f"a file for {to} ends in {target.suffix}, and {out} does not; "
            f"give --out {out.stem}{target.suffix}"
        )
    target.require()
    return target


def _write(target: ExportFormat, job: ExportJob, file: Path) -> None:
    """Writes the file. Raises DependencyError if the converter fails."""
    try:
        target.write(job, file)
    except DeitkitError:
        raise
    except Exception as error:  # converters raise errors of their own
        said = str(error).strip().splitlines()
        log.logger.debug("the conversion failed", exc_info=True)
        raise DependencyError(
            f"this model cannot be converted for {target.name} "
            f"({type(error).__name__}{': ' + said[0][:200] if said else ''}); choose another --to"
        ) from error


def _validation_images(folder: Path, classifier: Classifier, count: int) -> ImageSet | None:
    """Some of the run's validation images; None if they are gone."""
    try:
        images = run_splits(folder, classifier, None).val
    except DeitkitError as error:
        log.info(f"compared on noise: {error}")
        return None
    return images.subset(evenly_spread(len(images), count))


def _inputs(job: ExportJob, images: ImageSet | None) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """The graph's inputs, the views that PyTorch gets, and labels; noise without labels for no images."""
    classifier = job.classifier
    if images is None:
        H, W = classifier.image_size
        noise = torch.Generator().manual_seed(0)
        if not job.raw:
            views = list(torch.rand(8, 3, H, W, generator=noise))
            return views, views, None
        sizes = [(H, W), (2 * H + 1, W), (H, 3 * W + 2), (5, 7)]
        pixels = [torch.randint(0, 256, (*s, 3), generator=noise, dtype=torch.uint8) for s in sizes]
        return pixels, [_view(classifier, image) for image in pixels], None
    if not job.raw:
        batches = [(b.float() / 255.0, labels) for b, labels in pixel_batches(classifier, images)]
        views = [view for batch, _ in batches for view in batch]
        return views, views, torch.cat([labels for _, labels in batches])
    whole = FileBatches(images, partial(_decode, classifier.max_pixels))
    found = [(image, label) for batch, labels in whole for image, label in zip(batch, labels, strict=True)]
    pixels = [image for image, _ in found]
    references = [_view(classifier, image) for image in pixels]
    return pixels, references, torch.stack([label for _, label in found])


def _decode(max_pixels: int, file: Path) -> Tensor:
    return torch.from_numpy(np.array(open_rgb(file, max_pixels=max_pixels)))


def _view(classifier: Classifier, image: Tensor) -> Tensor:
    """(H, W, 3) uint8 -> the view (3, H, W) in [0, 1] of an evaluation."""
    cropped = center_crop(Image.fromarray(image.numpy()), classifier.image_size, classifier.crop)
    return torch.from_numpy(cropped.copy()).float() / 255.0


def _calibration(job: ExportJob, images: ImageSet) -> Iterator[Tensor]:
    """Inputs of the graph for up to 128 training images, in batches of a size that it takes."""
    if job.raw:
        chosen = images.subset(evenly_spread(len(images), CALIBRATION_IMAGES))
        for batch, _ in FileBatches(chosen, partial(_decode, job.classifier.max_pixels)):
            yield from batch
        return
    size = job.batch
    for views in calibration_views(job.classifier, images):
        yield from (part for part in views.split(size or len(views)) if len(part) == (size or len(part)))


def _refuse_other_answers(
    job: ExportJob, out: Path, expected: tuple[Tensor, ...], found: dict[str, Reopened]
) -> None:
    """Raises DependencyError if a file's outputs are not PyTorch's, as closely as its precision allows."""
    for precision, reopened in found.items():
        outputs = reopened.outputs
        if [t.shape for t in outputs] != [t.shape for t in expected]:
            raise DependencyError(f"{out} was not written: its outputs have other shapes; use another --to")
        moved = float((expected[0] - outputs[0]).abs().max())
        if precision == "int8":
            right = all(bool(torch.isfinite(t).all()) for t in outputs)
        elif precision == "fp32" and not job.raw:
            right = agrees(expected, outputs, STUDENT_TOLERANCE)
        else:
            share = _same_answers(expected[0], outputs[0], job.classifier) / len(outputs[0])
            right = moved <= _MOST_ROUNDED and share >= _SAME_ANSWERS
        if not right:
            differences = [float((a - b).abs().max()) for a, b in zip(expected, outputs, strict=True)]
            raise DependencyError(
                f"{out} was not written: its outputs differ from PyTorch's by {max(differences):.2g}; "
                "use another --to, or convert the weights instead"
            )


def _same_answers(expected: Tensor, found: Tensor, classifier: Classifier) -> int:
    """Images with the same class, or if multilabel the same labels, of probabilities (n, K)."""
    if classifier.task == "multilabel":
        return int(((expected > THRESHOLD) == (found > THRESHOLD)).all(1).sum())
    return int((expected.argmax(1) == found.argmax(1)).sum())


def _reopening(
    reopened: Reopened, expected: tuple[Tensor, ...], classifier: Classifier, *, of_run: bool
) -> Reopening:
    probabilities, found = expected[0], reopened.outputs[0]
    smallest, largest = min(reopened.turns), max(reopened.turns)
    return Reopening(
        images=len(found),
        of_run=of_run,
        largest_difference=float((probabilities - found).abs().max()),
        same_answers=_same_answers(probabilities, found, classifier),
        ms_per_image=reopened.turns[smallest].latency.p50_ms / smallest,
        images_per_s=reopened.turns[largest].latency.images_per_s,
        threads=torch.get_num_threads(),
    )


def _int8_cost(found: dict[str, Reopened], labels: Tensor, classifier: Classifier) -> Int8Cost:
    score = SCORES[classifier.task]
    int8, fp32 = (found[precision].outputs[0] for precision in ("int8", "fp32"))
    turns = found["fp32"].turns
    return Int8Cost(
        metric=score.name,
        int8=score_and_interval(int8, labels)[0],
        fp32=score_and_interval(fp32, labels)[0],
        difference=compare(int8, fp32, labels, "map" if classifier.task == "multilabel" else "top1"),
        fp32_images_per_s=turns[max(turns)].latency.images_per_s,
    )


def _folder(out: Path) -> Path:
    create_folder(out.parent)
    return out.parent
