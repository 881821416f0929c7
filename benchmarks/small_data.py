"""Does the distilled student beat its control? Trains both over seeds and writes a table.

    python benchmarks/small_data.py --data FOLDER --name NAME --epochs N [--split blocks] [--seeds 0 1 2]

Each seed trains the default recipe and, without a teacher, the same student for the same epochs. The
split stays the same over the seeds. Rows are appended to results/small-data/NAME.csv, where a seed that
is there with the same epochs and settings is not run again; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path

import deitkit

FIELDS = [
    "data",
    "seed",
    "epochs",
    "train_images",
    "val_images",
    "teacher",
    "student",
    "class",
    "distill",
    "control",
    "student_images_per_s",
    "teacher_images_per_s",
    "train_seconds",
    "weights",
    "machine",
    "date",
    "settings",
]


def row_of(name: str, seed: int, settings: dict, run: deitkit.Run) -> dict:
    r = run.results
    values = (
        name,
        seed,
        r["train"]["epochs"],
        r["train"]["images"] // r["train"]["epochs"],
        r["val"]["images"],
        r["teacher"]["top1"],
        r["student"]["top1"],
        r["student"]["top1_class"],
        r["student"]["top1_distill"],
        r["control"]["top1"],
        round(r["student"]["images_per_s"]),
        round(r["teacher"]["images_per_s"]),
        round(r["train"]["seconds"]),
        r["weights"],
        r["machine"],
        r["date"],
        json.dumps(settings),
    )
    return dict(zip(FIELDS, (round(v, 2) if isinstance(v, float) else v for v in values), strict=True))


def finished(table: Path, epochs: int, settings: dict, seeds: list[int]) -> list[dict]:
    """The rows of `table` that need not be run again."""
    if not table.exists():
        return []
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    same = [r for r in rows if int(r["epochs"]) == epochs and r["settings"] == json.dumps(settings)]
    return [row for row in same if int(row["seed"]) in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--split", default="stratified")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value")
    options = parser.parse_args()
    settings = dict(item.split("=", 1) for item in options.set)
    table = Path("results/small-data") / f"{options.name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows = finished(table, options.epochs, settings, options.seeds)
    for seed in options.seeds:
        if seed in {int(row["seed"]) for row in rows}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = deitkit.train(
                options.data,
                Path(folder) / "run",
                **{"train.epochs": options.epochs, "train.seed": seed, "train.control": True},
                **{"data.split": options.split, "data.split_seed": 0},
                **settings,
            )
            rows.append(row_of(options.name, seed, settings, run))
        new = not table.exists()
        with open(table, "a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(rows[-1])
    gaps = [float(r["student"]) - float(r["control"]) for r in rows]
    tops = ([float(row[who]) for row in rows] for who in ("student", "control"))
    spread = max(statistics.stdev(values) for values in tops) if len(rows) > 1 else None
    print(json.dumps({"gaps": gaps, "mean_gap": statistics.mean(gaps), "spread": spread}))


if __name__ == "__main__":
    main()
