"""Packs a pre-trained run as the weights that come with deitkit for its student.

    deitkit pretrain FOLDER [FOLDER ...] --out RUN
    python examples/pack_start.py RUN

Writes half-precision weights and, beside them, how they came about as JSON (docs/pretraining.md is the
model card), with the card of the packed weights that the run itself started from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deitkit import weights
from deitkit.io import write_tensors, write_text
from deitkit.weights.initial import shipped_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    config = json.loads((options.run / "config.json").read_text(encoding="utf-8"))
    results = json.loads((options.run / "results.json").read_text(encoding="utf-8"))
    file = shipped_file(config["student"]["name"])
    file.parent.mkdir(exist_ok=True)
    write_tensors(file, {key: tensor.half() for key, tensor in weights.read(options.run).items()})
    card = {
        "student": config["student"],
        "teacher": config["teacher"],
        "images": config["data"]["train"],
        "epochs": results["train"]["epochs"],
        "seconds": round(results["train"]["seconds"]),
        "agreement": results["student"]["top1"],  # with the teacher, in percent of the held-out images
        "machine": results["machine"],
        "versions": config["versions"],
        "date": results["date"],
    }
    packed = file.with_suffix(".json")
    if config["config"]["student"]["init"] == f"deitkit:{config['student']['name']}":
        card["started_from"] = json.loads(packed.read_text(encoding="utf-8"))
    write_text(packed, json.dumps(card, indent=1) + "\n")
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
