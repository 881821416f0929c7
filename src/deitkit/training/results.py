"""What a run's models score and cost: measured on validation, compared, judged."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from .. import log
from ..data.dataset import Dataset, Split
from ..data.image_set import has_label
from ..evaluation.comparison import chance, compare, learned, metric_of, scored, unpaired_difference
from ..evaluation.evaluate import evaluate, evaluate_student, teacher_outputs, views_of
from ..evaluation.metrics import (
    balanced_accuracy,
    balanced_accuracy_interval,
    confusion,
    macro_f1,
    macro_f1_interval,
    score_and_interval,
    uneven,
)
from ..evaluation.multilabel import per_label
from ..evaluation.speed import describe_machine, images_per_s, rates_in_turns, speedup_of
from ..inference.backends import Backend, PyTorchBackend
from ..inference.device import fast_precision
from ..inference.joint_classifier import JointClassifier
from ..inference.selection import AutoBackend, create_backend
from ..models import DeiTOutput, Student, joint_probabilities, probabilities_of
from ..preprocessing import STUDENT_MEAN, STUDENT_STD
from ..report.verdict import Candidate, Measurement, Preference, Rarest, verdict
from ..run_folder import TEACHER_FOLDER, model_from_json
from ..run_schema import (
    Comparison,
    Difference,
    Metric,
    ModelResult,
    Role,
    RunResults,
    Speedup,
    TrainingResult,
    ValResult,
)
from ..soft_labels.manifest import FILE as MANIFEST
from ..soft_labels.store import SoftLabelStore
from ..tasks import METRICS, SCORES, Task
from ..teachers.teacher import Teacher

_SPEED_BATCH = 32
_NO_SCORES = ("images", "loss", "balanced_loss")  # of what `measure` finds


@dataclass(frozen=True)
class Measured:
    """A model on the validation images.

    probabilities: (n, K), of both heads joined. forward: runs one batch on the backend it would be deployed
    on. embedding: (n, F), of a teacher. All are None for a teacher of which only soft labels are there.
    """

    result: ModelResult
    probabilities: Tensor | None = None
    forward: Callable[[], object] | None = None
    embedding: Tensor | None = None

    def with_speed(self, rates: Sequence[float]) -> Measured:
        """The same model with the speed that `rates_in_turns` found."""
        speed, slowest, fastest = statistics.median(rates), min(rates), max(rates)
        result = replace(self.result, images_per_s=speed, images_per_s_range=(slowest, fastest))
        return replace(self, result=result)


@dataclass(frozen=True)
class TrainedStudent:
    """A student after training. output: both heads' logits on validation. weights: which were kept."""

    measured: Measured
    output: DeiTOutput
    cost: TrainingResult
    weights: Literal["ema", "raw"]


def measure_teacher(
    teacher: Teacher, val: Split, device: torch.device, test: Split | None = None
) -> tuple[Measured, Tensor]:
    """As `evaluate_teacher`, and its speed at batch 32."""
    measured, logits = evaluate_teacher(teacher, val, device, test)
    assert measured.forward is not None
    rate = images_per_s(measured.forward, min(_SPEED_BATCH, len(val.images)))
    return replace(measured, result=replace(measured.result, images_per_s=rate)), logits


def evaluate_teacher(
    teacher: Teacher, val: Split, device: torch.device, test: Split | None = None
) -> tuple[Measured, Tensor]:
    """Accuracy on validation (and test) in percent, and the logits (n, K).

    The speed is not a number yet: `assemble` times all models in turns.
    """
    output = teacher_outputs(teacher, val, device)
    logits = output.class_logits
    probabilities, task = probabilities_of(logits, val.images.task), val.images.task
    score, interval = score_and_interval(probabilities, val.labels)
    scores: dict[str, float | None] = {SCORES[task].key: score}
    balanced, of_f1, counts = None, None, None
    if task == "multiclass":
        counts = confusion(probabilities.argmax(1), val.labels, probabilities.shape[1])
        scores |= {"balanced_accuracy": balanced_accuracy(counts), "macro_f1": macro_f1(counts)}
        balanced, of_f1 = balanced_accuracy_interval(counts), macro_f1_interval(counts)
    batch, _ = next(views_of(val, device, _SPEED_BATCH))
    result = ModelResult(
        name=teacher.card.name,
        scores=scores,
        interval=interval,
        balanced_interval=balanced,
        macro_f1_interval=of_f1,
        params=teacher.card.params,
        images_per_s=math.nan,
        backend=teacher.backend,
        how=teacher.card.how,
        image_size=teacher.card.members[0].preprocessing.image_size,
        test=None if test is None else _test_scores(teacher, test, device),
        confusion=None if counts is None else tuple(map(tuple, counts.tolist())),
    )
    return Measured(result, probabilities, lambda: teacher(batch), output.embedding), logits


def _test_scores(teacher: Teacher, test: Split, device: torch.device) -> dict[str, float | None]:
    predictions = evaluate(lambda views: {"class_logits": teacher(views).logits}, views_of(test, device))
    return predictions.metrics().to_dict()


def stored_teacher(soft_labels: SoftLabelStore) -> Measured:
    """A teacher as its soft labels were stored with: its results on validation, without its answers."""
    file = soft_labels.folder / MANIFEST
    folder = str(soft_labels.folder / TEACHER_FOLDER)
    return Measured(replace(model_from_json(soft_labels.manifest.teacher, file), folder=folder))


def log_teacher(result: ModelResult, val: Split) -> None:
    """Logs what `measure_teacher` found, and warns if the teacher is no better than chance.

    Chance is always naming the largest class, or for a multilabel task a random order. A teacher that is
    adjusted for uneven classes may be right less often than that, and still know them.
    """
    task, n = val.images.task, len(val.images)
    score, reached = SCORES[task], result.scores[SCORES[task].key]
    assert reached is not None
    shares = 100 * val.images.counts() / n
    balanced = result.scores.get("balanced_accuracy")
    and_balanced = ""
    if balanced is not None and uneven(val.images.counts().tolist()):
        and_balanced = f", balanced accuracy {balanced:.1f} %"
    log.info(
        f"teacher {result.name} ({result.how}): {score.say(reached)}{and_balanced} on validation, "
        f"{result.images_per_s:.0f} images/s with {result.backend}"
    )
    floor = float(shares.max() if task == "multiclass" else shares.mean())
    of_balanced = result.balanced_interval
    knows_classes = of_balanced is not None and learned(of_balanced, val.labels)
    if reached <= floor and not knows_classes:
        what = "always naming the largest class" if task == "multiclass" else "a random order"
        log.warning(
            f"the teacher is no better than {what} ({score.say(floor)}); "
            "the student will learn little from it, try another --teacher"
        )


def measure_student(
    model: Student, name: str, data: Dataset, device: torch.device
) -> tuple[Measured, DeiTOutput]:
    """Both heads and the joint classifier on validation (and test), and both heads' logits.

    The speed is not a number yet: `assemble` times all models in turns.
    """
    predictions = evaluate_student(model, data.val, device, embedding=True)
    output, labels = predictions.heads(), predictions.labels
    joint = joint_probabilities(output, data.task)
    batch, _ = next(views_of(data.val, device, _SPEED_BATCH))
    backend = _fast_backend(model, data.task, batch, device)
    scores = predictions.metrics().to_dict()
    counts = confusion(joint.argmax(1), labels, model.num_classes) if data.task == "multiclass" else None
    result = ModelResult(
        name=name,
        scores={key: value for key, value in scores.items() if key not in _NO_SCORES},
        interval=score_and_interval(joint, labels)[1],
        balanced_interval=None if counts is None else balanced_accuracy_interval(counts),
        macro_f1_interval=None if counts is None else macro_f1_interval(counts),
        params=model.num_params,
        images_per_s=math.nan,
        backend=backend.name,
        bytes=4 * model.num_params,
        test=evaluate_student(model, data.test, device).metrics().to_dict() if data.test else None,
        confusion=None if counts is None else tuple(map(tuple, counts.tolist())),
        per_class=None if counts is not None else tuple(map(asdict, per_label(output, labels))),
    )
    return Measured(result, joint, lambda: backend(batch)), output


def _fast_backend(model: Student, task: Task, batch: Tensor, device: torch.device) -> Backend:
    """The backend that a deployed student would run on here, as a teacher is measured on its fastest one."""
    graph = JointClassifier(model.eval(), STUDENT_MEAN, STUDENT_STD, task=task)
    if device.type == "cuda":  # at the teacher's precision, so that the two speeds compare
        return PyTorchBackend(graph, device, precision=fast_precision(device))
    backend = create_backend(graph, model.image_size, "auto", device)
    if isinstance(backend, AutoBackend):
        backend.look(batch)
    return backend


def assemble(
    trained: TrainedStudent,
    teacher: Measured | None,
    baseline: Measured | None,
    data: Dataset,
    seconds: float,
    *,
    others: Mapping[Role, Measured] = MappingProxyType({}),
    prefer: Preference = "balanced",
    metric: str | None = None,
) -> RunResults:
    """The content of `results.json`: the models timed in turns, compared and judged.

    others: further candidates to deploy, by name. seconds: of the whole job. metric: `train.metric`,
    resolved; None for what suits the labels.
    """
    models: dict[Role, Measured] = {"student": trained.measured}
    if teacher is not None:
        models["teacher"] = teacher
    if baseline is not None:
        models["baseline"] = baseline
    models |= others
    models, speedup = _timed(models, min(_SPEED_BATCH, len(data.val.images)))
    pairs = _Pairs(models, data, metric)
    candidates = {role: _candidate(role, model, data, pairs.metric) for role, model in models.items()}
    measurement = Measurement(pairs.metric, len(data.val.images), pairs.compare, speedup)
    judged = verdict(candidates, measurement, _rarest(data), prefer)
    best = max(candidates.values(), key=lambda c: c.score).role
    student = models["student"].result
    return RunResults(
        task=data.task,
        confusion=student.confusion,
        per_class=student.per_class,
        test=student.test,
        student=replace(student, confusion=None, per_class=None, test=None),
        teacher=models["teacher"].result if teacher else None,
        baseline=models["baseline"].result if baseline else None,
        candidates={role: models[role].result for role in others},
        train=replace(trained.cost, job_seconds=seconds),
        val=ValResult(images=len(data.val.images)),
        weights=trained.weights,
        prefer=prefer,
        recommended=judged.recommended,
        verdict=judged.sentence,
        comparison=Comparison(metric=pairs.metric, differences=pairs.differences(best), speedup=speedup),
        machine=f"{describe_machine()}, torch {torch.__version__}",
        date=datetime.date.today().isoformat(),
    )


def _rarest(data: Dataset) -> Rarest:
    """The class with the fewest labelled training images."""
    images = data.train.images
    counts = images.subset(np.flatnonzero(has_label(images.labels))).counts()
    fewest = int(counts.min())
    return Rarest(data.classes[int(counts.argmin())], fewest, several=(counts == fewest).sum() > 1)


def _timed(models: Mapping[Role, Measured], batch_size: int) -> tuple[dict[Role, Measured], Speedup | None]:
    """The models with their speeds, measured in turns, and the student's speedup over the teacher."""
    forwards = {role: model.forward for role, model in models.items() if model.forward is not None}
    rates = rates_in_turns(forwards, batch_size)
    timed = {
        role: model.with_speed(rates[role]) if role in rates else model for role, model in models.items()
    }
    if "teacher" not in models:
        return timed, None
    if "teacher" in rates:
        return timed, speedup_of(rates["student"], rates["teacher"])
    ratio = timed["student"].result.images_per_s / timed["teacher"].result.images_per_s
    return timed, Speedup(value=ratio, low=ratio, high=ratio, in_turns=False)


class _Pairs:
    """The models against each other on the same images; a teacher without answers by its interval alone."""

    def __init__(self, models: Mapping[Role, Measured], data: Dataset, metric: str | None):
        self.models, self.labels = models, data.val.labels
        self.metric: Metric = metric_of(self.labels, len(data.classes))
        if metric is not None:
            self.metric = cast(Metric, METRICS[metric].key)
        if any(scored(model.result, self.metric) is None for model in models.values()):
            self.metric = "top1"  # the teacher's soft labels are of version 0.1

    def compare(self, one: Role, other: Role) -> Difference:
        """The score of `one` minus that of `other`."""
        a, b = self.models[one], self.models[other]
        if a.probabilities is not None and b.probabilities is not None:
            return compare(a.probabilities, b.probabilities, self.labels, self.metric)
        return unpaired_difference(a.result, b.result, self.metric, len(self.labels))

    def differences(self, best: Role) -> dict[str, Difference]:
        """Those that `results.json` keeps: among student, teacher and baseline, and from the best model."""
        pairs = [("student", "teacher"), ("student", "baseline"), ("baseline", "teacher")]
        pairs += [(role, best) for role in self.models if role != best]
        return {
            f"{one}-{other}": self.compare(one, other)
            for one, other in dict.fromkeys(pairs)
            if one in self.models and other in self.models
        }


def _candidate(role: Role, model: Measured, data: Dataset, metric: Metric) -> Candidate:
    """What the verdict weighs of a model."""
    result, found = model.result, scored(model.result, metric)
    assert found is not None
    tells = learned(result.interval if metric == "map" else result.balanced_interval, data.val.labels)
    speed = result.images_per_s if result.images_per_s > 0 else None
    floor = chance(data.val.labels, metric)
    return Candidate(role, *found, tells, floor, result.params, speed, result.folder)
