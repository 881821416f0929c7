"""Packs a pre-trained run as the initial weights that come with deitkit for its student.

    deitkit pretrain FOLDER [FOLDER ...] --out RUN
    python examples/pack_weights.py RUN

Writes the weights in half precision, without a hybrid's stem, which comes with a package of its own, and a
JSON card that says how they were trained, with the card of the packed weights that the run itself started
from. docs/pretraining.md is the model card.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from deitkit import weights
from deitkit.io import read_json, write_tensors, write_text
from deitkit.run_folder import read_info, read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    info, results = read_info(options.run), read_results(options.run)
    if info.config is None or info.data is None or info.teacher is None:
        raise SystemExit(f"{options.run} is no run of deitkit pretrain; give the --out folder of one")
    file = weights.shipped_file(info.student.name)
    file.parent.mkdir(exist_ok=True)
    kept = {k: v.half() for k, v in weights.read(options.run).items() if not k.startswith(weights.STEM)}
    write_tensors(file, kept)
    card = {
        "student": asdict(info.student),
        "teacher": asdict(info.teacher),
        "images": info.data.train,
        "epochs": results.train.epochs,
        "seconds": round(results.train.seconds),
        "agreement": results.student.scores["top1"],  # with the teacher, in percent of the held-out images
        "machine": results.machine,
        "versions": info.versions,
        "date": results.date,
    }
    packed = file.with_suffix(".json")
    if info.config.student.initial_weights == f"{weights.SHIPPED}{info.student.name}":
        card["started_from"] = read_json(packed)
    write_text(packed, json.dumps(card, indent=1) + "\n")
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
