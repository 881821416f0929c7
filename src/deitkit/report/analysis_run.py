"""`deitkit analyze`: the analyses of the papers, measured on a run."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import log
from ..classifier import (
    Classifier,
    ModelChoice,
    StudentClassifier,
    TeacherClassifier,
    load_folder,
    load_student,
    model_folder,
)
from ..config import Config
from ..data.cache import Decoder, open_pixels, refuse_many_unreadable
from ..data.dataset import Split
from ..data.image_set import ImageSet
from ..errors import DataError, DeitkitError
from ..evaluation import analysis
from ..evaluation.analysis import AnalysedModels
from ..evaluation.run_images import labelled_images, without_training_images
from ..evaluation.speed import describe_machine
from ..io import create_folder, write_json
from ..run_folder import (
    TEACHER_FOLDER,
    WEIGHTS,
    baseline_folder,
    holds_teacher,
    read_info,
    refuse_untrained,
)
from ..teachers.saved import read_teacher
from .analysis_page import write_analysis


def analyze_run(
    run: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    model: ModelChoice = "recommended",
    code: str | None = None,
) -> dict[str, Any]:
    """Measures `run` on the images of `data`; writes `analysis.json` and `analysis.html` into `out`.

    run: a run's folder, or a fitted teacher's, of which tokens and attention are left out. data: a folder
    with one sub-folder per class (some of the run's classes are enough), or val/ with these; images that the
    run was trained on are left out. out: by default RUN/analysis, or DIR-analysis beside a teacher's folder.
    Returns the content of `analysis.json`. Raises a DeitkitError for anything the caller can fix.
    """
    folder, data = model_folder(Path(run), model), Path(data)
    with log.activity("loading the model"):
        classifier = load_folder(folder, code=code)
    if classifier.task == "multilabel":
        raise DataError(f"analyze needs one class per image, and {folder} is multilabel; use eval")
    config = Config()
    if isinstance(classifier, StudentClassifier):
        info = read_info(folder)
        refuse_untrained(folder, info)
        config = info.config or config
    images, notes = without_training_images(folder, labelled_images(data, classifier))
    out = _claimed(default_out(Path(run)) if out is None else Path(out))
    part, skipped = _open_images(images, classifier, config)
    with log.activity("loading the other models"):
        models, missing = _models_of(folder, config, classifier)
    notes += missing
    for note in notes:
        log.info(note)
    with log.progress_bar("measuring", len(part.images)) as advance:
        probabilities = analysis.measure(models, part, np.arange(len(part.images)), advance)
    wrong = analysis.mistakes(probabilities[models.main], part)
    inside: dict[str, Any] = {"tokens": None, "attention": None}
    if models.student is not None:
        inside = analysis.look_inside(folder, models.student, part.store)
    found: dict[str, Any] = {
        "run": str(folder),
        "data": str(data),
        "images": len(part.images),
        "skipped": skipped,
        "notes": notes,
        "main": models.main,
        **analysis.compare(probabilities, part, models.main),
        "confusions": analysis.confusions(probabilities[models.main], part),
        "mistakes": [
            {"path": m.path, "label": m.label, "prediction": m.prediction, "probability": m.probability}
            for m in wrong
        ],
        **inside,
        "corruptions": analysis.measure_corrupted(models, part, probabilities),
        "machine": f"{describe_machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }
    write_json(out / "analysis.json", found)
    with log.activity("writing the page"):
        write_analysis(out / "analysis.html", found, wrong, analysis.attention_images(models, part))
    return found


def default_out(folder: Path) -> Path:
    """Where the analysis of a run or of a fitted teacher is written; a teacher's folder stays as it is."""
    return folder.parent / f"{folder.name}-analysis" if holds_teacher(folder) else folder / "analysis"


def _claimed(out: Path) -> Path:
    """`out` as a folder that exists: a mistake there fails now rather than after all the measuring."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; choose an empty or a new folder for --out")
    create_folder(out)
    return out


def _open_images(
    images: ImageSet, classifier: Classifier, config: Config
) -> tuple[Split, list[dict[str, str]]]:
    """The pixels as validation saw them, and the unreadable images with the reason."""
    with log.progress_bar("decoding", len(images)) as advance:
        decoder = Decoder(classifier.image_size, "center_crop", classifier.crop, classifier.max_pixels)
        store, unreadable = open_pixels(images, decoder, config.data, advance)
    broken = [(str(images.file(i)), why) for i, why in unreadable]
    refuse_many_unreadable(broken, len(images), config.data.max_broken)
    kept = np.setdiff1d(np.arange(len(images)), [i for i, _ in unreadable])
    skipped = [{"path": images.paths[i], "reason": why} for i, why in unreadable]
    return Split(images.subset(kept), store.subset(kept)), skipped


def _models_of(folder: Path, config: Config, classifier: Classifier) -> tuple[AnalysedModels, list[str]]:
    """All models in the folder, and a sentence on each that is missing."""
    if isinstance(classifier, TeacherClassifier):
        note = "A fitted teacher alone: comparisons with a student, tokens and attention are left out."
        return AnalysedModels(None, None, classifier.teacher, classifier.device), [note]
    assert isinstance(classifier, StudentClassifier)
    notes = []
    teacher = baseline = None
    if not holds_teacher(folder / TEACHER_FOLDER):
        notes.append("The run keeps no teacher: comparisons with one are left out.")
    else:
        try:
            backend = config.teacher.backend
            teacher = read_teacher(folder / TEACHER_FOLDER, device=classifier.device, backend=backend)
        except DeitkitError as error:  # its backbone may be on another machine; the rest does not need it
            notes.append(f"The teacher is left out: {error}.")
    if (baseline_folder(folder) / WEIGHTS).exists():
        baseline = load_student(baseline_folder(folder))
    elif (folder / TEACHER_FOLDER).exists():
        notes.append("The run has no baseline: train with --baseline to see what the teacher changed.")
    if not classifier.model.distilled:
        notes.append(
            "The student has no distillation token: token cosines are left out, and its one head is "
            "the joint classifier."
        )
    return AnalysedModels(classifier, baseline, teacher, classifier.device), notes
