"""How cost grows: an epoch with images and classes, memory with batch and resolution, listing, start-up.

    python benchmarks/cost_growth.py [--images 1000,3000,10000] [--classes 10,100,1000] [--files 200000]
        [--batches 8,16,32,64] [--sizes 64,128,224] [--out results/throughput/cost-growth]

Generated images, a nano student without a teacher. Each memory point has its own process. Writes OUT.json
and OUT.png; the last line of stdout is the JSON. `exponent` is the slope on logarithmic axes: 1 is
linear, 0 constant.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deitkit.data.folder import scan
from deitkit.evaluation.speed import peak_memory_mb
from deitkit.models.deit import create_model
from deitkit.training.run import train
from provenance import provenance

SIDE = 40  # pixels of a generated image


def write_images(folder: Path, images: int, classes: int) -> Path:
    """Writes `images` JPEGs to train/ and two per class to val/, spread evenly over the classes."""
    rng = np.random.RandomState(0)
    for k in range(classes):
        for part, count in (("train", images // classes), ("val", 2)):
            (folder / part / f"{k:05d}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.randint(0, 255, (5, 5, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((SIDE, SIDE)).save(folder / part / f"{k:05d}" / f"{i}.jpg")
    return folder


def epoch_seconds(images: int, classes: int) -> float:
    """The median of three epochs, without validation."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEITKIT_CACHE"] = f"{folder}/cache"
        data = write_images(Path(folder) / "data", images, classes)
        settings = {"student__name": "nano", "teacher__spec": "none", "distillation__mode": "none"}
        train(data, Path(folder) / "run", train__epochs=3, student__image_size=32, **settings)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        return statistics.median(json.loads(line)["seconds"] for line in lines)


def training_memory_mb(batch: int, size: int) -> float:
    """Peak memory of three steps of the nano student, without libraries."""
    before = peak_memory_mb()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model("nano", num_classes=10, image_size=size).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        output = model(torch.randn(batch, 3, size, size, device=device))
        loss = output.class_logits.square().mean() + output.distill_logits.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return peak_memory_mb() - before


def in_own_process(what: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--memory", what], stdout=subprocess.PIPE, check=True, text=True
    )
    return float(done.stdout.split()[-1])


def listing_seconds(files: int, classes: int = 1000) -> float:
    """Seconds to list small files that were just written, so with warm caches."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for k in range(classes):
            (root / f"{k:04d}").mkdir()
            for i in range(files // classes):
                (root / f"{k:04d}" / f"{i}.jpg").write_bytes(b"x")
        started = time.perf_counter()
        scan(root, root)
        return time.perf_counter() - started


def help_seconds() -> float:
    """Seconds of `deitkit --help`, the median of seven."""
    times = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "deitkit", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def exponent(points: list[tuple[float, float]]) -> float | None:
    """The slope of log cost over log size."""
    if len(points) < 2:
        return None
    x, y = np.log([p[0] for p in points]), np.log([max(p[1], 1e-9) for p in points])
    return round(float(np.polyfit(x, y, 1)[0]), 2) + 0.0  # no -0.0


def plot(series: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(series), figsize=(4 * len(series), 3.2), layout="constrained")
    for axis, (name, one) in zip(axes, series.items(), strict=True):
        axis.loglog(*zip(*one["points"], strict=True), "o-")
        axis.set(xlabel=one["of"], ylabel=one["unit"], title=f"{name}, exponent {one['exponent']}")
        costs = [cost for _, cost in one["points"]]
        axis.set_ylim(min(costs) / 2, max(costs) * 2)  # so that a constant looks constant
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=numbers, default=[1000, 3000, 10_000])
    parser.add_argument("--classes", type=numbers, default=[10, 100, 1000])
    parser.add_argument("--files", type=numbers, default=[2000, 20_000, 200_000])
    parser.add_argument("--batches", type=numbers, default=[8, 16, 32, 64])
    parser.add_argument("--sizes", type=numbers, default=[64, 128, 224])
    parser.add_argument("--out", type=Path, default=Path("results/throughput/cost-growth"))
    parser.add_argument("--memory", type=numbers, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        print(training_memory_mb(*options.memory))
        return
    fewest = max(options.classes) * 2
    measured = {
        "epoch against images": ("images", "s", [(n, epoch_seconds(n, 10)) for n in options.images]),
        "epoch against classes": (
            f"classes, {fewest} images",
            "s",
            [(k, epoch_seconds(fewest, k)) for k in options.classes],
        ),
        "memory against batch": (
            "batch at 128 px",
            "MB",
            [(b, in_own_process(f"{b},128")) for b in options.batches],
        ),
        "memory against resolution": (
            "pixels a side, batch 16",
            "MB",
            [(s, in_own_process(f"16,{s}")) for s in options.sizes],
        ),
        "listing files": ("files", "s", [(n, listing_seconds(n)) for n in options.files]),
    }
    series = {
        name: {"of": of, "unit": unit, "points": points, "exponent": exponent(points)}
        for name, (of, unit, points) in measured.items()
    }
    found = {
        "benchmark": "cost-growth",
        "series": series,
        "help_seconds": help_seconds(),
        **provenance(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plot(series, options.out.with_suffix(".png"))
    options.out.with_suffix(".json").write_text(json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
