"""`deitkit analyze`: what the papers looked at inside their models, measured on a run."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import log
from ..classifier import Classifier, load
from ..config import Config
from ..data.cache import Decoder, refuse_many_unreadable
from ..data.dataset import Split, open_pixels
from ..data.image_set import ImageSet
from ..errors import DataError, DeitkitError
from ..evaluation import analysis
from ..evaluation.analysis import AnalysedModels
from ..evaluation.run_images import labelled_images, without_training_images
from ..evaluation.speed import describe_machine
from ..io import write_json
from ..run_folder import TEACHER_FOLDER, holds_teacher, read_settings
from ..teachers.saved import read_teacher
from .analysis_page import write_analysis


def analyze_run(run: str | Path, data: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Measures `run` on the images of `data`; writes `analysis.json` and `analysis.html` into `out`.

    `data` has one sub-folder per class, named as the run's classes (a part of them is enough), or val/ with
    these; images that the run was trained on are left out. `out` is RUN/analysis where it is not given.
    Returns the content of `analysis.json`. Raises DeitkitError for anything the caller can mend.
    """
    run, data = Path(run), Path(data)
    out = run / "analysis" if out is None else Path(out)
    student = load(run)
    if student.task == "multilabel":
        raise DataError(f"analyze needs one class an image, and {run} knows several labels; use eval")
    settings = read_settings(run)
    images, notes = without_training_images(run, labelled_images(data, student))
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; choose an empty or a new folder for --out")
    out.mkdir(parents=True, exist_ok=True)  # refused now rather than after all the measuring
    config = Config.from_dict(settings["config"])
    part, skipped = _open_images(images, student, config)
    models, missing = _models_of(run, config, student)
    notes += missing
    for note in notes:
        log.info(note)
    with log.progress_bar("measuring", len(part.images)) as advance:
        probabilities = analysis.measure(models, part, np.arange(len(part.images)), advance)
    found: dict[str, Any] = {
        "run": str(run),
        "data": str(data),
        "images": len(part.images),
        "skipped": skipped,
        "notes": notes,
        **analysis.compare(probabilities, part),
        **analysis.look_inside(run, student, part.store),
        "corruptions": analysis.measure_corrupted(models, part, probabilities),
        "machine": f"{describe_machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }
    write_json(out / "analysis.json", found)
    write_analysis(out / "analysis.html", found, analysis.attention_images(models, part))
    return found


def _open_images(images: ImageSet, student: Classifier, config: Config) -> tuple[Split, list[dict[str, str]]]:
    """The pixels as validation saw them, and the unreadable images with the reason."""
    with log.progress_bar("decoding", len(images)) as advance:
        decoder = Decoder(student.model.image_size, "center_crop", student.crop)
        store, unreadable = open_pixels(images, decoder, config.data, advance)
    refuse_many_unreadable([(str(images.full_path(i)), why) for i, why in unreadable], len(images))
    kept = np.setdiff1d(np.arange(len(images)), [i for i, _ in unreadable])
    skipped = [{"path": images.paths[i], "reason": why} for i, why in unreadable]
    return Split(images.subset(kept), store.subset(kept)), skipped


def _models_of(run: Path, config: Config, student: Classifier) -> tuple[AnalysedModels, list[str]]:
    """All that the run holds, and a sentence on each part that it does not."""
    notes = []
    teacher = baseline = None
    if not holds_teacher(run / TEACHER_FOLDER):
        notes.append("The run keeps no teacher: what compares with one is left out.")
    else:
        try:
            teacher = read_teacher(
                run / TEACHER_FOLDER,
                device=student.device,
                backend=config.teacher.backend,
            )
        except DeitkitError as error:  # its backbone may lie on another machine; the rest needs none
            notes.append(f"The teacher is left out: {error}.")
    if (run / "baseline" / "model.safetensors").exists():
        baseline = load(run / "baseline")
    elif (run / TEACHER_FOLDER).exists():
        notes.append("The run has no baseline: train with --baseline to see what the teacher changed.")
    if not student.model.distilled:
        notes.append(
            "The student has no distillation token: token cosines are left out, and its one head is "
            "the joint classifier."
        )
    return AnalysedModels(student, baseline, teacher), notes
