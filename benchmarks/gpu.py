"""One GPU: limits, training, the whole loop, inference, real results and a start, in at most eight minutes.

    benchmarks/gpu.sh [--part 2] [--data FOLDER] [--out results/gpu/NAME.json]
    benchmarks/gpu.sh --trial                # every part with tiny numbers on a CPU, to see that it runs
    benchmarks/gpu.sh --floor                # the least that each step can take, as a table

FOLDER may hold `imagenette128` and `cifar10`, trained on in part 5, and `photos`, pre-trained on in part 6.
Each part is a process with its own limit of time: one that fails leaves its reason in the JSON, and the
others count. Within a part what matters most is measured first, and what its time does not allow is named.
The JSON goes to stdout as one line, and to --out; a table goes to stderr. docs/gpu.md has the least time
that each part can take, counted on paper.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import deitkit
from cost_growth import write_images
from deitkit import recipes
from deitkit.config import ResolvedConfig
from deitkit.data.cache import Decoder
from deitkit.data.loader import TrainingViews, ViewBatch
from deitkit.data.sampler import Sampler
from deitkit.distillation.objective import Objective
from deitkit.evaluation.speed import wait_for_device
from deitkit.inference.backends import PyTorchBackend
from deitkit.models.deit import create_model
from deitkit.preprocessing import Normalised, Preprocessing
from deitkit.teachers.sources.timm_model import TimmBackbone
from deitkit.teachers.teacher import MemberCard, Teacher, TeacherCard, TeacherMember
from deitkit.training.trainer import Trainer, TrainingData, Validation
from provenance import provenance

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CLASSES = 1000
IMAGENET = Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Scale:
    """The sizes of everything; `TRIAL` is the smallest that still runs."""

    matrix: int = 8192
    copied_mb: int = 1024
    decoded: int = 2048
    students: tuple[str, ...] = ("small", "base", "tiny")
    teachers: tuple[str, ...] = ("regnety_160", "tf_efficientnet_lite0")
    size: int = 224
    batch: int = 256
    steps: int = 20
    warm_up: int = 3
    loop_images: int = 16_384
    inference: tuple[str, ...] = (
        "--models=base,small,tiny",
        "--batch=1,32,256,1024",
        "--rounds=2",
        "--seconds=0.5",
    )
    train_s: int = 60
    sizes: tuple[int, ...] = (128, 224)
    pretrain_s: int = 60
    pretrained: str = "tiny"


REAL = Scale()
TRIAL = Scale(
    matrix=64,
    copied_mb=1,
    decoded=8,
    students=("nano",),
    teachers=("test_efficientnet", "resnet10t"),
    size=32,
    batch=4,
    steps=1,
    warm_up=1,
    loop_images=16,
    inference=("--models=tiny", "--batch=1", "--rounds=1", "--seconds=0.02", "--merge=0"),
    train_s=4,
    sizes=(32,),
    pretrain_s=4,
    pretrained="nano",
)


def seconds(call: Callable[[], object], calls: int, warm_up: int = 3) -> float:
    """Seconds of the median call."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(calls):
        wait_for_device()
        started = time.perf_counter()
        call()
        wait_for_device()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Clock:
    """What a part may still take. Measurements that do not fit are named and left out."""

    def __init__(self, limit: float):
        self.end = time.monotonic() + 0.9 * limit
        self.left_out: list[str] = []

    def measure(self, found: dict[str, Any], name: str, measurement: Callable[[], Any]) -> None:
        """found[name] = measurement(), or why there is none."""
        if time.monotonic() > self.end:
            self.left_out.append(name)
            return
        try:
            found[name] = measurement()
        except Exception as error:  # out of memory, no kernel for this device: the others still count
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(f"  {name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)


# 1: limits


def limits(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """Rates of matrix products, of copies, and of decoding JPEGs on the host."""
    found: dict[str, Any] = {}
    clock.measure(found, "matrix_tflops", lambda: matrix_tflops(scale.matrix))
    clock.measure(found, "copy_gb_per_s", lambda: copy_rates(scale.copied_mb))
    clock.measure(found, "decoded_per_s", lambda: decoded_per_s(scale.decoded, scale.size))
    return found


def matrix_tflops(side: int) -> float:
    """The rate of a product of two square matrices: bf16 on a GPU, else fp32."""
    kind = torch.bfloat16 if ON_GPU else torch.float32
    a, b = (torch.randn(side, side, device=DEVICE, dtype=kind) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10) / 1e12


def copy_rates(megabytes: int) -> dict[str, float]:
    """GB/s within the device, read and written, and from the host's pageable and pinned memory."""
    on_device = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=DEVICE)
    on_host = torch.empty(megabytes * 2**20, dtype=torch.uint8)
    other = torch.empty_like(on_device)
    rates = {"within": 2 * megabytes * 2**20 / seconds(lambda: other.copy_(on_device), 5) / 1e9}
    rates["from pageable memory"] = megabytes * 2**20 / seconds(lambda: other.copy_(on_host), 3) / 1e9
    if ON_GPU:
        pinned = on_host.pin_memory()
        rates["from pinned memory"] = (
            megabytes * 2**20 / seconds(lambda: other.copy_(pinned, non_blocking=True), 3) / 1e9
        )
    return rates


def decoded_per_s(images: int, size: int) -> float:
    """JPEGs of 500 x 375 pixels to training pixels, by as many threads as the host has cores."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.RandomState(0).randint(0, 255, (24, 32, 3), dtype=np.uint8)
        path = Path(folder) / "a.jpg"
        Image.fromarray(pixels).resize((500, 375)).save(path, quality=90)
        decode = Decoder((size * 8 // 7, size * 8 // 7), "resize")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = time.perf_counter()
            for _ in pool.map(lambda _: decode(path), range(images)):
                pass
            return images / (time.perf_counter() - started)


# 2: training


def training(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """Images/s of deitkit's training step and of timm's, on the same synthetic images."""
    tflops = matrix_tflops(scale.matrix)
    found: dict[str, Any] = {"matrix_tflops": tflops, "forward_gflops": {}, "teacher_images_per_s": {}}
    speeds: dict[str, Any] = {}
    for name in scale.students:
        found["forward_gflops"][name] = forward_gflops(name, scale.size)
    for teacher in scale.teachers:
        clock.measure(
            found["teacher_images_per_s"], teacher, lambda t=teacher: scale.batch / teacher_seconds(t, scale)
        )
    for name in scale.students:
        first = scale.teachers[0]
        clock.measure(speeds, f"deitkit {name}", lambda n=name: step_of_deitkit(n, scale))
        clock.measure(speeds, f"timm {name}", lambda n=name: step_of_timm(n, scale))
        clock.measure(
            speeds, f"deitkit {name} distilled, {first}", lambda n=name, t=first: step_of_deitkit(n, scale, t)
        )
        clock.measure(
            speeds, f"timm {name} distilled, {first}", lambda n=name, t=first: step_of_timm(n, scale, t)
        )
    for name in scale.students:
        for teacher in scale.teachers[1:]:
            clock.measure(
                speeds,
                f"deitkit {name} distilled, {teacher}",
                lambda n=name, t=teacher: step_of_deitkit(n, scale, t),
            )
            clock.measure(
                speeds,
                f"deitkit {name} guided, {teacher}",
                lambda n=name, t=teacher: step_of_deitkit(n, scale, t, guided=True),
            )
        larger = replace(scale, batch=4 * scale.batch)
        clock.measure(
            speeds, f"deitkit {name}, batch {larger.batch}", lambda n=name, s=larger: step_of_deitkit(n, s)
        )
    found["steps"] = speeds
    found |= {"share_of_matrix_rate": shares(found), "beside_timm": beside_timm(speeds)}
    return found


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Operations per second of a student's step over the matrix rate; the teacher's time is taken off.

    A step counts as three forward passes.
    """
    result = {}
    for label, speed in found["steps"].items():
        if not label.startswith("deitkit") or "images_per_s" not in speed:
            continue
        name, teacher = label.split()[1].rstrip(","), label.rpartition(", ")[2]
        per_image = 1 / speed["images_per_s"]
        alone = found["teacher_images_per_s"].get(teacher)
        per_image -= 1 / alone if isinstance(alone, float) else 0
        if per_image > 0:
            result[label] = 3e9 * found["forward_gflops"][name] / per_image / (found["matrix_tflops"] * 1e12)
    return result


def beside_timm(speeds: dict[str, Any]) -> dict[str, float]:
    """deitkit's images/s over timm's, of the same step."""
    return {
        label.removeprefix("timm "): speeds[other]["images_per_s"] / theirs["images_per_s"]
        for label, theirs in speeds.items()
        if label.startswith("timm")
        and "images_per_s" in theirs
        and "images_per_s" in speeds.get(other := label.replace("timm", "deitkit"), {})
    }


def forward_gflops(name: str, size: int) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two."""
    with torch.device("meta"):
        model = create_model(name, num_classes=CLASSES, image_size=size)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def measured(step: Callable[[], object], scale: Scale) -> dict[str, float]:
    """Images/s of a step, seconds until the first is done, and the memory that it takes."""
    started = time.perf_counter()
    step()
    wait_for_device()
    first = time.perf_counter() - started
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    speed = scale.batch / seconds(step, scale.steps, scale.warm_up)
    memory = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9} if ON_GPU else {}
    return {"images_per_s": speed, "first_step_s": first, **memory}


def teacher_of(name: str) -> Teacher:
    """A teacher with random weights: its time is the same."""
    torch.manual_seed(0)
    backbone = TimmBackbone(timm.create_model(name, num_classes=0))
    with torch.no_grad():
        pooled, *maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
    precision = torch.bfloat16 if ON_GPU else torch.float32
    backend = PyTorchBackend(
        Normalised(backbone, IMAGENET.mean, IMAGENET.std), DEVICE, precision=precision, channels_last=True
    )
    classes = tuple(map(str, range(CLASSES)))
    card = MemberCard(
        spec=f"timm:{name}",
        name=name,
        weight=1.0,
        preprocessing=IMAGENET,
        head="linear",
        columns=None,
        how="random weights",
        params=sum(p.numel() for p in backbone.parameters()),
        map_channels=tuple(m.shape[1] for m in maps),
        finetuned=False,
        backend=backend.name,
    )
    member = TeacherMember(card, backend, nn.Linear(pooled.shape[1], CLASSES).to(DEVICE))
    return Teacher(TeacherCard(classes, (member.card,)), (member,))


def teacher_seconds(name: str, scale: Scale) -> float:
    teacher = teacher_of(name)
    images = torch.rand(scale.batch, 3, scale.size, scale.size, device=DEVICE)
    return seconds(lambda: teacher(images), max(1, scale.steps // 2))


def trainer_of(name: str, scale: Scale, teacher: Teacher | None, guided: bool, folder: Path) -> Trainer:
    """deitkit's trainer, as `deitkit.train` sets it up, without data of its own."""
    changes: dict[str, Any] = {
        "student.name": name,
        "student.image_size": scale.size,
        "student.patch_size": 16,
        "train.batch_size": scale.batch,
        "train.micro_batch_size": scale.batch,
        "train.epochs": 10,
        "train.loss": "cross-entropy",
        "train.balance": "none",
        "train.metric": "top1",
        "data.workers": 0,
        "distillation.mode": "hard" if teacher is not None else "none",
        "distillation.feature_weight": 1.0 if guided else 0.0,
    }
    config = ResolvedConfig.of(
        recipes.get("deit-distilled" if teacher is not None else "deit").override(changes)
    )
    student = create_model(name, num_classes=CLASSES, image_size=scale.size, drop_path_rate=0.1).to(DEVICE)
    views = TrainingViews(
        None, np.zeros(scale.batch, np.int64), CLASSES, config.augment, (scale.size,) * 2, DEVICE
    )  # type: ignore[arg-type]
    return Trainer(
        student,
        Objective(config.distillation, config.train, teacher=teacher),
        TrainingData(views, Sampler(scale.batch, batch_size=scale.batch, seed=0), 0, [""] * scale.batch),
        Validation(lambda model: {"loss": 0.0}, num_images=0),
        train=config.train,
        optim=config.optim,
        folder=folder,
    )


def step_of_deitkit(
    name: str, scale: Scale, teacher: str | None = None, *, guided: bool = False
) -> dict[str, float]:
    """`Trainer.step` on views that are on the device, the teacher's outputs included."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, scale, teacher_of(teacher) if teacher else None, guided, Path(folder))
        images, labels = synthetic(scale)
        targets = nn.functional.one_hot(labels, CLASSES).float()
        batch = ViewBatch(images, targets, np.arange(scale.batch))
        return measured(lambda: trainer.step(batch), scale)


def step_of_timm(name: str, scale: Scale, teacher: str | None = None) -> dict[str, float]:
    """timm's model in its best conditions: bf16, compiled, fused AdamW; hard distillation as in DeiT."""
    ours = create_model(name, num_classes=CLASSES, image_size=scale.size)
    model: Any = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=CLASSES,
        img_size=scale.size,
        embed_dim=ours.embed_dim,
        depth=ours.depth,
        num_heads=ours.num_heads,
        drop_path_rate=0.1,
    )
    model.set_distilled_training(True)
    model = model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    forward = torch.compile(model) if ON_GPU else model
    images, labels = synthetic(scale)
    network: Any = None
    if teacher is not None:
        network = timm.create_model(teacher).to(DEVICE, memory_format=torch.channels_last).eval()
        network = torch.compile(network) if ON_GPU else network

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
            answers = labels
            if network is not None:
                with torch.no_grad():
                    answers = network(images.to(memory_format=torch.channels_last)).argmax(1)
            first, second = forward(images)
            loss = (
                nn.functional.cross_entropy(first, labels) + nn.functional.cross_entropy(second, answers)
            ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return measured(step, scale)


def synthetic(scale: Scale) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) in [0, 1] and labels (B,), on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(scale.batch, 3, scale.size, scale.size, generator=generator)
    return images.to(DEVICE), torch.randint(0, CLASSES, (scale.batch,), generator=generator).to(DEVICE)


# 3: the whole loop


def loop(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """`deitkit.train` from JPEGs, without a teacher, beside the same step on synthetic images."""
    name = scale.students[0]
    found: dict[str, Any] = {"student": name}
    clock.measure(found, "synthetic", lambda: step_of_deitkit(name, scale))
    clock.measure(found, "epochs", lambda: epochs_of(name, scale))
    if "failed" not in found["epochs"][-1] and "images_per_s" in found["synthetic"]:
        found["ratio"] = found["epochs"][-1]["images_per_s"] / found["synthetic"]["images_per_s"]
    return found


def epochs_of(name: str, scale: Scale) -> list[dict[str, float]]:
    """Images/s and seconds of each of three epochs; the first is after decoding."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEITKIT_CACHE"] = f"{folder}/cache"
        images = write_images(Path(folder) / "data", scale.loop_images, 8)
        started = time.perf_counter()
        deitkit.train(
            images,
            Path(folder) / "run",
            recipe="deit",
            train__epochs=3,
            train__batch_size=scale.batch,
            student__name=name,
            student__image_size=scale.size,
            student__patch_size=16,
            student__initial_weights="none",
            teacher__spec="none",
            distillation__mode="none",
        )
        whole = time.perf_counter() - started
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        epochs = [{key: json.loads(line)[key] for key in ("images_per_s", "seconds")} for line in lines]
        return [{"whole_job_s": whole}, *epochs]


# 4: inference


def inference(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """benchmarks/inference.py, and the share of the matrix rate of each model's fastest forward passes."""
    device = "cuda" if ON_GPU else "cpu"
    command = [
        sys.executable,
        str(Path(__file__).with_name("inference.py")),
        f"--device={device}",
        *scale.inference,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-1000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    tflops = matrix_tflops(scale.matrix)
    found["share_of_matrix_rate"] = {
        f"{name}, batch {batch}": max(
            row["images_per_s"] for row in model["rows"] if row["batch"] == batch and "deitkit" in row["side"]
        )
        * forward_gflops(name, 224)
        / (1000 * tflops)
        for name, model in found["models"].items()
        for batch in sorted({row["batch"] for row in model["rows"]})
    }
    return found


# 5: real results


def results(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """The default recipe on Imagenette, and CIFAR-10 from scratch: accuracy and seconds."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        where, small = Path(folder), None
        if scale is TRIAL:
            small = write_images(where / "images", 24, 2)
        for size in scale.sizes:
            images = small or named(data, "imagenette128")
            settings = {
                "student__image_size": size,
                "train__budget_s": scale.train_s,
                "teacher__deploy_sizes": None,
            }
            if scale is TRIAL:
                settings |= {"teacher__spec": "none"}
            if images is None:
                found[f"imagenette at {size} px"] = {"skipped": "no imagenette128 in --data"}
            else:
                clock.measure(
                    found,
                    f"imagenette at {size} px",
                    lambda i=images, s=settings, o=size: trained(i, where / f"{o}", s),
                )
        images = small or named(data, "cifar10")
        settings = {"student__image_size": 32, "student__patch_size": 4, "student__initial_weights": "none"}
        settings |= {"teacher__spec": "none", "distillation__mode": "none", "train__budget_s": scale.train_s}
        if images is None:
            found["cifar10 from scratch"] = {"skipped": "no cifar10 in --data"}
        else:
            clock.measure(found, "cifar10 from scratch", lambda: trained(images, where / "cifar10", settings))
    return found


def trained(images: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    run = deitkit.train(images, out, **settings)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "top1": run.results["student"]["top1"],
        "whole_job_s": time.perf_counter() - started,
        "training_s": sum(line["seconds"] for line in lines),
        "epochs": len(lines),
        "images_per_s": lines[-1]["images_per_s"],
    }


def named(data: Path | None, name: str) -> Path | None:
    return data / name if data is not None and (data / name).is_dir() else None


# 6: a start


def start(scale: Scale, clock: Clock, data: Path | None) -> dict[str, Any]:
    """Pre-trains on photographs for what is left of the time; the weights stay under results/gpu/."""
    with tempfile.TemporaryDirectory() as folder:
        photos, out = named(data, "photos"), Path("results/gpu/start")
        settings: dict[str, Any] = {"student__name": scale.pretrained, "train__budget_s": scale.pretrain_s}
        if scale is TRIAL:
            photos, out = write_images(Path(folder) / "photos", 24, 2), Path(folder) / "start"
            weights = Path(folder) / "teacher.pth"
            torch.save(timm.create_model("test_efficientnet").state_dict(), weights)
            settings |= {"teacher__spec": f"timm:test_efficientnet@{weights}", "student__image_size": 32}
            settings |= {"teacher__image_size": 32, "student__patch_size": 8}
        if photos is None:
            return {"skipped": "no photos in --data"}
        began = time.perf_counter()
        run = deitkit.pretrain([photos], out, **settings)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        return {
            "agreement_with_teacher": run.results["student"]["top1"],
            "epochs": len(lines),
            "images_per_s": last["images_per_s"],
            "seconds": time.perf_counter() - began,
            "weights": "" if scale is TRIAL else str(out),
        }


# Goals


def _distilled(found: dict[str, Any], name: str) -> float | None:
    label = f"deitkit {name} distilled, {REAL.teachers[0]}"
    share: float | None = found["training"]["share_of_matrix_rate"].get(label)
    return share


# What is measured, the goal, and where its value stands in the JSON.
GOALS: list[tuple[str, float, Callable[[dict[str, Any]], float | None]]] = [
    (
        "small distilled, share of the matrix rate without the teacher's time",
        0.45,
        lambda f: _distilled(f, "small"),
    ),
    (
        "base distilled, share of the matrix rate without the teacher's time",
        0.45,
        lambda f: _distilled(f, "base"),
    ),
    ("training of small, times timm's", 1.3, lambda f: f["training"]["beside_timm"].get("small")),
    ("training of base, times timm's", 1.3, lambda f: f["training"]["beside_timm"].get("base")),
    (
        "training of small without a teacher, images/s on an H100",
        10_000,
        lambda f: f["training"]["steps"]["deitkit small"]["images_per_s"],
    ),
    ("whole loop from JPEGs, times synthetic images", 0.95, lambda f: f["loop"]["ratio"]),
    (
        "inference of base at batch 256, share of the matrix rate",
        0.45,
        lambda f: f["inference"]["share_of_matrix_rate"].get("base, batch 256"),
    ),
]


def against_goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with its value; None where the programme did not get that far."""
    rows = []
    for what, goal, value in GOALS:
        try:
            rows.append({"what": what, "goal": goal, "measured": value(found)})
        except (KeyError, TypeError):
            rows.append({"what": what, "goal": goal, "measured": None})
    return rows


# On paper

FLOOR_TFLOPS, FLOOR_TB_PER_S = 800.0, 3.0  # of an H100: dense bf16 products, memory


def floor_table(scale: Scale) -> str:
    """Markdown: operations and bytes of each step, and the least seconds that they take.

    A training step is three forward passes. Its bytes: what autograd keeps for the backward pass, written and
    read once in bf16, and per parameter 44: weights in bf16 twice, the gradient written and read, and
    weights, both moments and the average read and written in fp32.
    """
    rows = []
    for name in ("tiny", "small", "base"):
        flops, kept, parameters = (
            1e9 * forward_gflops(name, scale.size),
            kept_bytes(name, scale.size),
            count(name),
        )
        rows.append(
            (f"{name}, a training step", 3 * flops * scale.batch, 2 * kept * scale.batch + 44 * parameters)
        )
        for batch in (1, scale.batch):
            image = 2 * 3 * scale.size**2
            rows.append((f"{name}, a forward pass of {batch}", flops * batch, 2 * parameters + image * batch))
    for name in scale.teachers:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            model = timm.create_model(name).eval()
            model(torch.empty(1, 3, scale.size, scale.size))
        size = sum(p.numel() for p in model.parameters())
        flops = counter.get_total_flops() * scale.batch
        rows.append(
            (f"{name}, a forward pass of {scale.batch}", flops, 2 * size + 6 * scale.size**2 * scale.batch)
        )
    lines = ["| | TFLOP | GB | least ms | bound by | images/s at most |", "|---|---|---|---|---|---|"]
    for what, flops, size in rows:
        products, memory = flops / (1e12 * FLOOR_TFLOPS), size / (1e12 * FLOOR_TB_PER_S)
        least, bound = max((products, "products"), (memory, "memory"))
        images = 1 if what.endswith(" of 1") else scale.batch
        lines.append(
            f"| {what} | {flops / 1e12:.3g} | {size / 1e9:.3g} | {1000 * least:.3g} | {bound} "
            f"| {float(f'{images / least:.2g}'):,.0f} |"
        )
    return "\n".join(lines)


def count(name: str) -> int:
    with torch.device("meta"):
        return create_model(name, num_classes=CLASSES).num_params


def kept_bytes(name: str, size: int) -> float:
    """What autograd keeps of one image's forward pass, in bf16, without parameters and attention weights,
    which a fused kernel does not keep."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        attention = whole.ndim > 2 and whole.shape[-1] == whole.shape[-2]
        if not (attention or isinstance(whole, nn.Parameter)):
            kept[id(whole)] = whole
        return tensor

    with torch.device("meta"):
        model = create_model(name, num_classes=CLASSES, image_size=size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(torch.empty(1, 3, size, size))
    assert output.class_logits.grad_fn is not None
    return 2 * sum(tensor.numel() for tensor in kept.values())


# The programme


@dataclass(frozen=True)
class Part:
    measure: Callable[[Scale, Clock, Path | None], dict[str, Any]]
    limit_s: int


PARTS = {
    1: Part(limits, 30),
    2: Part(training, 150),
    3: Part(loop, 60),
    4: Part(inference, 90),
    5: Part(results, 150),
    6: Part(start, 120),
}
WHOLE_S = 480
TRIAL_S = 600  # a part, on a CPU that may be busy


def run_part(number: int, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """The JSON of a part's own process, or why there is none."""
    command = [sys.executable, __file__, "--part", str(number), "--inside", f"--limit={limit}"]
    command += ["--trial"] if options.trial else []
    command += [f"--data={options.data}"] if options.data is not None else []
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"ran longer than {limit:.0f} s"}
    if done.returncode:
        return {"failed": f"ended with status {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", type=int, choices=list(PARTS), help="only this one")
    parser.add_argument("--trial", action="store_true", help="tiny numbers")
    parser.add_argument("--floor", action="store_true", help="the least that each step can take")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = TRIAL if options.trial else REAL
    if options.floor:
        print(floor_table(scale))
        return
    if not (ON_GPU or options.trial):
        raise SystemExit("there is no GPU here; --trial runs every part with tiny numbers on the CPU")
    torch.set_float32_matmul_precision("high")
    if options.inside:
        part, clock = PARTS[options.part], Clock(options.limit)
        found = part.measure(scale, clock, options.data)
        print(json.dumps(found | ({"left_out": clock.left_out} if clock.left_out else {})))
        return
    began, parts = time.monotonic(), {}
    for number, part in PARTS.items():
        if options.part in (None, number):
            left = TRIAL_S if options.trial else min(part.limit_s, WHOLE_S - (time.monotonic() - began))
            name = part.measure.__name__
            print(f"{number} {name}", file=sys.stderr, flush=True)
            started = time.monotonic()
            parts[name] = run_part(number, options, left) | {"part_s": round(time.monotonic() - started, 1)}
    document = {"benchmark": "gpu", "goals": against_goals(parts), **parts, **provenance(timm, on_gpu=ON_GPU)}
    for row in document["goals"]:
        print(f"{row['what']}: {row['measured']} (goal {row['goal']})", file=sys.stderr)
    text = json.dumps(document)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
