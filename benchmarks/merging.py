"""What token merging costs a trained model in accuracy and gains in speed, on each backend of a CPU.

    python benchmarks/merging.py RUN [RUN ...] [--merges 8 16 24 32] [--batch 32] [--rounds 3]
        [--backends pytorch onnxruntime openvino]

Runs `deitkit bench RUN --merge R` for R = 0 and each of the merges, in turns over the rounds, so that a
machine that slows down slows all of them. Top-1 is the joint classifier's on the run's validation images
(at most 1000). Run it on a quiet machine. The table goes to stderr; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deitkit
from deitkit.deploy.benchmark import bench
from provenance import provenance


def measured(
    run: Path, merges: Sequence[int], batch: int, rounds: int, backends: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per backend and number of merged tokens, in fp32."""
    speeds: dict[tuple[str, int], list[float]] = {}
    top1: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for merge in merges:
            for row in bench(str(run), batches=[batch], backends=backends, merge=merge, rounds=2):
                if row.precision == "fp32":
                    side = (row.backend, merge)
                    speeds.setdefault(side, []).append(row.turns.latency.images_per_s)
                    top1[side] = row.score
    rows = []
    for (backend, merge), values in speeds.items():
        whole = speeds[backend, 0]
        ratios = [a / b for a, b in zip(values, whole, strict=True)]
        rows.append(
            {
                "backend": backend,
                "merge": merge,
                "images_per_s": round(statistics.median(values), 1),
                "speedup": round(statistics.median(ratios), 2),
                "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
                "top1": round(top1[backend, merge], 2),
                "top1_lost": round(top1[backend, 0] - top1[backend, merge], 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--merges", type=int, nargs="+", default=[8, 16, 24, 32])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=["pytorch", "onnxruntime", "openvino"])
    options = parser.parse_args()
    runs = []
    for run in options.runs:
        size = "x".join(str(side) for side in deitkit.load(run).model.image_size)
        merges = [0, *options.merges]
        rows = measured(run, merges, options.batch, options.rounds, options.backends)
        runs.append({"run": run.name, "image_size": size, "batch": options.batch, "rows": rows})
        for row in rows:
            print(json.dumps(row), file=sys.stderr)
    print(
        json.dumps(
            {
                "benchmark": "merging",
                "runs": runs,
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
