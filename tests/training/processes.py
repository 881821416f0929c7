"""What torchrun starts in test_processes.py: trainings by several processes beside the same by one.

    torchrun --nproc-per-node=2 -m tests.training.processes FOLDER STEPS [CASE ...]

Writes FOLDER/found.json: by case the largest difference of a loss in any step, of the weights after the last
one relative to how far they have moved, and how many random numbers a step left behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deitkit import distributed
from deitkit.config import Config, ResolvedConfig
from deitkit.data.cache import PixelStore
from deitkit.data.loader import TrainingViews
from deitkit.data.sampler import Sampler
from deitkit.distillation.objective import Objective
from deitkit.models.deit import DeiT
from deitkit.teachers.teacher import TeacherOutput
from deitkit.training.step_inputs import TrainingData
from deitkit.training.trainer import StepLosses, Trainer, Validation

IMAGES, CLASSES = 40, 4
PIXELS = np.random.RandomState(0).randint(0, 256, (IMAGES, 3, 18, 18), np.uint8)

# Everything that is random, in the batch and in the model.
PLAIN = {
    "student.name": "nano",
    "student.image_size": 16,
    "student.patch_size": 4,
    "student.drop_path_rate": 0.4,
    "student.patch_drop_rate": 0.25,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.randaugment_ops": 1,
    "augment.erasing": 0.2,
    "distillation.mode": "none",
    "distillation.feature_weight": 0.0,
    "distillation.distill_until": 1.0,
    "data.workers": 0,
    "train.batch_size": 10,
    "train.micro_batch_size": 10,
    "train.loss": "cross-entropy",
    "train.balance": "none",
    "train.metric": "top1",
    "optim.lr": 2e-3,
    "optim.warmup_epochs": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"distillation.mode": "hard"},
    "stored": {"distillation.mode": "soft", "teacher.soft_labels": "made up"},
    "guided": {
        "distillation.mode": "soft",
        "distillation.feature_weight": 2.0,
        "student.patch_drop_rate": 0.5,
    },
    # No micro-batch of one image: its correlations are 0 / 0, and magnify rounding too.
    "dist": {"distillation.mode": "dist", "train.micro_batch_size": 5},
    "repeats": {"data.repeats": 3, "train.batch_size": 12},
    "ema": {"optim.ema_decay": 0.9, "optim.name": "lamb"},
    "accumulation": {"train.micro_batch_size": 3, "optim.clip_grad": 0.5},
    "unlabelled": {"distillation.mode": "soft", "distillation.distill_until": 0.5, "unlabelled": 15},
    "multilabel": {"train.loss": "bce", "distillation.mode": "soft"},
    "odd": {"train.batch_size": 7, "train.start_size": 8, "train.start_share": 0.5},
    "few": {"train.batch_size": 3},  # fewer pairs than processes
}


class MadeUpTeacher:
    """A pure function of the views, live or stored."""

    card = SimpleNamespace(map_channels=(48, 192))

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def __call__(self, views: Tensor) -> TeacherOutput:
        logits = torch.cat([views.mean((2, 3)), views.std((2, 3))[:, :1]], 1)
        # Many channels: a layer norm over three, which may be nearly equal, would magnify rounding.
        return TeacherOutput(4 * logits, (F.pixel_unshuffle(views, 4), F.pixel_unshuffle(views, 8)))

    def outputs(self, epoch: int, position: int, device: torch.device) -> TeacherOutput:
        keys = self.sampler.epoch(epoch)[position].keys
        rows = [np.random.RandomState(int(key & np.uint64(2**32 - 1))).rand(CLASSES) for key in keys]
        return TeacherOutput(torch.tensor(np.array(rows), dtype=torch.float32), ())


def trainer(name: str, folder: Path, steps: int) -> Trainer:
    case = dict(CASES[name])
    unlabelled, multilabel = case.pop("unlabelled", 0), name == "multilabel"
    config = ResolvedConfig.of(Config().override(PLAIN | {"train.epochs": 1} | case))
    sampler = Sampler(
        IMAGES - unlabelled,
        batch_size=config.train.batch_size,
        repeats=config.data.repeats,
        num_unlabeled=unlabelled,
        unlabeled_share=0.4,
    )
    labels = np.arange(IMAGES) % CLASSES
    if multilabel:
        labels = (np.arange(IMAGES)[:, None] >> np.arange(CLASSES)) % 2
    elif unlabelled:
        labels[IMAGES - unlabelled :] = -1
    store = PixelStore(np.ones(IMAGES, np.float32), lambda rows: PIXELS[rows], np.arange(IMAGES))
    cpu, taught = torch.device("cpu"), config.distillation.mode != "none"
    views = TrainingViews(store, labels, CLASSES, config.augment, (16, 16), cpu)
    teacher, stored = MadeUpTeacher(sampler), name == "stored"
    torch.manual_seed(0)
    model = DeiT(
        num_classes=CLASSES,
        image_size=(16, 16),
        patch_size=(4, 4),
        embed_dim=16,
        depth=3,
        num_heads=2,
        distilled=True,
        drop_path_rate=config.student.drop_path_rate,
        patch_drop_rate=config.student.patch_drop_rate,
    )
    objective = Objective(
        config.distillation,
        config.train,
        "multilabel" if multilabel else "multiclass",
        teacher=teacher if taught and not stored else None,
        soft_labels=teacher if stored else None,
    )
    epochs = -(-steps // sampler.steps_per_epoch)
    return Trainer(
        model,
        objective,
        TrainingData(views, sampler, config.data.workers, [f"{i}.png" for i in range(IMAGES)]),
        Validation(lambda student: {"loss": 0.0}, num_images=0),
        train=ResolvedConfig.of(config.override({"train.epochs": epochs})).train,
        optim=config.optim,
        folder=folder,
        init_features=True,
    )


def train(name: str, folder: Path, steps: int) -> tuple[list[dict[str, float]], Tensor, Tensor]:
    """The losses of each step, the weights with their average, and how far they have moved."""
    folder.mkdir(parents=True, exist_ok=True)
    run = trainer(name, folder, steps)
    before = flat(run)
    losses: list[dict[str, float]] = []
    update = run.update

    def updated(*args: Any) -> StepLosses:
        found = update(*args)
        losses.append(found.read())
        return found

    run.update = updated  # type: ignore[method-assign]
    run.run()
    return losses, flat(run), flat(run) - before


def flat(run: Trainer) -> Tensor:
    averaged = run.state.ema.weights
    return torch.cat([t.detach().flatten().clone() for t in [*run.student.parameters(), *averaged.values()]])


def compare(name: str, folder: Path, steps: int) -> dict[str, float]:
    several, weights, _ = train(name, folder / "several", steps)
    same = distributed.gather(weights)
    if not distributed.is_main():
        return {}
    with distributed.alone():
        one, expected, moved = train(name, folder / "one", steps)
    assert [set(parts) for parts in one] == [set(parts) for parts in several]
    return {
        "steps": len(one),
        "loss": max(abs(a[k] - b[k]) for a, b in zip(one, several, strict=True) for k in a),
        "weights": ((weights - expected).abs().max() / moved.abs().max()).item(),
        "processes": float(all(torch.equal(weights, other) for other in same)),
    }


def main() -> None:
    folder, steps, names = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CASES)
    torch.set_num_threads(1)
    found = {name: compare(name, folder / name, steps) for name in names}
    distributed.barrier()
    if distributed.is_main():
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
