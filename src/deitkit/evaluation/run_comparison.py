"""Finished runs against each other: what differs in their settings, and on the same validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classifier import ModelChoice, recommended_model
from ..config import flatten
from ..errors import DataError, RunFolderError
from ..run_folder import (
    candidate_folder,
    read_info,
    read_metrics,
    read_predictions,
    read_results,
    refuse_untrained,
)
from ..run_schema import (
    Difference,
    EpochMetrics,
    Metric,
    ModelResult,
    Role,
    RunInfo,
    RunResults,
    probability_column,
    role_name,
    rounded_count,
)
from ..tasks import SCORE_NAMES, SCORES, SEPARATOR, Task
from .comparison import compare, compare_right, metric_of, scored


@dataclass(frozen=True)
class ComparedRun:
    """A run with the model of it that is compared.

    name: of its folder, with as many parents as tell it from the others. predictions: the row of
    `predictions.csv` by path; `prefix` is before the columns of a teacher.
    """

    name: str
    folder: Path
    role: Role
    info: RunInfo
    results: RunResults
    metrics: list[EpochMetrics]
    predictions: dict[str, dict[str, str]]
    prefix: str

    @property
    def model(self) -> ModelResult:
        return self.results.models[self.role]

    @property
    def model_name(self) -> str:
        """Such as "student (nano)"."""
        return f"{role_name(self.role)} ({self.model.name})"

    def prediction(self, path: str) -> str:
        return self.predictions[path][f"{self.prefix}prediction"]


@dataclass(frozen=True)
class Against:
    """A run against the first one. difference: this one's score minus the first one's; None with a reason."""

    name: str
    difference: Difference | None
    why_none: str = ""


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side. against: of each run but the first. settings: rows of key and a value per run."""

    task: Task
    metric: Metric
    runs: tuple[ComparedRun, ...]
    against: tuple[Against, ...]
    settings: tuple[tuple[str, tuple[Any, ...]], ...]

    def sentences(self) -> list[str]:
        """The answer, a sentence for each run but the first."""
        return [_sentence(each, self.runs[0].name, SCORE_NAMES[self.metric]) for each in self.against]

    def to_dict(self) -> dict[str, Any]:
        """The content of `deitkit report --json`."""
        score = SCORES[self.task]
        return {
            "task": self.task,
            "metric": self.metric,
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "model": run.role,
                    score.key: run.model.scores.get(score.key),
                    "interval": run.model.interval and list(run.model.interval),
                    "params": run.model.params,
                    "images_per_s": run.model.images_per_s,
                    "validation_images": run.results.val.images,
                }
                for run in self.runs
            ],
            "against_the_first": [asdict(each) for each in self.against],
            "settings": [{"setting": key, "values": list(values)} for key, values in self.settings],
            "sentences": self.sentences(),
        }


def compare_runs(runs: Sequence[str | Path], model: ModelChoice = "recommended") -> RunComparison:
    """Compares a model of each run with that of the first, image by image where both were validated.

    model: "recommended" (each run's own), "student", "teacher" or a candidate; a baseline keeps no
    predictions. Raises DataError for runs of different tasks, RunFolderError for a folder without results.
    """
    folders = [Path(run) for run in runs]
    names = _names(folders)
    opened = tuple(_open(folder, name, model) for folder, name in zip(folders, names, strict=True))
    first = opened[0]
    for run in opened[1:]:
        if run.results.task != first.results.task:
            raise DataError(
                f"{run.folder} is {run.results.task} and {first.folder} is not; compare like runs"
            )
    metric = _metric(opened)
    against = tuple(_against(run, first, metric) for run in opened[1:])
    return RunComparison(first.results.task, metric, opened, against, _settings(opened))


def _open(folder: Path, name: str, model: ModelChoice) -> ComparedRun:
    info, results = read_info(folder), read_results(folder)
    refuse_untrained(folder, info)
    role = recommended_model(folder) if model == "recommended" else model
    if role not in results.models:
        raise RunFolderError(f"{folder} has no model {role!r}; choose one of {', '.join(results.models)}")
    if role == "baseline":
        raise RunFolderError(f"{folder} keeps no predictions of its baseline; compare another --model")
    rows = read_predictions(candidate_folder(folder, role) if role in results.candidates else folder)
    prefix = "teacher_" if role == "teacher" else ""
    known = {row["path"]: row for row in rows if row.get(f"{prefix}prediction") or not prefix}
    return ComparedRun(name, folder, role, info, results, read_metrics(folder), known, prefix)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart; the whole paths if none do."""
    paths = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _metric(runs: Sequence[ComparedRun]) -> Metric:
    """Balanced accuracy if the classes of the first run are uneven, and every run has measured it."""
    first = runs[0]
    if first.results.task == "multilabel":
        return "map"
    labels = [row["label"] for row in first.predictions.values()]
    places = {name: k for k, name in enumerate(sorted(set(labels)))}
    metric = metric_of(torch.tensor([places[label] for label in labels]), len(places))
    return metric if all(scored(run.model, metric) is not None for run in runs) else "top1"


def _against(run: ComparedRun, first: ComparedRun, metric: Metric) -> Against:
    shared = _shared_images(run, first)
    if not shared:
        return Against(run.name, None, "the runs have no validation image in common")
    if metric == "map":
        names = run.info.classes
        columns = [probability_column(name) for name in names]
        lacking = [r for r in (run, first) if r.prefix or r.info.classes != names]
        if lacking:
            return Against(run.name, None, f"{lacking[0].name} keeps no probabilities of these labels")
        labels = torch.tensor(
            [[name in run.predictions[path]["label"].split(SEPARATOR) for name in names] for path in shared]
        )
        a, b = (_probabilities(r, shared, columns) for r in (run, first))
        return Against(run.name, compare(a, b, labels.long(), metric))
    places = {label: k for k, label in enumerate({run.predictions[path]["label"] for path in shared})}
    labels = torch.tensor([places[run.predictions[path]["label"]] for path in shared])
    a_right, b_right = (
        torch.tensor([r.prediction(path) == r.predictions[path]["label"] for path in shared])
        for r in (run, first)
    )
    return Against(run.name, compare_right(a_right, b_right, labels, metric))


def _probabilities(run: ComparedRun, paths: Sequence[str], columns: Sequence[str]) -> Tensor:
    return torch.tensor([[float(run.predictions[path][c]) for c in columns] for path in paths])


def _shared_images(run: ComparedRun, first: ComparedRun) -> list[str]:
    """Paths of the images on which both were validated with the same label; none if the data are others."""
    assert run.info.data is not None and first.info.data is not None
    same_root = Path(run.info.data.root or "").resolve() == Path(first.info.data.root or "").resolve()
    if not same_root and run.info.data.fingerprint != first.info.data.fingerprint:
        return []
    return [
        path
        for path, row in run.predictions.items()
        if path in first.predictions and first.predictions[path]["label"] == row["label"]
    ]


def _settings(runs: Sequence[ComparedRun]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The settings, data and versions in which the runs differ."""
    described = []
    for run in runs:
        assert run.info.data is not None
        settings = flatten(run.info.config.to_dict()) if run.info.config is not None else {}
        data = {
            "data": run.info.data.root,
            "training images": run.info.data.train,
            "split": run.info.data.how,
        }
        facts = {"validation images": run.info.data.val, "machine": run.results.machine}
        described.append(settings | data | facts | run.info.versions)
    keys = dict.fromkeys(key for each in described for key in each)
    rows = ((key, tuple(each.get(key) for each in described)) for key in keys)
    return tuple((key, values) for key, values in rows if any(value != values[0] for value in values))


def _sentence(found: Against, first: str, metric: str) -> str:
    difference = found.difference
    if difference is None:
        return f"{found.name} against {first}: {found.why_none}."
    interval = f"95 % interval {difference.low:+.1f} to {difference.high:+.1f}"
    on = f"on the same {difference.images} validation images"
    if difference.decided:
        way = "better" if difference.value > 0 else "worse"
        return (
            f"{found.name} is {way} than {first} by {abs(difference.value):.1f} points of {metric} "
            f"({interval}), {on}."
        )
    needed = difference.images_needed
    told = f"; about {rounded_count(needed):,} would, if the difference stays" if needed is not None else ""
    return (
        f"{difference.images} validation images do not tell {found.name} from {first}: "
        f"{difference.value:+.1f} points of {metric} ({interval}){told}."
    )
