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
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg

import deitkit
from cost_growth import write_images
from deitkit import recipes
from deitkit.config import ResolvedConfig
from deitkit.data.cache import Decoder
from deitkit.data.loader import ViewBatch
from deitkit.data.sampler import Sampler
from deitkit.distillation.objective import Objective
from deitkit.evaluation.speed import images_per_s, kept_values, wait_for_device
from deitkit.inference.backends import PyTorchBackend
from deitkit.models.deit import create_model
from deitkit.models.token_merging import TokenMerging
from deitkit.preprocessing import Normalised, Preprocessing
from deitkit.teachers.sources.timm_model import TimmBackbone
from deitkit.teachers.teacher import MemberCard, Teacher, TeacherCard, TeacherMember
from deitkit.training.step_inputs import TrainingData
from deitkit.training.trainer import _COMPILED_FROM as STEPS
from deitkit.training.trainer import Trainer, Validation
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
    seconds: float = 2.0  # a step or forward pass is measured for so long
    loop_images: int = 16_384
    loop_epochs: int = 16  # enough steps for deitkit.train to compile
    batches: tuple[int, ...] = (256, 1, 32, 1024)
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
    seconds=0.01,
    loop_images=16,
    loop_epochs=2,
    batches=(2,),
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


def compiled(call: Any, graphs: bool = False) -> Any:
    """As deitkit compiles; traced only on a CPU, where a trial would take long. graphs: as CUDA graphs."""
    if not ON_GPU:
        return torch.compile(call, dynamic=False, backend="aot_eager")
    return torch.compile(call, dynamic=False, mode="reduce-overhead" if graphs else None)


class Clock:
    """What a part has found, and the time that it has left.

    Each measurement is reported at once, so that a part which is ended by its limit keeps what it has.
    Measurements that do not fit are named and left out. derive: what follows from what was found so far.
    """

    def __init__(self, limit: float):
        self.end = time.monotonic() + 0.9 * limit
        self.found: dict[str, Any] = {}
        self.derive: Callable[[], dict[str, Any]] = dict

    def measure(self, where: dict[str, Any], name: str, measurement: Callable[[], Any]) -> None:
        """where[name] = measurement(), or why there is none; `where` is `found` or within it."""
        if time.monotonic() > self.end:
            self.found.setdefault("left_out", []).append(name)
            return
        try:
            where[name] = measurement()
        except Exception as error:  # out of memory, no kernel for this device: the others still count
            where[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.found |= self.derive()
        print(f"  {name}: {json.dumps(where[name])}", file=sys.stderr, flush=True)
        print(json.dumps(self.found), flush=True)


# 1: limits


def limits(scale: Scale, clock: Clock, data: Path | None) -> None:
    """Rates of matrix products, of copies, and of decoding JPEGs; milliseconds of attention."""
    found = clock.found
    clock.measure(found, "matrix_tflops", lambda: matrix_tflops(scale.matrix))
    clock.measure(found, "copy_gb_per_s", lambda: copy_rates(scale.copied_mb))
    found["decoded_per_s"], found["attention_ms"] = {}, {}
    for where, rate in (("host", decoded_by_host), ("device", decoded_by_device)):
        clock.measure(found["decoded_per_s"], where, lambda r=rate: r(scale.decoded, scale.size))
    for name in scale.students:
        for kernel in KERNELS:
            clock.measure(
                found["attention_ms"], f"{name}, {kernel}", lambda n=name, k=kernel: attention_ms(n, k, scale)
            )


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


def example_jpeg() -> bytes:
    """A smooth image of 500 x 375 pixels."""
    pixels = np.random.RandomState(0).randint(0, 255, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((500, 375)).save(file, "jpeg", quality=90)
    return file.getvalue()


def decoded_by_host(images: int, size: int) -> float:
    """JPEGs/s to training pixels, by as many threads as the host has cores."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        path.write_bytes(example_jpeg())
        decode = Decoder((size * 8 // 7, size * 8 // 7), "resize")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            started = time.perf_counter()
            for _ in pool.map(lambda _: decode(path), range(images)):
                pass
            return images / (time.perf_counter() - started)


def decoded_by_device(images: int, size: int) -> float:
    """The same by torchvision, on a GPU by nvJPEG, in batches of 256."""
    batch = [torch.frombuffer(bytearray(example_jpeg()), dtype=torch.uint8)] * min(images, 256)
    return len(batch) / seconds(lambda: decode_on_device(batch, size * 8 // 7), max(1, images // 256), 1)


def decode_on_device(files: list[Tensor], side: int) -> Tensor:
    """JPEG files, as bytes on the host, to (B, 3, side, side) uint8 on the device."""
    decoded = decode_jpeg(files, mode=ImageReadMode.RGB, device=DEVICE)
    resized = [F.interpolate(d[None].float(), (side, side), mode="bicubic", antialias=True) for d in decoded]
    return torch.cat(resized).round_().clamp_(0, 255).to(torch.uint8)


KERNELS = ("default", "flash", "efficient", "cudnn", "math") if ON_GPU else ("default", "flash", "math")


def attention_ms(name: str, kernel: str, scale: Scale) -> dict[str, float | str]:
    """Milliseconds of attention, forward and backward, with a kernel: at the student's tokens, at the next
    multiple of 8, and padded to that with a mask. "default" is PyTorch's choice."""
    student = create_model(name, num_classes=CLASSES, image_size=scale.size)
    tokens, kind = student.pos_embed.shape[1], torch.bfloat16 if ON_GPU else torch.float32
    found: dict[str, float | str] = {}
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    for label, count, attention in (
        (f"{tokens}", tokens, F.scaled_dot_product_attention),
        (f"{tokens + -tokens % 8}", tokens + -tokens % 8, F.scaled_dot_product_attention),
        (f"{tokens} padded", tokens, padded_attention),
    ):
        shape = (scale.batch, student.num_heads, count, student.embed_dim // student.num_heads)
        q, k, v = (torch.randn(shape, device=DEVICE, dtype=kind, requires_grad=True) for _ in range(3))

        def both(q: Tensor = q, k: Tensor = k, v: Tensor = v, attention: Any = attention) -> None:
            with nullcontext() if kernel == "default" else sdpa_kernel(backends[kernel]):
                attention(q, k, v).sum().backward()

        try:
            found[label] = 1000 * seconds(both, 10)
        except RuntimeError as error:  # not every kernel takes every shape or mask
            found[label] = str(error).splitlines()[0][:100]
    return found


def padded_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (B, h, N, d) with N padded to a multiple of 8 and the padding masked."""
    tokens, extra = q.shape[2], -q.shape[2] % 8
    mask = (torch.arange(tokens + extra, device=q.device) < tokens).view(1, 1, 1, -1)
    q, k, v = (F.pad(each, (0, 0, 0, extra)) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, :, :tokens]


# 2: training


def training(scale: Scale, clock: Clock, data: Path | None) -> None:
    """Images/s of deitkit's training step and of timm's, on the same synthetic images."""
    found, speeds = clock.found, {}
    found["matrix_tflops"] = matrix_tflops(scale.matrix)
    found["forward_gflops"] = {name: forward_gflops(name, scale.size) for name in scale.students}
    found["teacher_images_per_s"], found["steps"] = {}, speeds
    clock.derive = lambda: {"share_of_matrix_rate": shares(found), "beside_timm": beside_timm(speeds)}

    def deitkit_step(name: str, teacher: str | None = None, what: str = "", **changes: Any) -> None:
        taught = f" {what or 'distilled'}, {teacher}" if teacher else f", {what}" if what else ""
        clock.measure(
            speeds, f"deitkit {name}{taught}", lambda: step_of_deitkit(name, scale, teacher, **changes)
        )

    def timm_step(name: str, teacher: str | None = None) -> None:
        taught = f" distilled, {teacher}" if teacher else ""
        clock.measure(speeds, f"timm {name}{taught}", lambda: step_of_timm(name, scale, teacher))

    first, *others = scale.teachers
    clock.measure(found["teacher_images_per_s"], first, lambda: teacher_rate(first, scale))
    for name in scale.students:
        deitkit_step(name)
        timm_step(name)
        deitkit_step(name, first)
    smallest = scale.students[-1]
    deitkit_step(smallest, what="CUDA graphs", graphs=True)
    deitkit_step(scale.students[0], first, "distilled in turn", ahead=False)
    clock.measure(
        found["teacher_images_per_s"], f"{first}, compiled", lambda: teacher_rate(first, scale, compiled=True)
    )
    for teacher in others:
        clock.measure(found["teacher_images_per_s"], teacher, lambda t=teacher: teacher_rate(t, scale))
        for name in scale.students:
            deitkit_step(name, teacher)
            deitkit_step(name, teacher, "guided", guided=True)
    for name in scale.students:
        timm_step(name, first)
        larger = replace(scale, batch=4 * scale.batch)
        clock.measure(
            speeds, f"deitkit {name}, batch {larger.batch}", lambda n=name, s=larger: step_of_deitkit(n, s)
        )


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


def measured(step: Callable[[], object], scale: Scale) -> dict[str, Any]:
    """Images/s of a step, seconds until the first is done, the memory that it takes, its longest kernels.

    Steps follow each other as in training: the device is waited for at the ends of rounds only.
    """
    started = time.perf_counter()
    step()
    wait_for_device()
    first = time.perf_counter() - started
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    speed = images_per_s(step, scale.batch, scale.seconds)
    memory = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9} if ON_GPU else {}
    return {"images_per_s": speed, "first_step_s": first, **memory, "kernels": longest_kernels(step)}


def longest_kernels(step: Callable[[], object]) -> dict[str, float]:
    """The eight operations of the device that take most of a step, with their shares of its busy time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if ON_GPU else ProfilerActivity.CPU]) as found:
        step()
        wait_for_device()
    times = {
        each.key: each.self_device_time_total if ON_GPU else each.self_cpu_time_total
        for each in found.key_averages()
    }
    whole = sum(times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: -item[1])[:8]
    return {name[:60]: round(spent / whole, 3) for name, spent in longest}


def teacher_of(name: str, compiled: bool = False) -> Teacher:
    """A teacher with random weights: its time is the same."""
    torch.manual_seed(0)
    backbone = TimmBackbone(timm.create_model(name, num_classes=0))
    with torch.no_grad():
        pooled, *maps = backbone.eval()(torch.zeros(1, 3, 64, 64))
    precision = torch.bfloat16 if ON_GPU else torch.float32
    backend = PyTorchBackend(
        Normalised(backbone, IMAGENET.mean, IMAGENET.std),
        DEVICE,
        precision=precision,
        channels_last=True,
        compiled=compiled,
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


def teacher_rate(name: str, scale: Scale, compiled: bool = False) -> float:
    """Images/s of a teacher alone."""
    teacher = teacher_of(name, compiled)
    images = torch.rand(scale.batch, 3, scale.size, scale.size, device=DEVICE)
    return images_per_s(lambda: teacher(images), scale.batch, scale.seconds / 2)


def trainer_of(name: str, scale: Scale, teacher: Teacher | None, guided: bool, folder: Path) -> Trainer:
    """deitkit's trainer, as `deitkit.train` sets it up, without data of its own."""
    changes: dict[str, Any] = {
        "student.name": name,
        "student.image_size": scale.size,
        "student.patch_size": 16,
        "train.batch_size": scale.batch,
        "train.micro_batch_size": scale.batch,
        "train.epochs": 1,
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
    images, labels = synthetic(scale)
    batch = ViewBatch(images, F.one_hot(labels, CLASSES).float(), np.arange(scale.batch))
    views: Any = SimpleNamespace(device=DEVICE, image_size=scale.size, make=lambda planned: batch)
    shown = STEPS * scale.batch  # as many steps as a run has that is compiled
    return Trainer(
        student,
        Objective(config.distillation, config.train, teacher=teacher),
        TrainingData(views, Sampler(shown, batch_size=scale.batch, seed=0), 0, [""] * shown),
        Validation(lambda model: {"loss": 0.0}, num_images=0),
        train=config.train,
        optim=config.optim,
        folder=folder,
    )


def step_of_deitkit(
    name: str,
    scale: Scale,
    teacher: str | None = None,
    *,
    guided: bool = False,
    ahead: bool = True,
    graphs: bool = False,
) -> dict[str, Any]:
    """`Trainer.update` on views that are on the device, the teacher's outputs included.

    ahead: the teacher beside the step, as in training, or before it. graphs: recorded as CUDA graphs.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, scale, teacher_of(teacher) if teacher else None, guided, Path(folder))
        if graphs or not ON_GPU:  # a trial shall see the compiled step
            trainer._parts_of_loss = compiled(trainer._parts, graphs)
        if not ahead:
            batch = trainer.data.views.make(trainer.inputs.plan(0)[0])
            return measured(lambda: trainer.update(batch), scale)
        batches = itertools.chain.from_iterable(trainer.inputs.prepared(0) for _ in itertools.count())
        return measured(lambda: trainer.update(*next(batches)), scale)


def timm_model(name: str, size: int) -> Any:
    """timm's DeiT of the shape of deitkit's."""
    ours = create_model(name, num_classes=CLASSES, image_size=size)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=CLASSES,
        img_size=size,
        embed_dim=ours.embed_dim,
        depth=ours.depth,
        num_heads=ours.num_heads,
        drop_path_rate=0.1,
    )


def step_of_timm(name: str, scale: Scale, teacher: str | None = None) -> dict[str, Any]:
    """timm's model in its best conditions: bf16, compiled, fused AdamW; hard distillation as in DeiT."""
    model = timm_model(name, scale.size)
    model.set_distilled_training(True)
    model = model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    forward = compiled(model)
    images, labels = synthetic(scale)
    network: Any = None
    if teacher is not None:
        network = timm.create_model(teacher).to(DEVICE, memory_format=torch.channels_last).eval()
        network = compiled(network)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU):
            answers = labels
            if network is not None:
                with torch.no_grad():
                    answers = network(images.to(memory_format=torch.channels_last)).argmax(1)
            first, second = forward(images)
            loss = (F.cross_entropy(first, labels) + F.cross_entropy(second, answers)) / 2
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


def loop(scale: Scale, clock: Clock, data: Path | None) -> None:
    """`deitkit.train` from JPEGs, without a teacher, beside the same step on synthetic images."""
    name, found = scale.students[0], clock.found

    def ratio() -> dict[str, float]:
        epochs, step = found.get("epochs"), found.get("synthetic", {})
        if not isinstance(epochs, list) or "images_per_s" not in step:
            return {}
        return {"ratio": epochs[-1]["images_per_s"] / step["images_per_s"]}

    clock.derive = ratio
    found["student"] = name
    clock.measure(found, "synthetic", lambda: step_of_deitkit(name, scale))
    clock.measure(found, "epochs", lambda: epochs_of(name, scale))


def epochs_of(name: str, scale: Scale) -> list[dict[str, float]]:
    """Images/s and seconds of each epoch, after decoding; the first compiles."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEITKIT_CACHE"] = f"{folder}/cache"
        images = write_images(Path(folder) / "data", scale.loop_images, 8)
        started = time.perf_counter()
        deitkit.train(
            images,
            Path(folder) / "run",
            recipe="deit",
            train__epochs=scale.loop_epochs,
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


def inference(scale: Scale, clock: Clock, data: Path | None) -> None:
    """Images/s of forward passes: as deitkit runs them, recorded as CUDA graphs, with weights in half
    precision, with merged tokens, and timm's."""
    found: dict[str, Any] = clock.found
    found["matrix_tflops"], rates = matrix_tflops(scale.matrix), {}
    found["images_per_s"] = rates

    def derive() -> dict[str, Any]:
        best: dict[str, float] = {}
        for label, by_batch in rates.items():
            for batch, rate in by_batch.items() if label.startswith("deitkit") else ():
                name = f"{label.split()[1].rstrip(',')}, {batch}"
                best[name] = (
                    max(best.get(name, 0.0), rate) if isinstance(rate, float) else best.get(name, 0.0)
                )
        gflops = {name: forward_gflops(name, scale.size) for name in scale.students}
        return {
            "share_of_matrix_rate": {
                name: rate * gflops[name.split(",")[0]] / (1000 * found["matrix_tflops"])
                for name, rate in best.items()
            }
        }

    clock.derive = derive
    largest_first = sorted(scale.students, key=lambda name: -forward_gflops(name, scale.size))
    for how in ("compiled", "CUDA graphs", "eager", "bf16 weights", "fp16 weights", "merged"):
        for name in largest_first:
            for who in ("deitkit", "timm") if how in ("compiled", "eager") else ("deitkit",):
                clock.measure(
                    rates, f"{who} {name}, {how}", lambda w=who, n=name, h=how: forward_rates(w, n, h, scale)
                )


def forward_rates(who: str, name: str, how: str, scale: Scale) -> dict[str, float]:
    """Images/s for each batch size."""
    network = (
        timm_model(name, scale.size)
        if who == "timm"
        else create_model(name, num_classes=CLASSES, image_size=scale.size)
    )
    network = (TokenMerging(network, 13) if how == "merged" else network).to(DEVICE).eval()
    kind = {"bf16 weights": torch.bfloat16, "fp16 weights": torch.float16}.get(how)
    network = network if kind is None else network.to(kind)
    mixed = torch.autocast(DEVICE.type, torch.bfloat16, enabled=ON_GPU and kind is None)
    forward = network if how == "eager" else compiled(network, graphs=how == "CUDA graphs")

    def rate(batch: int) -> float:
        images = torch.rand(batch, 3, scale.size, scale.size, device=DEVICE, dtype=kind)
        with torch.inference_mode(), mixed:
            return images_per_s(lambda: forward(images), batch, scale.seconds / 4)

    return {f"batch {batch}": rate(batch) for batch in scale.batches}


# 5: real results


def results(scale: Scale, clock: Clock, data: Path | None) -> None:
    """The default recipe on Imagenette, and CIFAR-10 from scratch: accuracy and seconds."""
    found = clock.found
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


def start(scale: Scale, clock: Clock, data: Path | None) -> None:
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
            clock.found["skipped"] = "no photos in --data"
            return
        began = time.perf_counter()
        run = deitkit.pretrain([photos], out, **settings)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        clock.found |= {
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


class Work(NamedTuple):
    """What a step does at least: floating-point operations and bytes of the device's memory."""

    part: str
    what: str
    images: int  # 0 for work that is not done per image
    flops: float
    size: float

    @property
    def bounds_s(self) -> dict[str, float]:
        return {
            "products": self.flops / (1e12 * FLOOR_TFLOPS),
            "memory": self.size / (1e12 * FLOOR_TB_PER_S),
        }


def student_step(name: str, size: int, patch: int, batch: int) -> tuple[float, float]:
    """Operations and bytes of a training step without its teacher.

    Three forward passes. Bytes: what autograd keeps for the backward pass, written and read once in bf16, and
    per parameter 44: weights in bf16 twice, the gradient written and read, and weights, both moments and the
    average read and written in fp32.
    """
    with torch.device("meta"):
        student = create_model(name, num_classes=CLASSES, image_size=size, patch_size=patch)
        with FlopCounterMode(display=False) as counter:
            student(torch.empty(1, 3, size, size))
    kept = 2 * kept_values(student)
    return 3.0 * counter.get_total_flops() * batch, 2.0 * kept * batch + 44.0 * student.num_params


def teacher_pass(name: str, size: int, batch: int) -> tuple[float, float]:
    """Operations and bytes of a teacher's forward pass: weights and views read once, in bf16."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name).eval()
        model(torch.empty(1, 3, size, size))
    parameters = sum(p.numel() for p in model.parameters())
    return counter.get_total_flops() * batch, 2 * parameters + 6 * size**2 * batch


def views(size: int, batch: int, passes: int) -> tuple[float, float]:
    """Pixels gathered as uint8, and `passes` operations on views in fp32, each read and written."""
    return 0.0, batch * (3 * (size * 8 // 7) ** 2 + passes * 2 * 4 * 3 * size**2)


def attention_step(name: str, size: int, batch: int) -> tuple[float, float]:
    """Attention of one block, forward and backward: two products, then five, since the backward pass makes
    the scores again (arXiv 2205.14135). Queries, keys, values, output and their gradients move in bf16: four
    tensors forward, eight backward.
    """
    with torch.device("meta"):
        student = create_model(name, num_classes=CLASSES, image_size=size)
    tokens, width = student.pos_embed.shape[1], student.embed_dim
    return 7 * 2.0 * batch * tokens**2 * width, (4 + 8) * 2.0 * batch * tokens * width


def together(*works: tuple[float, float]) -> tuple[float, float]:
    return sum(flops for flops, _ in works), sum(size for _, size in works)


def least_work(scale: Scale) -> list[Work]:
    """Every kind of step of the programme, by its parts."""
    B, size, small_teacher = scale.batch, scale.size, scale.teachers[-1]
    side, copied = scale.matrix, scale.copied_mb * 2**20
    rows = [
        Work("1", f"a product of {side} x {side} matrices", 0, 2.0 * side**3, 3 * 2.0 * side**2),
        Work("1", f"a copy of {scale.copied_mb} MiB within the device", 0, 0.0, 2.0 * copied),
    ]
    for name in ("tiny", "small", "base"):
        with torch.device("meta"):
            parameters = create_model(name, num_classes=CLASSES, image_size=size).num_params
        rows += [
            Work("1", f"{name}, attention of a block", B, *attention_step(name, size, B)),
            Work("2", f"{name}, a training step", B, *student_step(name, size, 16, B)),
        ]
        for batch in (1, B):
            work = 1e9 * forward_gflops(name, size) * batch, 2 * parameters + 6 * size**2 * batch
            rows.append(Work("4", f"{name}, a forward pass of {batch}", batch, *work))
    for name in scale.teachers:
        rows.append(Work("2", f"{name}, a forward pass of {B}", B, *teacher_pass(name, size, B)))
    # The recipe deit: crop, flip, two operations of RandAugment, erasing, mixing.
    made = together(student_step("small", size, 16, B), views(size, B, 6))
    rows.append(Work("3", "small, views and a training step", B, *made))
    # What `auto` chooses on a GPU, 32 images a step; crop, flip and jitter; the default recipe's teacher sees
    # the student's view.
    for side, patch in ((128, 8), (224, 16)):
        made = together(
            student_step("tiny", side, patch, 32), teacher_pass(small_teacher, side, 32), views(side, 32, 3)
        )
        rows.append(Work("5", f"tiny at {side} px, views, teacher and a training step", 32, *made))
    made = together(student_step("small", 32, 4, 32), views(32, 32, 3))
    rows.append(Work("5", "small at 32 px, views and a training step", 32, *made))
    made = together(
        student_step("tiny", 224, 16, 64), teacher_pass(small_teacher, 224, 64), views(224, 64, 3)
    )
    rows.append(Work("6", "tiny, views, teacher and a pre-training step", 64, *made))
    return sorted(rows, key=lambda work: work.part)


def floor_table(scale: Scale) -> str:
    """Markdown: operations and bytes of each step, and the least time that they take."""
    lines = [
        "| part | | TFLOP | GB | least ms | bound by | images/s at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in least_work(scale):
        bound, least = max(work.bounds_s.items(), key=lambda item: item[1])
        speed = f"{float(f'{work.images / least:.2g}'):,.0f}" if work.images else ""
        lines.append(
            f"| {work.part} | {work.what} | {work.flops / 1e12:.3g} | {work.size / 1e9:.3g} "
            f"| {1000 * least:.3g} | {bound} | {speed} |"
        )
    return "\n".join(lines)


# The programme


@dataclass(frozen=True)
class Part:
    measure: Callable[[Scale, Clock, Path | None], None]
    limit_s: int


PARTS = {
    1: Part(limits, 40),
    2: Part(training, 180),
    3: Part(loop, 80),
    4: Part(inference, 80),
    5: Part(results, 220),
    6: Part(start, 120),
}
WHOLE_S = 480
TRIAL_S = 600  # a part, on a CPU that may be busy


def run_part(number: int, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """The JSON of a part's own process, or why there is none."""
    command = [sys.executable, __file__, "--part", str(number), "--inside", f"--limit={limit}"]
    command += ["--trial"] if options.trial else []
    command += [f"--data={options.data}"] if options.data is not None else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate(timeout=limit)
            failed = f"ended with status {process.returncode}" if process.returncode else None
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            failed = f"ran longer than {limit:.0f} s"
    found = last_report(said)
    return found | ({"failed": failed} if failed else {})


def last_report(said: str) -> dict[str, Any]:
    """The last whole line of JSON of a part that may have been ended within one."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


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
        part.measure(scale, clock, options.data)
        print(json.dumps(clock.found), flush=True)
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
