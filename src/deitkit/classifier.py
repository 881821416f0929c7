"""A finished run put to use: images in, classes out, with the run's own preprocessing.

classifier = deitkit.load("runs/flowers")                   # the model that its verdict recommends
classifier = deitkit.load("runs/flowers", model="student")  # its student
[prediction] = classifier.predict("photo.jpg")
prediction.label, prediction.probability
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import log
from .config import BackendName, Config, view_size
from .data.decode import UnreadableImage, center_crop
from .data.image_inputs import ImageInput, NamedImage, named_images
from .data.stored import ImageFile
from .decision import UNKNOWN, Decision, decide
from .errors import RunFolderError, SettingError
from .inference.backends import CONVERTED, Backend
from .inference.device import resolve_inference_device
from .inference.joint_classifier import ClassifierGraph, JointClassifier, as_output
from .inference.selection import create_backend
from .inference.unfamiliarity import unfamiliarity, unfamiliarity_of
from .models import DeiTOutput, probabilities_of, tempered
from .models.deit import DeiT
from .models.token_merging import TokenMerging
from .run_folder import (
    CALIBRATION,
    CLASS_MEANS,
    CONFIG,
    RESULTS,
    TEACHER_FOLDER,
    WEIGHTS,
    baseline_folder,
    candidate_folder,
    holds_teacher,
    read_calibration,
    read_class_means,
    read_info,
    read_results,
    read_student,
    run_of_teacher,
)
from .run_schema import CalibrationInfo, Role
from .soft_labels.manifest import FILE as MANIFEST
from .soft_labels.manifest import read_manifest
from .tasks import THRESHOLD, Task
from .teachers.saved import read_teacher
from .teachers.teacher import Teacher
from .teachers.teacher_graph import TeacherGraph
from .weights.hub import snapshot

_NAMED = 6  # classes that `repr` names
HUB = "hf:"
PUSHED = (CONFIG, WEIGHTS, CALIBRATION, CLASS_MEANS)  # what a classifier reads of a repository

Normalisation = tuple[list[float], list[float]]  # mean and deviation of the three channels, in [0, 1]
# "student", "teacher", "baseline", "recommended", or a candidate of the run such as "teacher-224".
ModelChoice = str


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    label, probability: the most likely class of the joint classifier. labels: of a multilabel model all
    labels above 0.5, most likely first; otherwise `label` alone. class_label, distill_label: each head's own
    class; a teacher has one head, whose class is in `class_label`. source: the path, or "image" for what has
    none. unfamiliarity: how little the image looks like those of the classes, from 0 to 2, see
    `inference.unfamiliarity`; None if multilabel or not calibrated. answered: False if `label` is "unknown"
    and `labels` empty, because of what `Classifier.deciding` asks for.
    """

    source: str
    label: str
    probability: float
    labels: tuple[str, ...]
    class_label: str
    distill_label: str | None
    probabilities: dict[str, float] = field(repr=False)  # of every class, most likely first
    unfamiliarity: float | None = None
    answered: bool = True

    def top(self, k: int | None = None) -> list[tuple[str, float]]:
        """The k most likely classes and their probabilities; None for `labels`."""
        return list(self.probabilities.items())[: len(self.labels) if k is None else k]


@dataclass(frozen=True, repr=False)
class Classifier:
    """Classifies images with a model on a backend, with the preprocessing that it was validated with.

    image_size: height and width of a view. crop: the share of an image's shorter side that a view keeps.
    max_pixels: width times height that an image may have, as in training.
    calibration: what validation told about the probabilities, whose temperature the backend applies.
    decision: when to answer; see `deciding`.
    class_means: (C, F) of the model's features, by which the backend tells what is unfamiliar, or None.
    backend: views (B, 3, H, W) in [0, 1] -> probabilities and each head's logits, each (B, K), and
    unfamiliarity, (B,).
    """

    classes: tuple[str, ...]
    task: Task
    image_size: tuple[int, int]
    crop: float
    max_pixels: int
    device: torch.device
    calibration: CalibrationInfo
    class_means: Tensor | None
    backend: Backend
    decision: Decision = field(default=Decision(), kw_only=True)

    def __repr__(self) -> str:
        return "\n".join(self._described())

    def _repr_html_(self) -> str:
        """As a notebook shows it."""
        what, how = map(html.escape, self._described())
        return f"<b>{what}</b><br>{how}"

    def _described(self) -> tuple[str, str]:
        """Two lines: what the model tells apart, and what it runs on."""
        shown = ", ".join(self.classes[:_NAMED]) + (", ..." if len(self.classes) > _NAMED else "")
        kind = "labels" if self.task == "multilabel" else "classes"
        height, width = self.image_size
        return (
            f"{type(self).__name__}: {len(self.classes)} {kind} ({shown})",
            f"{width} x {height} pixels, {self.backend.name} on {self.device.type}",
        )

    def predict(self, images: ImageInput, batch_size: int = 32) -> list[Prediction]:
        """Classifies one image or many, of any size: a prediction per image, in order.

        images: a path, a folder, a pattern such as "photos/*.jpg", the bytes of an image file, a Pillow
        image, an array (H, W, 3) or a tensor (3, H, W), uint8 or floats in [0, 1]; or a list of these. Raises
        UnreadableImage for a file that holds no image; `predict_all` continues past it.
        """
        found = []
        for prediction in self.predict_all(images, batch_size):
            if isinstance(prediction, UnreadableImage):
                raise prediction
            found.append(prediction)
        return found

    def predict_all(self, images: ImageInput, batch_size: int = 32) -> Iterator[Prediction | UnreadableImage]:
        """For each image, in order, its prediction, or why it cannot be read."""
        pending = named_images(images)
        while chunk := list(islice(pending, batch_size)):
            views = [self.view_or_error(image) for image in chunk]
            readable = [view for view in views if not isinstance(view, UnreadableImage)]
            names = [i.name for i, v in zip(chunk, views, strict=True) if not isinstance(v, UnreadableImage)]
            predictions = iter(self._predict_views(names, readable) if readable else ())
            yield from (v if isinstance(v, UnreadableImage) else next(predictions) for v in views)

    @property
    def familiar_up_to(self) -> float | None:
        """The unfamiliarity that 95 % of images like those of validation do not exceed; None if not known."""
        return None if self.class_means is None else self.calibration.familiar_up_to

    def unlike(self, predictions: Iterable[Prediction | UnreadableImage]) -> list[Prediction]:
        """The predictions to which `deciding(reject=True)` answers "unknown"; none if that is not known."""
        limit = self.familiar_up_to
        if limit is None:
            return []
        read = (p for p in predictions if isinstance(p, Prediction))
        return [p for p in read if p.unfamiliarity is not None and p.unfamiliarity > limit]

    def deciding(
        self, *, threshold: float | None = None, reject: bool = False, coverage: float | None = None
    ) -> Self:
        """The same classifier, which does not answer always, or answers with several classes.

        threshold: "unknown" if no class has this probability. reject: "unknown" for images that are less
        familiar than 95 % of the validation images. coverage: `labels` is a set of classes, and this share of
        sets holds the true one. Raises SettingError for values out of range, for a multilabel model, and for
        one that was not calibrated.
        """
        known = replace(self.calibration, familiar_up_to=self.familiar_up_to)
        rule = decide(known, self.task, threshold=threshold, reject=reject, coverage=coverage)
        return replace(self, decision=rule)

    def pixels(self, image: ImageFile | bytes) -> NDArray[np.uint8]:
        """An image file, or its bytes, as a view (3, H, W) uint8, as in the run's validation.

        Raises UnreadableImage.
        """
        return self._view(NamedImage("image" if isinstance(image, bytes) else str(image), image))

    def forward(self, pixels: Tensor) -> DeiTOutput:
        """(B, 3, H, W) uint8 -> the heads' logits."""
        return as_output(self._outputs(pixels))

    def as_graph(self) -> ClassifierGraph:
        """The model as one graph, for an export. Raises WeightsError if it cannot be one."""
        raise NotImplementedError

    def normalisation(self) -> Normalisation:
        """Mean and deviation that the model applies itself."""
        raise NotImplementedError

    def _outputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.backend(pixels.to(self.device).float() / 255.0)

    def _view(self, image: NamedImage) -> NDArray[np.uint8]:
        opened, extent = image.open(self.image_size, self.crop, self.max_pixels)
        return center_crop(opened, self.image_size, self.crop, extent)

    def view_or_error(self, image: NamedImage) -> NDArray[np.uint8] | UnreadableImage:
        """A view (3, H, W), or why the image cannot be read."""
        try:
            return self._view(image)
        except UnreadableImage as error:
            # A new one: the traceback of `error` holds what was decoded, up to hundreds of megabytes.
            return UnreadableImage(error.path, error.reason)

    def _predict_views(self, names: Sequence[str], views: list[NDArray[np.uint8]]) -> list[Prediction]:
        outputs = self._outputs(torch.from_numpy(np.stack(views)))
        joint, heads = outputs[0].cpu(), as_output(outputs)
        scores = unfamiliarity_of(outputs)
        unfamiliar = [None] * len(names) if scores is None else scores.tolist()
        by_class = heads.class_logits.argmax(1).tolist()
        by_distill = heads.distill_logits.argmax(1).tolist() if heads.distill_logits is not None else None
        predictions = []
        for i, (name, row) in enumerate(zip(names, joint, strict=True)):
            order = row.argsort(descending=True).tolist()
            ranked = row[order].tolist()
            answered = self.decision.is_answer(ranked[0], unfamiliar[i])
            count = int((row > THRESHOLD).sum())
            if self.task == "multiclass":
                count = self.decision.count(ranked) if answered else 0
            predictions.append(
                Prediction(
                    source=name,
                    label=self.classes[order[0]] if answered else UNKNOWN,
                    probability=ranked[0],
                    labels=tuple(self.classes[k] for k in order[:count]),
                    class_label=self.classes[by_class[i]],
                    distill_label=self.classes[by_distill[i]] if by_distill else None,
                    probabilities={self.classes[k]: float(row[k]) for k in order},
                    unfamiliarity=unfamiliar[i],
                    answered=answered,
                )
            )
        return predictions


@dataclass(frozen=True, repr=False)
class StudentClassifier(Classifier):
    """A trained student put to use.

    model: never merges tokens. graph: what `backend` runs, with token merging if that was asked for. mean,
    std: of the model's normalisation, (1, 3, 1, 1).
    """

    model: DeiT
    mean: Tensor
    std: Tensor
    graph: JointClassifier

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> the model's input, on its device."""
        views = pixels.to(self.device).float() / 255.0
        return (views - self.mean) / self.std

    def as_graph(self) -> JointClassifier:
        return self.graph

    def normalisation(self) -> Normalisation:
        return self.mean.flatten().tolist(), self.std.flatten().tolist()


@dataclass(frozen=True, repr=False)
class TeacherClassifier(Classifier):
    """A fitted teacher put to use."""

    teacher: Teacher

    @cached_property
    def _graph(self) -> TeacherGraph:
        calibration, means = self.calibration, self.class_means
        return TeacherGraph(self.teacher, self.image_size, calibration.temperature, means)

    def as_graph(self) -> TeacherGraph:
        return self._graph

    def normalisation(self) -> Normalisation:
        view = self.teacher.card.members[0].preprocessing
        return list(view.mean), list(view.std)


ImageClassifier = Classifier  # its name in version 0.1


def load(
    path: str | Path,
    device: str = "auto",
    *,
    model: ModelChoice = "recommended",
    backend: BackendName = "auto",
    merge: int = 0,
    code: str | None = None,
) -> Classifier:
    """The classifier of a finished run, of a fitted teacher's folder, or of hf:OWNER/NAME on the hub.

    model: which model of a run; by default the one that its verdict recommends. backend: "pytorch",
    "compiled", "onnxruntime" or "openvino"; "auto" starts with PyTorch and, on a CPU, changes to a faster
    backend that agrees if there is much to classify. merge: patch tokens to merge in each block of a student
    (arXiv 2210.09461), faster and a little less accurate. code: python:MODULE:FUNCTION that a teacher may
    run.

    Raises RunFolderError if the folder is incomplete, SettingError or DependencyError for a device or backend
    that is unknown or missing.
    """
    return load_folder(model_folder(Path(path), model), device, backend=backend, merge=merge, code=code)


def load_folder(
    folder: Path,
    device: str = "auto",
    *,
    backend: BackendName = "auto",
    merge: int = 0,
    code: str | None = None,
) -> Classifier:
    """As `load`, of the student or the fitted teacher in `folder` itself, such as `model_folder` names."""
    if not holds_teacher(folder):
        return load_student(folder, device, backend, merge)
    if merge:
        raise SettingError("only a student merges tokens; leave out the merging, or choose the student")
    return load_teacher(folder, device, backend=backend, code=code)


def model_folder(path: Path, model: ModelChoice) -> Path:
    """The folder of a model of the run in `path`; `path` itself if it is a fitted teacher's folder.

    path: or hf:OWNER/NAME, what `deitkit push` uploaded; it is fetched into the hub's cache. Raises
    RunFolderError if the run has no such model, WeightsError if the hub cannot give it.
    """
    if path.as_posix().startswith(HUB):
        path = snapshot(path.as_posix().removeprefix(HUB), PUSHED)
    if not path.exists():
        raise RunFolderError(f"there is no folder {path}; give the --out folder of a finished training")
    if holds_teacher(path):
        if model not in ("student", "teacher", "recommended"):
            raise RunFolderError(f"{path} holds a fitted teacher and no {model}; give the run's folder")
        return path
    role = recommended_model(path) if model == "recommended" else model
    if role == "student":
        return path
    if role == "teacher":
        folder = _teacher_of(path)
    else:
        folder = _baseline_of(path) if role == "baseline" else candidate_folder(path, role)
    if model == "recommended":
        log.info(f"using {folder}, the best model of {path}; --model student uses the student")
    return folder


def recommended_model(run: Path) -> Role:
    """The model that the verdict of a run recommends; the student if there is no verdict, as in version 0.1.

    If nothing was learnt, so that no model is recommended, warns, and names the one with the best score.
    """
    folder = run.resolve()  # "." has no parent
    if baseline_folder(folder.parent) == folder or not (run / RESULTS).exists():
        return "student"
    results = read_results(run)
    if results.recommended is None and results.comparison is not None:
        log.warning(f"no model of {run} is recommended: {' '.join(results.verdict.splitlines())}")
        metric, models = results.comparison.metric, results.models
        return max(models, key=lambda role: (models[role].scores.get(metric) or 0.0, role == "student"))
    return results.recommended or "student"


def load_student(
    run: str | Path, device: str = "auto", backend: BackendName = "auto", merge: int = 0
) -> StudentClassifier:
    """The student of a finished run, or of a baseline's folder; see `load`."""
    run = Path(run)
    model, info = read_student(run)
    calibration = read_calibration(run)
    device = _device_of(backend, device)
    where = resolve_inference_device(device)
    view = info.preprocessing
    mean, std = (torch.tensor(v, device=where).view(1, 3, 1, 1) for v in (view.mean, view.std))
    model = model.to(where).eval()
    network = TokenMerging(model, merge) if merge else model
    class_means = read_class_means(run, calibration)
    if class_means is not None:
        _check_width(class_means, model.num_prefix_tokens * model.embed_dim, run)
    graph = JointClassifier(
        network,
        view.mean,
        view.std,
        task=info.task,
        temperature=calibration.temperature,
        class_means=class_means,
    )
    return StudentClassifier(
        classes=info.classes,
        task=info.task,
        image_size=model.image_size,
        crop=view.crop,
        max_pixels=_max_pixels(info.config),
        device=where,
        calibration=calibration,
        class_means=class_means,
        backend=create_backend(graph, model.image_size, backend, where),
        model=model,
        mean=mean,
        std=std,
        graph=graph,
    )


def load_teacher(
    folder: str | Path, device: str = "auto", *, backend: BackendName = "auto", code: str | None = None
) -> TeacherClassifier:
    """The fitted teacher in `folder` as a classifier of images.

    The teacher of a run or of stored soft labels sees images as in the validation there; another one, such as
    a run's candidate, has its own input size and crop (an ensemble, the first member's). code:
    python:MODULE:FUNCTION that the teacher may run; a teacher that needs other code is refused. Raises
    RunFolderError if there is no teacher.
    """
    folder = Path(folder).resolve()  # "." and links have another parent
    if not holds_teacher(folder):
        raise RunFolderError(f"{folder} holds no fitted teacher; give RUN/teacher of a run that kept one")
    where = resolve_inference_device(_device_of(backend, device))
    codes = [code] if code else ()
    teacher = read_teacher(folder, device=where, backend=backend, code=codes, keep_backbones=True)
    own = teacher.card.members[0].preprocessing
    image_size, crop, config = _validated_view(folder) or (own.image_size, own.crop, None)
    task: Task = "multilabel" if teacher.card.multilabel else "multiclass"
    calibration = read_calibration(folder)
    class_means = read_class_means(folder, calibration)
    return TeacherClassifier(
        classes=teacher.card.classes,
        task=task,
        image_size=image_size,
        crop=crop,
        max_pixels=_max_pixels(config),
        device=where,
        calibration=calibration,
        class_means=class_means,
        backend=_TeacherBackend(teacher, task, calibration.temperature, class_means),
        teacher=teacher,
    )


class _TeacherBackend:
    """Views (B, 3, H, W) in [0, 1] -> probabilities and logits, (B, K), and unfamiliarity, (B,)."""

    def __init__(self, teacher: Teacher, task: Task, temperature: float, class_means: Tensor | None):
        self.teacher, self.task = teacher, task
        self.temperature, self.class_means = temperature, class_means

    @property
    def name(self) -> str:
        return self.teacher.backend

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        output = self.teacher(views)
        probabilities = tempered(probabilities_of(output.logits, self.task), self.temperature, self.task)
        if self.class_means is None or output.embedding is None:
            return probabilities, output.logits
        _check_width(self.class_means, output.embedding.shape[1], None)
        means = self.class_means.to(output.embedding.device)
        return probabilities, output.logits, unfamiliarity(output.embedding, means)


def _check_width(class_means: Tensor, width: int, folder: Path | None) -> None:
    if class_means.shape[1] != width:
        of = "the teacher" if folder is None else str(folder)
        raise RunFolderError(f"{CLASS_MEANS} does not belong to {of}; remove the file, or train again")


def _device_of(backend: BackendName, device: str) -> str:
    """The CPU for a backend that runs only there."""
    if backend not in CONVERTED:
        return device
    if device not in ("auto", "cpu"):
        raise SettingError(f"{backend} runs on the CPU only; use device cpu or auto, or another backend")
    return "cpu"


def _teacher_of(run: Path) -> Path:
    """The folder of a run's teacher, which may be that of its stored soft labels."""
    if holds_teacher(run / TEACHER_FOLDER):
        return run / TEACHER_FOLDER
    teacher = read_results(run).teacher if (run / RESULTS).exists() else None
    if teacher is not None and teacher.folder is not None and holds_teacher(Path(teacher.folder)):
        return Path(teacher.folder)
    raise RunFolderError(f"{run} keeps no teacher; choose its student, or give the teacher's folder")


def _baseline_of(run: Path) -> Path:
    folder = baseline_folder(run)
    if not folder.is_dir():
        raise RunFolderError(f"{run} has no baseline; choose its student, or train with --baseline")
    return folder


def _max_pixels(config: Config | None) -> int:
    """The largest image that the training with these settings read; by default if they are not known."""
    return (config or Config()).data.max_pixels


def _validated_view(folder: Path) -> tuple[tuple[int, int], float, Config | None] | None:
    """Image size and crop of the validation views of the run, or soft labels, that keep a teacher, and its
    settings."""
    keeper = folder.parent
    if folder.name == TEACHER_FOLDER and (keeper / MANIFEST).exists():
        config = read_manifest(keeper).config
        return config.view_size, config.data.eval_crop, config
    run = run_of_teacher(folder)
    if run is None or folder.name != TEACHER_FOLDER:
        return None
    info = read_info(run)
    size = info.preprocessing.image_size
    if info.config is not None:
        size = view_size(size, info.config.augment)
    return size, info.preprocessing.crop, info.config
