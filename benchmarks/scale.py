"""The time of a step against the number of processes: measured, fitted, and projected.

    python benchmarks/scale.py measure --out results/scale/steps.json     # on a quiet machine
    python benchmarks/scale.py fit results/scale/steps.json
    python benchmarks/scale.py project

The model, for N processes that share a batch of B images and a student of P parameters in 4 bytes each:

    seconds = start + ceil(B / N) image + 2 (N - 1) message + 2 (N - 1) / N x 4 P / bandwidth

start: of a step, whatever it holds. image: one image, teacher and views included. message: latency of one of
the 2 (N - 1) messages of a ring all-reduce; bandwidth: bytes per second between neighbours in the ring
(Patarasuk and Yuan, 2009). The exchange is not hidden behind the backward pass, as deitkit does not hide it.

`measure` runs torchrun on this machine, where processes compete for cores: the model is for processes that do
not. With N processes on C cores, `image` is counted max(1, N / C) times.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
SIDE, PATCH = 32, 4
STUDENTS = {"nano": (4, 8, 16, 32), "tiny": (4, 8, 16)}  # images of a step


@dataclass(frozen=True)
class Model:
    """See the module's docstring. Seconds, and bytes per second."""

    start: float
    image: float
    message: float
    bandwidth: float

    def seconds(self, images: int, processes: int, parameters: float) -> float:
        exchange = 2 * (processes - 1)
        moved = exchange / processes * 4 * parameters / self.bandwidth
        return self.start + math.ceil(images / processes) * self.image + exchange * self.message + moved


# Measuring


def worker(steps: int) -> None:
    """Times steps of several sizes; what torchrun starts."""
    import torch

    from deitkit import distributed
    from deitkit.models import create_model

    torch.set_num_threads(1)
    rows = []
    for name, sizes in STUDENTS.items():
        student = create_model(name, num_classes=10, image_size=SIDE, patch_size=PATCH).train()
        parameters = list(student.parameters())
        for size in sizes:
            mine = len(distributed.share(size, unit=2))
            images, times = torch.randn(mine, 3, SIDE, SIDE), []
            for _ in range(steps + 2):
                distributed.barrier()
                began = time.perf_counter()
                student.zero_grad(set_to_none=False)
                if mine:
                    student(images).class_logits.sum().backward()
                computed = time.perf_counter()
                distributed.sum_up([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
                times.append((time.perf_counter() - began, computed - began))
            step, compute = np.median(np.array(times[2:]), 0)
            rows.append(
                {
                    "student": name,
                    "parameters": sum(p.numel() for p in parameters),
                    "images": size,
                    "processes": distributed.world_size(),
                    "seconds": float(step),
                    "computing": float(compute),
                }
            )
    if distributed.is_main():
        print(json.dumps(rows))


def measure(out: Path, steps: int) -> None:
    from provenance import provenance

    rows: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    load = os.getloadavg()[0]
    for processes in (1, 2, 4):
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command = [*launch, __file__, "worker", "--steps", str(steps)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(done.stdout.splitlines()[-1])
        print(f"{processes} processes measured", file=sys.stderr)
    facts = {"cores": os.cpu_count(), "load_before": load, **provenance()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts | {"rows": rows}, indent=1))


# Fitting


def fit(rows: list[dict[str, Any]], cores: int) -> tuple[Model, NDArray[np.float64]]:
    """The model with the least squares of relative errors, and those errors. Numbers below 0 count as 0."""

    def terms(row: dict[str, Any]) -> list[float]:
        n, busy = row["processes"], max(1.0, row["processes"] / cores)
        cost = row["parameters"] / smallest  # an image of a larger student costs more, in proportion
        return [
            1.0,
            math.ceil(row["images"] / n) * cost * busy,
            2 * (n - 1),
            2 * (n - 1) / n * 4 * row["parameters"],
        ]

    smallest = min(row["parameters"] for row in rows)
    seconds = np.array([row["seconds"] for row in rows])
    weighed = np.array([terms(row) for row in rows]) / seconds[:, None]
    kept = [0, 1, 2, 3]
    found = np.zeros(4)
    while kept:  # a small non-negative least squares: leave out the most negative until none is
        solved = np.linalg.lstsq(weighed[:, kept], np.ones(len(rows)), rcond=None)[0]
        if (solved >= 0).all():
            found[kept] = solved
            break
        kept.pop(int(solved.argmin()))
    errors = weighed @ found - 1
    bandwidth = 1 / found[3] if found[3] > 0 else math.inf
    return Model(found[0], found[1], found[2], bandwidth), errors


def print_fit(file: Path) -> None:
    measured = json.loads(file.read_text())
    model, errors = fit(measured["rows"], measured["cores"])
    print(f"start {1e3 * model.start:.2f} ms, an image of the smallest student {1e3 * model.image:.2f} ms,")
    print(f"a message {1e3 * model.message:.2f} ms, {model.bandwidth / 1e9:.2f} GB/s;")
    sizes = 100 * np.abs(errors)
    print(f"error of a step: median {np.median(sizes):.0f} %, at most {sizes.max():.0f} %")


# Projecting

PARAMETERS = {"tiny": 5.9e6, "small": 22.4e6, "base": 87.3e6}  # of the distilled students, arXiv 2012.12877
# Multiply-adds of an image at 224 pixels, in 10^9.
MACS = {"tiny": 1.3, "small": 4.6, "base": 17.6}
FORWARD_V100 = {"base": 292.3, "regnety_160": 334.7}  # images/s in float32, table 5
PUBLISHED_HOURS, PUBLISHED_GPUS = 53.0, 8  # DeiT-B, 300 epochs of ImageNet-1k, section 5.6
IMAGENET, EPOCHS = 1_281_167, 300
IMAGE_BYTES = 110_000
NVLINK_V100 = 130e9  # bytes per second around a ring of eight V100, as NCCL's tests report
ETHERNET = 12.5e9  # 100 Gbit/s


def published_rate() -> float:
    """Images per second and GPU that the published time needs."""
    return IMAGENET * EPOCHS / (PUBLISHED_HOURS * 3600) / PUBLISHED_GPUS


def project() -> None:
    rate = published_rate()
    flops = 3 * 2 * MACS["base"] * 1e9 * rate
    speedup = rate / (FORWARD_V100["base"] / 3)
    exchange = 2 * 7 / 8 * 4 * PARAMETERS["base"] / NVLINK_V100
    step = 1024 / 8 / rate
    print(f"DeiT-B in {PUBLISHED_HOURS:.0f} hours on eight V100: {rate:.0f} images/s for each,")
    print(f"  {flops / 1e12:.0f} TFLOP/s, {100 * flops / 125e12:.0f} % of a V100's 125 in mixed precision,")
    print(f"  {speedup:.1f} times a third of its published float32 forward rate;")
    print(f"  a step takes {1e3 * step:.0f} ms, its exchange {1e3 * exchange:.1f} ms")
    print("\n| job, DeiT-B on V100 | GPUs | batch | step, ms | exchanged | hours | images, MB/s |")
    print("|---|---|---|---|---|---|---|")
    jobs = [
        ("ImageNet-1k, 300 epochs", IMAGENET * EPOCHS, 1024, 1),
        ("ImageNet-1k, 300 epochs", IMAGENET * EPOCHS, 1024, 8),
        ("ImageNet-1k, 300 epochs", IMAGENET * EPOCHS, 1024, 64),
        ("ImageNet-1k, 300 epochs", IMAGENET * EPOCHS, 8192, 64),
        ("14 M images, 90 epochs", 14_000_000 * 90, 8192, 64),
        ("1 B images, once", 1_000_000_000, 8192, 64),
    ]
    for name, images, batch, gpus in jobs:
        bandwidth = NVLINK_V100 if gpus <= 8 else ETHERNET
        model = Model(0.0, 1 / rate, 10e-6, bandwidth)
        seconds = model.seconds(batch, gpus, PARAMETERS["base"])
        share = 1 - math.ceil(batch / gpus) / rate / seconds
        hours = images / batch * seconds / 3600
        read = batch / seconds * IMAGE_BYTES / 1e6
        cells = [f"{1e3 * seconds:.0f}", f"{100 * share:.0f} %", f"{hours:.0f}", f"{read:.0f}"]
        print(f"| {name} | {gpus} | {batch} | {' | '.join(cells)} |")
    teacher = FORWARD_V100["regnety_160"]
    for name, views in (("300 epochs of ImageNet-1k", IMAGENET * EPOCHS), ("1 B views", 1e9)):
        print(f"label pass under RegNetY-16GF in float32, {name}: {views / teacher / 3600:.0f} V100 hours")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    measuring = verbs.add_parser("measure")
    measuring.add_argument("--out", type=Path, required=True)
    measuring.add_argument("--steps", type=int, default=20)
    verbs.add_parser("fit").add_argument("file", type=Path)
    verbs.add_parser("project")
    verbs.add_parser("worker").add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.verb == "measure":
        measure(options.out, options.steps)
    elif options.verb == "fit":
        print_fit(options.file)
    elif options.verb == "worker":
        worker(options.steps)
    else:
        project()


if __name__ == "__main__":
    main()
