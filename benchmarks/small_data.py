"""What makes a small student accurate on little data? Trains arms over seeds and writes a table.

    python benchmarks/small_data.py ARM [ARM ...] --data FOLDER --name NAME [--epochs N] [--split blocks]
        [--fraction 0.05] [--eval-fraction 1] [--seeds 0 1 2] [--inside] [--unlabeled FOLDER]
        [--recipe hybrid]

An ARM is one of those below; section.key=value, joined by commas, over the recipe (small-data); or
"unlabeled", the recipe with FOLDER as unlabelled images. The split is the same for all seeds and arms. To
choose a setting, use --inside: it sets aside the images that are reported on, splits the rest again and
compares arms there. Rows are appended to results/small-data/NAME.csv (or NAME-inside.csv); an arm and
seed that is in it is not run again. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import deitkit
from deitkit import recipes
from deitkit.config import RENAMED
from deitkit.data.dataset import find_splits
from rows import append_row

ARMS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "baseline": {"distillation.mode": "none"},  # the same initial weights, without a teacher
    "scratch": {"student.initial_weights": "none"},
    "scratch, baseline": {"student.initial_weights": "none", "distillation.mode": "none"},
    # The paper's distillation: hard labels on the token in all steps, nothing else.
    "scratch, plain": {
        "student.initial_weights": "none",
        "student.init_scheme": "published",
        "distillation.mode": "hard",
        "distillation.distill_until": 1.0,
        "distillation.feature_weight": 0.0,
    },
    # One setting of the recipe changed or switched off.
    "no feature distillation": {"distillation.feature_weight": 0.0},
    "teacher to the end": {"distillation.distill_until": 1.0, "distillation.feature_until": 1.0},
    "hard": {"distillation.mode": "hard"},
    "DIST": {"distillation.mode": "dist", "distillation.temperature": 1.0},
    "standardised": {"distillation.standardise": True},
    "stronger views": {"augment.mixup": 0.8, "augment.cutmix": 1.0, "augment.crop_scale": (0.25, 1.0)},
}
# Arms of rows that version 0.1 wrote.
RENAMED_ARMS = {
    "control": "baseline",
    "scratch, control": "scratch, baseline",
    "no guidance": "no feature distillation",
}
FIELDS = [
    "data",
    "arm",
    "seed",
    "epochs",
    "train_images",
    "val_images",
    "teacher",
    "student",
    "class",
    "distill",
    "weights",
    "seconds",
    "student_images_per_s",
    "student_backend",
    "teacher_images_per_s",
    "teacher_backend",
    "machine",
    "versions",
    "date",
]


def settings_of(arm: str, unlabeled: Path | None) -> dict[str, Any]:
    if arm == "unlabeled":
        return {"data.unlabeled": str(unlabeled)}
    if arm in ARMS:
        return ARMS[arm]
    return dict(item.split("=", 1) for item in arm.split(","))


def training_part(data: Path, split: str, folder: Path) -> Path:
    """A folder of links to the training images of the reported split."""
    config = recipes.get("small-data").override({"data.split": split, "data.split_seed": 0})
    images = find_splits(data, config.data).train
    for i, label in enumerate(images.labels):
        source = images.file(i).resolve()
        link = folder / images.classes[label] / source.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    return folder


def rows_in(table: Path) -> list[dict[str, Any]]:
    """The rows of a table, with the current names of their arms."""
    if not table.exists():
        return []
    with open(table, newline="") as file:
        return [row | {"arm": present_name(row["arm"])} for row in csv.DictReader(file)]


def present_name(arm: str) -> str:
    for old, new in RENAMED.items():
        arm = arm.replace(f"{old}=", f"{new}=")
    return RENAMED_ARMS.get(arm, arm)


def row_of(name: str, arm: str, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    student, teacher, train = found["student"], found["teacher"] or {}, found["train"]
    values = (
        *(name, arm, seed, train["epochs"], train["images"] // train["epochs"], found["val"]["images"]),
        *(teacher.get("top1"), student["top1"], student["top1_class"], student["top1_distill"]),
        *(found["weights"], round(train["seconds"]), round(student["images_per_s"]), student["backend"]),
        *(round(teacher["images_per_s"]) if teacher else None, teacher.get("backend")),
        *(found["machine"], f"deitkit {deitkit.__version__}, torch {torch.__version__}", found["date"]),
    )
    rounded = (round(v, 4) if isinstance(v, float) else v for v in values)
    return dict(zip(FIELDS, rounded, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--recipe", default="small-data")
    parser.add_argument("--epochs", default="auto")
    parser.add_argument("--split", default="stratified")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training images")
    parser.add_argument("--eval-fraction", type=float, default=1.0, help="share of the validation images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--unlabeled", type=Path)
    parser.add_argument("--inside", action="store_true", help="compare inside the training images")
    parser.add_argument("arms", nargs="+", metavar="ARM")
    options = parser.parse_args()
    if "unlabeled" in options.arms and options.unlabeled is None:
        parser.error("the arm unlabeled needs --unlabeled FOLDER")
    name = f"{options.name}-inside" if options.inside else options.name
    table = Path("results/small-data") / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_in(table)
    held = {
        "train.epochs": options.epochs,
        "data.split": options.split,
        "data.split_seed": 0,
        "data.train_fraction": options.fraction,
        "data.eval_fraction": options.eval_fraction,
        "teacher.deploy_sizes": "none",  # this is about students
    }
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if options.inside:
            data = training_part(data, options.split, Path(scratch) / "data")
        for seed in options.seeds:
            for arm in options.arms:
                if any((r["arm"], int(r["seed"])) == (arm, seed) for r in rows):
                    continue
                settings = held | {"train.seed": seed} | settings_of(arm, options.unlabeled)
                out = Path(scratch) / f"{len(rows)}"
                rows.append(row_of(name, arm, seed, trained(data, out, options.recipe, settings)))
                append_row(table, FIELDS, rows[-1])
    print(json.dumps({arm: summary([r for r in rows if r["arm"] == arm]) for arm in options.arms}))


def trained(data: Path, out: Path, recipe: str, settings: dict[str, Any]) -> dict[str, Any]:
    return deitkit.train(data, out, recipe=recipe, **settings).results


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tops = [float(r["student"]) for r in rows]
    spread = statistics.stdev(tops) if len(tops) > 1 else None
    return {"seeds": len(tops), "top1": statistics.mean(tops), "deviation": spread}


if __name__ == "__main__":
    main()
