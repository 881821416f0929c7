"""Reads a finished run folder: the trained student and what was written down with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .errors import RunFolderError
from .io import read_json
from .models.deit import DeiT

TEACHER_FOLDER = "teacher"  # in a run's folder, and in that of stored labels
TEACHER_CARD = "teacher.json"  # what makes a folder a fitted teacher's


def holds_teacher(folder: Path) -> bool:
    """Whether `folder` is a fitted teacher's: RUN/teacher, or what `deitkit teacher fit` wrote."""
    return (folder / TEACHER_CARD).is_file()


def run_of_teacher(folder: Path) -> Path | None:
    """The run that keeps the teacher in `folder`, fitted on the same images; None of any other teacher.

    Also None for a run that was stopped before it had planned its epochs, and so wrote nothing of itself yet.
    Raises DeitkitError where what describes the run is damaged.
    """
    folder = folder.resolve()  # of a link, and of ".", what is around it must be seen
    described = folder.parent / "config.json"
    if folder.name != TEACHER_FOLDER or not described.is_file():
        return None
    try:
        saved = read_json(described)
    except ValueError:
        raise RunFolderError(
            f"{described}, beside the teacher, cannot be read; move the teacher elsewhere"
        ) from None
    return folder.parent if isinstance(saved, dict) and {"data", "student"} <= saved.keys() else None


def read_run(run: Path) -> tuple[DeiT, dict[str, Any]]:
    """The student on the CPU, and the content of `config.json`.

    Raises DeitkitError where the folder is not whole.
    """
    if holds_teacher(run):
        raise RunFolderError(
            f"{run} holds a teacher and no student; deitkit predict takes it, others a student"
        )
    if not (run / "config.json").exists() or not (run / "model.safetensors").exists():
        raise RunFolderError(f"{run} holds no finished run; give the --out folder of a training that ended")
    try:
        saved = read_json(run / "config.json")
        weights = load_file(run / "model.safetensors")
    except Exception as error:  # a cut file fails in many ways
        raise RunFolderError(
            f"the run in {run} cannot be read ({type(error).__name__}); train it again"
        ) from None
    if not isinstance(saved, dict) or "student" not in saved:
        raise RunFolderError(
            f"{run} is no run of deitkit but {_likeness(saved)}; "
            f"deitkit convert {run} NEW --to deitkit makes one of a DeiT or ViT"
        )
    student = saved["student"]
    if "patch_size" not in student:
        raise RunFolderError(f"{run} holds a {student['name']} and no DeiT; give the run of a student")
    model = DeiT.from_description(student, len(saved["classes"]))
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise RunFolderError(
            f"{run / 'model.safetensors'} and {run / 'config.json'} are of different models; "
            "train the run again"
        ) from None
    return model, saved


def _likeness(config: Any) -> str:
    """What a folder looks like whose config.json is not a run's."""
    keys = config if isinstance(config, dict) else {}
    if "pretrained_cfg" in keys or "architecture" in keys:
        return "looks like a model of timm"
    return "looks like a model of transformers" if "model_type" in keys else "a model of another project"


def read_settings(run: Path) -> dict[str, Any]:
    """The content of `config.json` of a run that was trained on images.

    Raises DeitkitError for a folder of weights only, as `deitkit convert` writes.
    """
    saved = read_json(run / "config.json")
    if "data" not in saved:
        raise RunFolderError(f"{run} holds weights only, not a training; give a run of deitkit train")
    return saved
