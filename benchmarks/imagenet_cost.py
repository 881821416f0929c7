"""The cost of a run on ImageNet-1k: from a measured step to hours on 1, 8 and 64 GPUs.

    python benchmarks/imagenet_cost.py STEP.json [--epochs 300]

STEP.json has what was measured on one GPU, teacher and data included, {"seconds_per_step": 0.21,
"images_per_step": 256}, and optionally "scaling", the share of that speed that each of several GPUs
keeps. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from deitkit.study.cost import imagenet_cost


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", type=Path)
    parser.add_argument("--epochs", type=int, default=300)
    options = parser.parse_args()
    step = json.loads(options.step.read_text())
    rows = imagenet_cost(
        step["seconds_per_step"],
        step["images_per_step"],
        epochs=options.epochs,
        scaling=step.get("scaling", 1.0),
    )
    for row in rows:
        print(f"{row['gpus']:>3} GPUs: {row['hours']:8.1f} h, {row['gpu_hours']:8.1f} GPU hours")
    print(json.dumps({"epochs": options.epochs, "step": step, "cost": rows}))


if __name__ == "__main__":
    main()
