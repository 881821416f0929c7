"""The results of a study's finished runs, as rows of numbers; written as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io import write_text
from ..run_folder import RESULTS, read_info, read_results
from .description import Row
from .plan import StudyJob


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A row of `runs.csv`: one finished run. Accuracies in percent; None if a run has no such number."""

    arm: str
    seed: int
    top1: float | None
    top1_class: float | None = None
    top1_distill: float | None = None
    top5: float | None = None
    teacher: str | None = None
    teacher_top1: float | None = None
    params: int | None = None
    images_per_s: float | None = None
    teacher_images_per_s: float | None = None
    image_size: int | None = None
    train_images: int | None = None
    val_images: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    weights: str = ""
    machine: str = ""
    date: str = ""

    def number(self, column: str) -> float | None:
        """The value of a column that holds numbers."""
        value: float | None = getattr(self, column)
        return value


COLUMNS = tuple(field.name for field in dataclasses.fields(RunRecord))


@dataclass(frozen=True)
class MeasuredRow:
    """A row of the table: its values by seed, and the runs behind them."""

    row: Row
    values: dict[int, float]
    records: tuple[RunRecord, ...]

    def mean_of(self, column: str) -> float:
        """The mean of another column; the teacher's column if the row is about the teacher."""
        about_teacher = self.row.metric.startswith("teacher_") and f"teacher_{column}" in COLUMNS
        name = f"teacher_{column}" if about_teacher else column
        return sum(record.number(name) or 0.0 for record in self.records) / len(self.records)


def is_finished(folder: Path) -> bool:
    """Whether a run is finished: its results are written last."""
    return (folder / RESULTS).exists()


def read_records(job: StudyJob) -> list[RunRecord]:
    """One record per finished run, in the order of arms and seeds."""
    runs = [(arm.name, seed) for arm in job.study.arms_of(job.preset) for seed in job.seeds]
    return [
        _record(arm, seed, job.folder(arm, seed)) for arm, seed in runs if is_finished(job.folder(arm, seed))
    ]


def measure_rows(rows: Sequence[Row], records: Sequence[RunRecord]) -> list[MeasuredRow]:
    """The rows of the table that have a value for at least one seed."""
    found = []
    for row in rows:
        own = [(r, r.number(row.metric)) for r in records if r.arm == row.arm]
        values = {r.seed: value for r, value in own if value is not None}
        if values:
            found.append(MeasuredRow(row, values, tuple(r for r, value in own if value is not None)))
    return found


def write_csv(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes one row per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, records))
    write_text(path, text.getvalue())


def _record(arm: str, seed: int, folder: Path) -> RunRecord:
    results, info = read_results(folder), read_info(folder)
    student, teacher = results.student, results.teacher
    return RunRecord(
        arm=arm,
        seed=seed,
        top1=student.scores["top1"],
        top1_class=student.scores["top1_class"],
        top1_distill=student.scores["top1_distill"],
        top5=student.scores["top5"],
        teacher=teacher.name if teacher else None,
        teacher_top1=teacher.scores["top1"] if teacher else None,
        params=student.params,
        images_per_s=round(student.images_per_s, 1),
        teacher_images_per_s=teacher.images_per_s if teacher else None,
        image_size=info.preprocessing.image_size[0],
        train_images=info.data.train if info.data else None,
        val_images=results.val.images,
        epochs=results.train.epochs,
        seconds=round(results.train.job_seconds or 0.0, 1),
        weights=results.weights,
        machine=results.machine,
        date=results.date,
    )
