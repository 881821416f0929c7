"""Equal accuracy for less work? Trains variants that save work, and plots accuracy against seconds.

    python benchmarks/efficiency.py --data FOLDER --out results/efficiency/NAME --epochs 60
        --image-size 64 --patch-size 8 --start-size 40 [--seeds 0 1 2] [--arms full both]
        [--set data.split=blocks]

All arms train the recipe `small-data` for the same epochs on the same split, and take turns, so that a
machine that slows down slows all of them. Run it on a quiet machine. Seconds are those of the steps, with
views and teacher but without decoding, fitting the teacher and evaluation. The same command resumes an
interrupted one. OUT gets runs.csv (a row per run), curves.csv (a row per measurement), efficiency.svg and
efficiency.json, which is also the last line of stdout. For a test of two minutes, which measures nothing,
take one epoch, one seed and `--set data.train_fraction=0.2`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

import deitkit
from provenance import provenance

# The same numbers give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "deitkit", "svg.fonttype": "none", "font.size": 9})
BASE = "full"


def arms(start_size: str) -> dict[str, dict[str, Any]]:
    """The settings of each arm that differ from the recipe."""
    progressive = {"train.start_size": start_size, "train.start_share": 0.8}
    dropping = {"student.patch_drop_rate": 0.5}
    return {
        BASE: {},
        "progressive": progressive,
        "patch dropping": dropping,
        "both": progressive | dropping,
        "stochastic depth": {"student.drop_path_rate": 0.3},
        "teacher to the end": {"distillation.distill_until": 1.0, "distillation.feature_until": 1.0},
    }


def train(data: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, which is trained or resumed unless it is finished."""
    if not (folder / "results.json").exists():
        deitkit.train(data, folder, recipe="small-data", resume=True, **settings)
    return json.loads((folder / "results.json").read_text())


def curve_of(folder: Path, weights: str) -> list[dict[str, Any]]:
    """Seconds of training and top-1 at each measurement of the weights that were saved."""
    seconds, points = 0.0, []
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        seconds += line["seconds"]
        measured = line.get("val_ema" if weights == "ema" else "val")
        if measured is not None:
            points.append(
                {"epoch": line["epoch"], "seconds": round(seconds, 2), "top1": round(measured["top1"], 2)}
            )
    return points


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and spread of each arm's top-1 and seconds, and both relative to the base arm, paired by seed."""
    base = {row["seed"]: row for row in rows if row["arm"] == BASE}
    found: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        pairs = [(row, base[row["seed"]]) for row in own if row["seed"] in base]
        found[arm] = {"seeds": [row["seed"] for row in own]}
        for key in ("top1", "seconds"):
            values = [row[key] for row in own]
            found[arm][key] = round(statistics.mean(values), 2)
            found[arm][f"{key}_std"] = round(statistics.stdev(values), 2) if len(values) > 1 else None
        if pairs:
            found[arm]["top1_gained"] = round(statistics.mean(a["top1"] - b["top1"] for a, b in pairs), 2)
            found[arm]["seconds_ratio"] = round(
                statistics.mean(a["seconds"] / b["seconds"] for a, b in pairs), 3
            )
    return found


def draw(path: Path, curves: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """Faint lines are runs during training; a point is an arm at the end, with one std over seeds."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds of training", ylabel="top-1 on validation, %")
    for i, (arm, found) in enumerate(summary(rows).items()):
        for seed in found["seeds"]:
            points = [p for p in curves if (p["arm"], p["seed"]) == (arm, seed)]
            axes.plot(
                [p["seconds"] for p in points], [p["top1"] for p in points], color=f"C{i}", lw=0.7, alpha=0.5
            )
        bars = {"xerr": found["seconds_std"], "yerr": found["top1_std"]}
        axes.errorbar(found["seconds"], found["top1"], **bars, fmt="o", color=f"C{i}", label=arm)
    axes.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--image-size", default="64", help="pixels: N or HxW")
    parser.add_argument("--patch-size", default="8", help="pixels: N or HxW")
    parser.add_argument(
        "--start-size", default="40", help="pixels: N or HxW, of the first 80 %% of the updates"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=arms("0"), default=list(arms("0")))
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value, for all arms")
    options = parser.parse_args()
    shared = {
        "student.image_size": options.image_size,
        "student.patch_size": options.patch_size,
        "student.initial_weights": "none",
        "data.split_seed": 0,
        "train.epochs": options.epochs,
    } | dict(item.split("=", 1) for item in options.set)
    asked = json.dumps({"data": str(options.data.resolve()), "start": options.start_size, **shared}, indent=1)
    options.out.mkdir(parents=True, exist_ok=True)
    note = options.out / "settings.json"
    if note.exists() and note.read_text() != asked:
        sys.exit(f"{options.out} holds runs with other settings ({note}); choose another --out")
    note.write_text(asked)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for seed in options.seeds:
        for arm in options.arms:
            folder = options.out / "runs" / arm.replace(" ", "-") / f"seed-{seed}"
            settings = shared | arms(options.start_size)[arm] | {"train.seed": seed}
            found = train(options.data, folder, settings)
            points = curve_of(folder, found["weights"])
            facts = {"arm": arm, "seed": seed}
            curves += [facts | point for point in points]
            top1, seconds = round(found["student"]["top1"], 2), points[-1]["seconds"]
            teacher = found["teacher"] and round(found["teacher"]["top1"], 2)
            more = {key: found[key] for key in ("weights", "machine", "date")}
            rows.append(facts | {"top1": top1, "seconds": seconds, "teacher": teacher} | more)
            write_table(options.out / "runs.csv", rows)
            write_table(options.out / "curves.csv", curves)
            draw(options.out / "efficiency.svg", curves, rows)
    found = {
        "benchmark": "efficiency",
        "data": options.out.name,
        "epochs": options.epochs,
        "arms": summary(rows),
        **provenance(),
    }
    (options.out / "efficiency.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
