"""Which settings of the small-data recipe help? Trains variants on a split inside the training images.

    python benchmarks/small_data_search.py --data FOLDER --name NAME --epochs N [--split blocks]
        [--seeds 0] VARIANT [VARIANT ...]

A VARIANT is one or more section.key=value joined by commas, over the recipe; `recipe` is the recipe
itself. The images that `benchmarks/small_data.py` reports on are set aside first and never opened: the
rest is split again, and the variants are compared there. Rows are appended to
results/small-data/search.csv; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import deitkit
from deitkit import recipes
from deitkit.prepare import find_splits

FIELDS = [
    "data",
    "variant",
    "seed",
    "epochs",
    "train_images",
    "val_images",
    "teacher",
    "student",
    "class",
    "distill",
    "weights",
    "images_per_s",
    "machine",
    "date",
]


def training_part(data: Path, split: str, folder: Path) -> Path:
    """A folder of links to the images that the reported split trains on."""
    config = recipes.get("small-data").override({"data.split": split, "data.split_seed": 0})
    images = find_splits(data, config).train
    for i, label in enumerate(images.labels):
        source = images.full_path(i).resolve()
        link = folder / images.classes[label] / source.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source)
    return folder


def settings_of(variant: str) -> dict[str, str]:
    if variant == "recipe":
        return {}
    pairs = [item.split("=", 1) for item in variant.split(",") if "=" in item]
    return {key: value for key, value in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--split", default="stratified")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()
    table = Path("results/small-data/search.csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = training_part(options.data, options.split, Path(scratch) / "data")
        for variant in options.variants:
            for seed in options.seeds:
                settings = {"train.epochs": options.epochs, "train.seed": seed, "data.split": options.split}
                out = Path(scratch) / f"run-{len(rows)}"
                r = deitkit.train(data, out, **settings | settings_of(variant)).results
                student, train = r["student"], r["train"]
                values = (
                    *(options.name, variant, seed, train["epochs"], train["images"] // train["epochs"]),
                    *(r["val"]["images"], r["teacher"] and round(r["teacher"]["top1"], 1)),
                    *(round(student[k], 1) for k in ("top1", "top1_class")),
                    student["top1_distill"] and round(student["top1_distill"], 1),
                    *(r["weights"], round(train["images_per_s"]), r["machine"], r["date"]),
                )
                rows.append(dict(zip(FIELDS, values, strict=True)))
                new = not table.exists()
                with open(table, "a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if new:
                        writer.writeheader()
                    writer.writerow(rows[-1])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
