"""What finished runs found, as rows of numbers: read from their folders, written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io import read_json, write_text
from .description import Row, Study
from .plan import run_folder

COLUMNS = (
    *("arm", "seed", "top1", "top1_class", "top1_distill", "top5", "teacher", "teacher_top1"),
    *("params", "images_per_s", "teacher_images_per_s", "image_size", "train_images", "val_images"),
    *("epochs", "seconds", "weights", "machine", "date"),
)
Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A row of the table: its values by seed, and the runs behind them."""

    row: Row
    values: dict[int, float]
    records: tuple[Record, ...]

    def mean_of(self, column: str) -> float:
        """The mean of another column; the teacher's own where the row is about the teacher."""
        about_teacher = self.row.metric.startswith("teacher_") and f"teacher_{column}" in COLUMNS
        name = f"teacher_{column}" if about_teacher else column
        return float(sum(record[name] for record in self.records) / len(self.records))


def is_finished(folder: Path) -> bool:
    """Whether a run has ended: its results are written last."""
    return (folder / "results.json").exists()


def read_records(study: Study, preset: str, out: Path, seeds: Sequence[int]) -> list[Record]:
    """One record a finished run, in the order of arms and seeds."""
    folders = [(arm.name, seed) for arm in study.arms_of(preset) for seed in seeds]
    return [_record(arm, seed, run_folder(out, arm, seed)) for arm, seed in folders if _there(out, arm, seed)]


def measure_rows(study: Study, preset: str, records: Sequence[Record]) -> list[Measured]:
    """The rows of the table that have a value at one seed at least."""
    found = []
    for row in study.rows_of(preset):
        own = tuple(r for r in records if r["arm"] == row.arm and r[row.metric] is not None)
        if own:
            found.append(Measured(row, {r["seed"]: r[row.metric] for r in own}, own))
    return found


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Writes one line a run; empty where a run has no such number."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text(path, text.getvalue())


def _there(out: Path, arm: str, seed: int) -> bool:
    return is_finished(run_folder(out, arm, seed))


def _record(arm: str, seed: int, folder: Path) -> Record:
    results = read_json(folder / "results.json")
    config = read_json(folder / "config.json")
    student, teacher = results["student"], results["teacher"] or {}
    return {
        "arm": arm,
        "seed": seed,
        **{key: student[key] for key in ("top1", "top1_class", "top1_distill", "top5", "params")},
        "images_per_s": round(student["images_per_s"], 1),
        "teacher": teacher.get("name"),
        "teacher_top1": teacher.get("top1"),
        "teacher_images_per_s": teacher.get("images_per_s"),
        "image_size": config["preprocessing"]["image_size"][0],
        "train_images": config["data"]["train"],
        "val_images": results["val"]["images"],
        "epochs": results["train"]["epochs"],
        "seconds": round(results["train"]["job_seconds"], 1),
        **{key: results[key] for key in ("weights", "machine", "date")},
    }
