"""Training on one GPU: the matrix rate, steps on synthetic images, the teacher alone, the loop on JPEGs.

    python benchmarks/gpu_training.py [--models small,base] [--batch 256] [--steps 20] [--images 8192]
        [--size 224]

deitkit's and timm's model run the same step (bf16, compiled, fused AdamW, both heads) in turns; the share
of the measured matrix rate counts a step as three forward passes. The teacher (RegNetY-16GF, random
weights: the time is the same) is timed alone. The loop is the last epoch of `deitkit.train` on generated
JPEGs, without a teacher. The last line of stdout is JSON. Without a GPU everything runs on the CPU in
fp32, as a test only: give small numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cost_growth import write_images
from deitkit.evaluation.speed import wait_for_device
from deitkit.models.deit import create_model
from deitkit.training.run import train
from provenance import provenance

CLASSES = 1000
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def seconds(call: Callable[[], object], calls: int) -> float:
    """Seconds of the median call, after three to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(calls):
        wait_for_device()
        started = time.perf_counter()
        call()
        wait_for_device()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def matrix_tflops(side: int) -> float:
    """The rate of a product of two square matrices: bf16 on a GPU, else fp32."""
    kind = torch.bfloat16 if ON_GPU else torch.float32
    a, b = (torch.randn(side, side, device=DEVICE, dtype=kind) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10) / 1e12


def forward_flops(name: str, size: int) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two."""
    with torch.device("meta"):
        model = create_model(name, num_classes=CLASSES, image_size=size)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def update_of(model: nn.Module, batch: int, size: int) -> Callable[[], None]:
    """One step of a model with two heads on images that are on the device."""
    model = model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=ON_GPU)
    forward: Any = torch.compile(model) if ON_GPU else model
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    labels = torch.randint(0, CLASSES, (batch,), device=DEVICE)

    def update() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
            first, second, *_ = forward(images)
            loss = nn.functional.cross_entropy(first, labels) + nn.functional.cross_entropy(second, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return update


def synthetic(name: str, options: argparse.Namespace, tflops: float) -> dict[str, float]:
    """Images/s of deitkit and timm, and deitkit's share of the matrix rate."""
    ours = create_model(name, num_classes=CLASSES, image_size=options.size)
    shape = {"img_size": options.size, "embed_dim": ours.embed_dim, "depth": ours.depth}
    theirs = timm.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=CLASSES, num_heads=ours.num_heads, **shape
    )
    theirs.set_distilled_training(True)
    speeds = {}
    for who, model in (("deitkit", ours), ("timm", theirs)):
        speeds[who] = options.batch / seconds(update_of(model, options.batch, options.size), options.steps)
    share = 3 * forward_flops(name, options.size) * speeds["deitkit"] / (tflops * 1e12)
    return {f"{who}_images_per_s": speed for who, speed in speeds.items()} | {"share_of_matrix_rate": share}


def teacher_images_per_s(options: argparse.Namespace) -> float:
    """Images/s of the teacher's forward pass, as training runs it."""
    teacher = timm.create_model(options.teacher).to(DEVICE, memory_format=torch.channels_last).eval()
    images = torch.randn(options.batch, 3, options.size, options.size, device=DEVICE)
    images = images.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
            teacher(images)

    return options.batch / seconds(forward, max(1, options.steps // 2))


def loop_images_per_s(name: str, options: argparse.Namespace) -> float:
    """Images/s of the last epoch of a training, with decoding and augmentation."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEITKIT_CACHE"] = f"{folder}/cache"
        data = write_images(Path(folder) / "data", options.images, 8)
        settings = {"student__name": name, "student__image_size": options.size, "student__patch_size": 16}
        settings |= {"teacher__spec": "none", "distillation__mode": "none"}
        train(
            data,
            Path(folder) / "run",
            recipe="deit",
            train__epochs=2,
            train__batch_size=options.batch,
            **settings,
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["images_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="small,base")
    parser.add_argument("--teacher", default="regnety_160")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    tflops = matrix_tflops(options.matrix)
    names = options.models.split(",")
    found = {
        "benchmark": "gpu-training",
        "matrix_tflops": tflops,
        "forward_gflops": {n: forward_flops(n, options.size) / 1e9 for n in ("tiny", "small", "base")},
        "synthetic": {name: synthetic(name, options, tflops) for name in names},
        "teacher": {"name": options.teacher, "images_per_s": teacher_images_per_s(options)},
        "loop": {names[0]: {"images_per_s": loop_images_per_s(names[0], options)}},
        **provenance(timm, on_gpu=ON_GPU),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
