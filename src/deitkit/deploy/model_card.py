"""What the people who use a model should know of it, from the run that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..classifier import Classifier, StudentClassifier, TeacherClassifier
from ..run_folder import (
    CANDIDATES_FOLDER,
    CONFIG,
    RESULTS,
    baseline_folder,
    holds_teacher,
    read_info,
    read_results,
    run_of_teacher,
)
from ..run_schema import DataInfo, Role, RunResults, role_name
from ..tasks import SCORES
from ..weights.packaged import published_name

Kind = Literal["deit", "hybrid", "teacher"]


@dataclass(frozen=True)
class Accuracy:
    """A model's score on images that it was not trained on: in percent, with its 95 % interval if known."""

    metric: str
    value: float
    interval: tuple[float, float] | None
    images: int


@dataclass(frozen=True)
class ModelCard:
    """A short model card, without paths of this machine: it may be published.

    name: of the run's folder. model: which of the run's models, in words. kind: timm and transformers have a
    "deit" only. architecture: in words, such as "DeiT nano" or "EfficientNet-Lite0 with a linear probe".
    others: further scores, such as balanced accuracy and those on the test split. data: name of the folder of
    images; train_images, split: what is known of it. seconds: of the whole training, on `machine`. teacher:
    what it was distilled from. limits: what the model is not for, a sentence each.
    """

    name: str
    model: str
    kind: Kind
    architecture: str
    params: int | None
    input: str
    accuracy: Accuracy | None
    data: str | None
    train_images: int | None
    split: str
    date: str
    limits: tuple[str, ...]
    others: tuple[Accuracy, ...] = ()
    seconds: float | None = None
    machine: str = ""
    teacher: str = ""


def read_card(folder: Path, classifier: Classifier) -> ModelCard:
    """The card of the model in `folder`, one that `classifier.model_folder` names."""
    run, role = _run_and_role(folder.resolve())
    results = read_results(run) if run is not None and (run / RESULTS).is_file() else None
    data = read_info(run).data if run is not None and (run / CONFIG).is_file() else None
    result = results.models.get(role) if results is not None else None
    height, width = classifier.image_size
    kind, architecture = _kind(classifier, result.name if result is not None else "")
    taught_by = results.teacher.name if results is not None and results.teacher and role == "student" else ""
    return ModelCard(
        name=(run or folder.resolve()).name,
        model=role_name(role),
        kind=kind,
        architecture=architecture,
        params=result.params if result is not None else None,
        input=f"{width} x {height} pixels",
        accuracy=_accuracy(results, role),
        data=Path(data.root).name if data is not None and data.root else None,
        train_images=data.train if data is not None else None,
        split=data.how if data is not None else "",
        date=results.date if results is not None else "",
        limits=_limits(classifier, data),
        others=_other_scores(results, role, data),
        seconds=(results.train.job_seconds or results.train.seconds) if results is not None else None,
        machine=results.machine if results is not None else "",
        teacher=published_name(taught_by),
    )


def _kind(classifier: Classifier, name: str) -> tuple[Kind, str]:
    """What the model is, and in words. name: a student's, such as "nano"; empty if it is not known."""
    if isinstance(classifier, TeacherClassifier):
        return "teacher", classifier.teacher.card.described
    assert isinstance(classifier, StudentClassifier)
    if classifier.model.stem is None:
        return "deit", f"DeiT {name}".strip()
    named = f" ({name})" if name else ""
    return "hybrid", f"hybrid of EfficientNet-Lite0's first stages and DeiT blocks{named}"


def _run_and_role(folder: Path) -> tuple[Path | None, Role]:
    """The run that the model in `folder` is of, and the model's role in it."""
    if holds_teacher(folder):
        is_candidate = folder.parent.name == CANDIDATES_FOLDER
        return run_of_teacher(folder), folder.name if is_candidate else "teacher"
    if baseline_folder(folder.parent) == folder:
        return folder.parent, "baseline"
    return folder, "student"


def _accuracy(results: RunResults | None, role: Role) -> Accuracy | None:
    model = results.models.get(role) if results is not None else None
    if results is None or model is None:
        return None
    score = SCORES[results.task]
    value = model.scores.get(score.key)
    return None if value is None else Accuracy(score.name, value, model.interval, results.val.images)


def _other_scores(results: RunResults | None, role: Role, data: DataInfo | None) -> tuple[Accuracy, ...]:
    model = results.models.get(role) if results is not None else None
    if results is None or model is None:
        return ()
    found, images = [], results.val.images
    if (balanced := model.scores.get("balanced_accuracy")) is not None:
        found.append(Accuracy("balanced accuracy", balanced, model.balanced_interval, images))
    if (macro := model.scores.get("macro_f1")) is not None:
        found.append(Accuracy("macro-F1", macro, None, images))
    score = SCORES[results.task]
    on_test = (model.test or {}).get(score.key)
    if on_test is not None and data is not None and data.test:
        found.append(Accuracy(f"{score.name} on the test split", on_test, None, data.test))
    return tuple(found)


def _limits(classifier: Classifier, data: DataInfo | None) -> tuple[str, ...]:
    one_of = "none or some" if classifier.task == "multilabel" else "one"
    others = f"an image of anything else is given {one_of} of them, too, and often with confidence"
    if classifier.familiar_up_to is not None:
        others = 'it can say "unknown" of an image of anything else, and does not always notice'
    measured = "Its accuracy was measured on held-out images of the same folder"
    return (
        f"It knows {len(classifier.classes)} classes and nothing else: {others}.",
        f"{measured if data is not None else 'Its accuracy is not known here'}; other cameras, places or "
        "light can lower it. Try it on images of your own before you rely on it.",
        "It is not meant to decide about people's health, safety or rights without a person who checks.",
    )
