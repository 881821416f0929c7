"""Images/s of the training loop, deitkit's and timm's own token distillation, on a CPU.

    python benchmarks/train_throughput.py [--student nano] [--image-size 128] [--data FOLDER]
        [--batches 10] [--rounds 5] [--workers 2]

Both have the same student (patches of 16 pixels), teacher (EfficientNet-Lite0 at the student's image
size), batch (64), optimizer, EMA, data and augmentation (crop, flip, RandAugment 9/0.5, erasing, mixup,
CutMix). timm's side is its loader with persistent workers and its TokenDistillationTask. It decodes each
image in each epoch; deitkit decodes once before the first, in `decode_seconds`, which images/s do not
include.

`memory_mb` is the peak memory of a side's process and workers, with libraries but without the
memory-mapped files of decoded pixels. The sides take turns, each round in its own process, so that no
workers run in the other side's time; a round is `batches` steps after a warm-up. `stages` are images/s of
each stage of deitkit alone. Run it on a quiet machine. The table goes to stderr; the last line of stdout
is JSON, with medians, extremes and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.task.token_distillation import TokenDistillationTask
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from deitkit import recipes
from deitkit.data.dataset import find_splits
from deitkit.models.deit import VARIANTS
from deitkit.preprocessing import InputSize
from deitkit.teachers.pretrained import Pretrained, backend_builders, choose_backend
from deitkit.teachers.spec import open_member, parse
from deitkit.teachers.teacher import MemberCard, Teacher, TeacherCard, TeacherMember
from deitkit.training.session import open_session
from deitkit.training.student_training import StudentTraining
from provenance import provenance

BATCH = 64


@dataclass(frozen=True)
class Setting:
    """The training that both sides run."""

    student: str
    image_size: int
    data: Path
    workers: int  # of timm's loader
    out: Path


@dataclass(frozen=True)
class Side:
    """One side: `steps(n)` runs n steps and returns the number of images."""

    steps: Callable[[int], int]
    facts: dict[str, Any] = field(default_factory=dict)
    stages: Callable[[int], dict[str, float]] = lambda n: {}  # images/s of each alone, over n batches


def generated(folder: Path) -> Path:
    """Writes 512 JPEGs of 256 x 256 to train/ and 8 to val/, in four classes."""
    rng = np.random.RandomState(0)
    for part, count in (("train", 128), ("val", 2)):
        for k in range(4):
            (folder / part / str(k)).mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(rng.randint(0, 255, (20, 20, 3), dtype=np.uint8))
                coarse.resize((256, 256)).save(folder / part / str(k) / f"{i}.jpg", quality=90)
    return folder


def lite0(image_size: int) -> Pretrained:
    [member] = parse("auto")
    return open_member(member, InputSize(image_size))


def ready_teacher(classes: tuple[str, ...], image_size: int, device: torch.device) -> Teacher:
    """A teacher with a random head: the time is the same."""
    model = lite0(image_size)
    backend = choose_backend(
        backend_builders(model, model.preprocessing, device), model.preprocessing, device, "auto"
    )
    card = MemberCard(
        spec="lite0",
        name="lite0",
        weight=1.0,
        preprocessing=model.preprocessing,
        head="linear",
        columns=None,
        how="",
        params=model.params,
        map_channels=(40, 112),
        finetuned=False,
        backend=backend.name,
    )
    return Teacher(
        TeacherCard(classes, (card,)), [TeacherMember(card, backend, torch.nn.Linear(1280, len(classes)))]
    )


def deitkit_side(setting: Setting, with_teacher: bool, feature_weight: float) -> Side:
    size = setting.image_size
    config = recipes.get("deit").override(
        {
            "student.name": setting.student,
            "student.image_size": size,
            "student.patch_size": 16,
            "student.drop_path_rate": 0.0,
            "data.repeats": 1,
            "train.batch_size": BATCH,
            "distillation.feature_weight": feature_weight,
            "distillation.mode": "hard" if with_teacher else "none",
            "train.device": "cpu",
        }
    )
    session = open_session(config, partial(find_splits, setting.data))
    started = time.perf_counter()
    dataset = session.dataset
    decoding = time.perf_counter() - started  # in the first round only
    images = len(dataset.train.images) + len(dataset.val.images)
    facts: dict[str, Any] = {"decode_seconds": round(decoding, 1), "decode_images": images}
    teacher = None
    if with_teacher:
        teacher = ready_teacher(dataset.classes, size, session.device)
        facts["teacher_backend"] = teacher.backend
    trainer = StudentTraining.of(session, dataset, setting.out, teacher).trainer(epochs=1000)
    make = trainer.data.views.make

    prepared = (ready for epoch in range(1000) for ready in trainer.inputs.prepared(epoch))

    def steps(n: int) -> int:
        images = 0
        for _ in range(n):
            batch, teacher_outputs = next(prepared)
            trainer.step(batch, teacher_outputs)
            images += len(batch.indices)
        return images

    def stages(n: int) -> dict[str, float]:
        plan = trainer.inputs.plan(0)[:n]
        count = sum(len(batch.indices) for batch in plan)
        speeds = {}
        started = time.perf_counter()
        made = [make(batch) for batch in plan]
        speeds["views"] = count / (time.perf_counter() - started)
        started = time.perf_counter()
        outputs = [list(trainer.inputs.teacher_outputs(batch, 0)) for batch in made]
        if with_teacher:
            speeds["teacher"] = count / (time.perf_counter() - started)
        started = time.perf_counter()
        for batch, of_batch in zip(made, outputs, strict=True):
            trainer.step(batch, of_batch)
        speeds["student"] = count / (time.perf_counter() - started)
        return speeds

    return Side(steps, facts, stages)


def timm_loader(data: Path, size: int, workers: int, *, light: bool = False) -> DataLoader:
    """timm's loader of data/train with the published augmentation; light: crop, flip and colour jitter."""
    return create_loader(
        create_dataset("", root=str(data), split="train"),
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        use_prefetcher=False,
        scale=(0.5, 1.0) if light else (0.08, 1.0),
        re_prob=0.0 if light else 0.25,
        re_mode="pixel",
        # mmax9: at level 10 timm 1.0.31 asks Pillow 12 for 0 bits, which it refuses.
        auto_augment=None if light else "rand-m9-mstd0.5-mmax9-inc1",
        color_jitter=0.2 if light else 0.0,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
        use_multi_epochs_loader=True,
    )


def timm_mixup(classes: int) -> Mixup:
    return Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)


def timm_student(name: str, classes: int, size: int) -> torch.nn.Module:
    """timm's distilled student with patches of 16 pixels and the shape of deitkit's variant."""
    shape = VARIANTS[name]
    return timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=classes,
        img_size=size,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
    )


def timm_side(setting: Setting, with_teacher: bool) -> Side:
    size = setting.image_size
    loader = timm_loader(setting.data, size, setting.workers)
    classes = len(loader.dataset.reader.class_to_idx)
    mixup, student = timm_mixup(classes), timm_student(setting.student, classes, size)
    criterion = SoftTargetCrossEntropy()
    task = None
    if with_teacher:
        teacher = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
        teacher.load_state_dict(lite0(size).backbone.model.state_dict(), strict=False)
        options = {"criterion": criterion, "distill_type": "hard", "device": torch.device("cpu")}
        task = TokenDistillationTask(student, teacher, verbose=False, **options)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.05)
    ema = ModelEmaV3(student, decay=0.99996)

    def endless() -> Iterator:
        while True:
            yield from loader

    stream = endless()

    def steps(n: int) -> int:
        seen = 0
        for _ in range(n):
            images, labels = mixup(*next(stream))
            seen += len(images)
            student.train()
            if task is not None:
                loss = task(images, labels)["loss"]
            else:
                output = student(images)
                loss = criterion(output[0] if isinstance(output, tuple) else output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(student)
            loss.item()
        return seen

    return Side(steps, {"workers": setting.workers})


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


SIDES: dict[str, Callable[[Setting], Side]] = {
    "deitkit, teacher": lambda setting: deitkit_side(setting, True, 0.0),
    "timm, teacher": lambda setting: timm_side(setting, True),
    "deitkit, teacher and feature distillation": lambda setting: deitkit_side(setting, True, 2.5),
    "deitkit, no teacher": lambda setting: deitkit_side(setting, False, 0.0),
    "timm, no teacher": lambda setting: timm_side(setting, False),
}


class OwnMemory(threading.Thread):
    """Measures the peak memory of this process and its workers, without mapped files: `peak_mb`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            pids = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
            self.peak_mb = max(self.peak_mb, sum(map(own_memory_mb, pids)))
            time.sleep(0.25)


def own_memory_mb(pid: int | None) -> float:
    """Anonymous and shared memory; shared memory is divided among its processes (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return sum(
        int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem"))
    )


def measure(side: Side, batches: int, memory: OwnMemory) -> None:
    """Prints one side's images/s and memory as JSON, and exits without waiting for workers."""
    side.steps(5)  # warms up, and uses up batches that the loader prefetched
    started = time.perf_counter()
    images = side.steps(batches)
    facts = {"images_per_s": images / (time.perf_counter() - started), "memory_mb": memory.peak_mb}
    stages = {name: round(value, 1) for name, value in side.stages(batches).items()}
    print(json.dumps(facts | side.facts | {"stages": stages}), flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", choices=VARIANTS, default="nano")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; default: generated images")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of timm's loader")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        setting = Setting(options.student, options.image_size, options.data, options.workers, options.out)
        memory = OwnMemory()
        memory.start()
        measure(SIDES[options.side](setting), options.batches, memory)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or generated(Path(folder) / "data")
        arguments = ["--data", str(data), "--batches", str(options.batches), "--out", f"{folder}/run"]
        arguments += ["--workers", str(options.workers), "--student", options.student]
        arguments += ["--image-size", str(options.image_size)]
        cache = os.environ | {"DEITKIT_CACHE": f"{folder}/cache"}
        for _ in range(options.rounds):
            for name in SIDES:
                command = [sys.executable, __file__, *arguments, "--side", name]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=cache)
                rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    found = {}
    for name, rows in rounds.items():
        memory = round(statistics.median(r.pop("memory_mb") for r in rows))
        found[name] = summary([r.pop("images_per_s") for r in rows]) | {"memory_mb": memory} | rows[0]
    for name, row in found.items():
        print(
            f"{name:42} {row['median']:7.1f} images/s  ({row['min']} to {row['max']})  {row['memory_mb']} MB",
            file=sys.stderr,
        )

    def ratio(a: str, b: str) -> float:
        return round(found[a]["median"] / found[b]["median"], 2)

    print(
        json.dumps(
            {"benchmark": "training"}
            | found
            | {
                "student": f"{options.student} at {options.image_size} px",
                "ratio_with_teacher": ratio("deitkit, teacher", "timm, teacher"),
                "ratio_without_teacher": ratio("deitkit, no teacher", "timm, no teacher"),
                **provenance(timm),
            }
        )
    )


if __name__ == "__main__":
    main()
