"""Accuracy against seconds: timm's token distillation and `deitkit train`, side by side.

    python benchmarks/beside_timm.py --data FOLDER --out FILE.json [--timm-epochs 8]
        [--ours "4" "2 student.initial_weights=none"] [--image-size 128] [--seeds 0 1 2]

Both train the same student (nano, patches of 16 pixels) on the same data under the same teacher
(EfficientNet-Lite0; the folder's classes must be ImageNet's, named by their WordNet ids).

- timm: its loader, its TokenDistillationTask with hard labels, its EMA and a cosine schedule that ends at
  zero. `--timm-views` chooses light views (crop and flip) or the published ones (RandAugment, mixup,
  CutMix, erasing). Its seconds are those of the steps only.
- deitkit: one `deitkit.train` per entry of `--ours`, which is a number of epochs and settings. Its
  seconds are those of the whole job: decoding into an empty cache, fitting the teacher, training,
  evaluation, report.

`share_of_timms_seconds` refers to the timm run of the same seed. FILE is written after each run, and runs
that are in it are not repeated. The sides run one after the other, so run it on a quiet machine. The last
line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.token_distillation import TokenDistillationTask
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import deitkit
from deitkit.io import write_json
from deitkit.teachers.classes import match_classes
from provenance import provenance
from train_throughput import BATCH, lite0, timm_loader, timm_mixup, timm_student

RATE = 1e-3


class OwnClasses(nn.Module):
    """EfficientNet-Lite0 with the logits of the folder's classes, as a teacher for timm's task."""

    def __init__(self, classes: tuple[str, ...], size: int):
        super().__init__()
        whole = lite0(size)
        columns = match_classes(classes, whole.outputs)
        if columns is None or whole.backbone is None or whole.head is None:
            sys.exit("the folder's classes must be among ImageNet's, called by their WordNet ids")
        self.net, self.head, self.columns = whole.backbone.model, whole.head, list(columns)
        # timm's task normalises the student's views with these.
        self.pretrained_cfg = {"mean": whole.preprocessing.mean, "std": whole.preprocessing.std}

    def forward(self, images: Tensor) -> Tensor:
        features = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return self.head(features)[:, self.columns]


def timm_run(data: Path, epochs: int, views: str, size: int, seed: int) -> dict[str, Any]:
    """Trains with timm; the joint classifier's top-1 with raw and averaged weights, and seconds."""
    torch.manual_seed(seed)
    light = views == "light"
    loader = timm_loader(data, size, workers=1, light=light)
    classes = tuple(loader.dataset.reader.class_to_idx)
    mixup = timm_mixup(len(classes))
    criterion = LabelSmoothingCrossEntropy(0.1) if light else SoftTargetCrossEntropy()
    student = timm_student("nano", len(classes), size)
    teacher = OwnClasses(classes, size)
    options = {"criterion": criterion, "distill_type": "hard", "device": torch.device("cpu")}
    task = TokenDistillationTask(student, teacher, verbose=False, **options)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.05)
    total = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / (0.1 * total), 0.5 + 0.5 * math.cos(math.pi * n / total))
    )
    average = ModelEmaV3(student, decay=0.998, use_warmup=True)
    spent, curve = 0.0, []
    for epoch in range(epochs):
        started = time.perf_counter()
        student.train()
        for images, labels in loader:
            loss = task(*((images, labels) if light else mixup(images, labels)))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update(student)
        spent += time.perf_counter() - started
        top1 = max(accuracy(model, data, size) for model in (student, average.module))
        curve.append({"epoch": epoch + 1, "seconds": round(spent, 1), "top1": round(top1, 2)})
        print(f"timm, epoch {epoch + 1}: {top1:.1f} % after {spent:.0f} s", file=sys.stderr, flush=True)
    return {"top1": curve[-1]["top1"], "seconds": round(spent, 1), "curve": curve}


@torch.no_grad()
def accuracy(student: nn.Module, data: Path, size: int) -> float:
    """Top-1 in % on the folder's val/, whole images at `size` pixels."""
    loader = create_loader(
        create_dataset("", root=str(data), split="val"),
        input_size=(3, size, size),
        batch_size=BATCH,
        use_prefetcher=False,
        crop_pct=1.0,
        interpolation="bicubic",
        num_workers=1,
        device=torch.device("cpu"),
    )
    student.eval()
    right = [(student(images).argmax(-1) == labels) for images, labels in loader]
    return 100 * torch.cat(right).float().mean().item()


def our_run(data: Path, how: str, size: int, seed: int) -> dict[str, Any]:
    """One `deitkit.train` with an empty cache; the joint classifier's top-1 with the saved weights."""
    epochs, *settings = how.split()
    changes = dict(item.split("=", 1) for item in settings)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEITKIT_CACHE"] = f"{folder}/cache"
        started = time.perf_counter()
        run = deitkit.train(
            data,
            Path(folder) / "run",
            **{
                "student.name": "nano",
                "student.image_size": size,
                "student.patch_size": 16,
                "train.epochs": epochs,
                "train.seed": seed,
                **changes,
            },
        )
        spent = time.perf_counter() - started
        teacher = run.results["teacher"]
        return {
            "top1": round(run.results["student"]["top1"], 2),
            "seconds": round(spent, 1),
            "training_seconds": round(run.results["train"]["seconds"], 1),
            "teacher_top1": round(teacher["top1"], 2) if teacher else None,
        }


def in_its_own_process(one: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(one)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:  # its message was printed
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def wanted(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for seed in options.seeds:
        shared = {"data": str(options.data.resolve()), "size": options.image_size, "seed": seed}
        yield shared | {"side": "timm", "how": f"{options.timm_epochs} {options.timm_views}"}
        for how in options.ours:
            yield shared | {"side": "deitkit", "how": how}


def key_of(one: dict[str, Any]) -> dict[str, Any]:
    return {k: one[k] for k in ("side", "how", "size", "seed")}


def make(one: dict[str, Any]) -> dict[str, Any]:
    data, how, size, seed = Path(one["data"]), one["how"], one["size"], one["seed"]
    if one["side"] == "timm":
        epochs, views = how.split()
        return timm_run(data, int(epochs), views, size, seed)
    return our_run(data, how, size, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--timm-epochs", type=int, default=8)
    parser.add_argument("--timm-views", choices=["light", "published"], default="light")
    parser.add_argument("--ours", nargs="+", default=["4", "2 student.initial_weights=none"])
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(make(json.loads(options.one))), flush=True)
        return
    if options.data is None or options.out is None:
        parser.error("give --data and --out")
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    for one in wanted(options):
        key = key_of(one)
        if one["side"] == "timm":
            timms = key
        if any(key.items() <= run.items() for run in found["runs"]):
            continue
        run = key | in_its_own_process(one)
        full = next(r for r in [*found["runs"], run] if timms.items() <= r.items())
        run["share_of_timms_seconds"] = round(run["seconds"] / full["seconds"], 3)
        found = {
            "benchmark": "beside timm",
            "data": options.data.name,
            **provenance(timm),
            "runs": [*found["runs"], run],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, found)
        print(f"{run['side']} {run['how']}: {run['top1']} % in {run['seconds']} s", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
