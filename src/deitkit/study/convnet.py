"""A convnet of like cost, trained from scratch by the student's own loop, views and schedule.

A teacher with ImageNet's weights is no fair peer of a student from scratch; this is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.dataset import find_splits, open_data
from ..data.loader import TrainingViews
from ..evaluation.evaluate import evaluate_student
from ..inference.device import resolve_device
from ..io import write_json, write_tensors
from ..models import DeiTOutput, Student
from ..preprocessing import normalise
from ..training import results
from ..training.run import train_one
from ..training.student import choose_student, view_workers
from ..training.trainer import Trainer

# The timm model whose multiply-accumulates at 224 pixels are nearest to the student's, in 10^9:
# 1.1 beside tiny's 1.3, 4.1 beside small's 4.6, 15.9 beside base's 17.6; at nano's 64 patches 0.09.
PEERS = {"nano": "resnet10t", "tiny": "resnet10t", "small": "resnet50", "base": "regnety_160"}


class Convnet(Student):
    """A timm model with random weights, trained and evaluated as a student without a distillation token."""

    def __init__(self, name: str, num_classes: int, image_size: tuple[int, int]):
        super().__init__()
        self.num_classes, self.image_size = num_classes, image_size
        self.net = timm.create_model(name, num_classes=num_classes)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # An integer counter cannot be averaged with the weights (EMA).
                assert module.num_batches_tracked is not None
                module.num_batches_tracked = module.num_batches_tracked.float()

    def forward(self, images: Tensor, tokens_after: Sequence[int] = ()) -> DeiTOutput:
        """(B, C, H, W) -> DeiTOutput with class logits only."""
        return DeiTOutput(self.net(images), None)


def train_convnet(data: Path, out: Path, config: Config) -> None:
    """Trains the peer of the configured student on labels and writes `config.json` and `results.json`.

    Continues where an earlier call was stopped; raises Interrupted as a job does.
    """
    started = time.monotonic()
    device = resolve_device(config.train.device)
    splits = find_splits(data, config)
    config, _ = choose_student(config, splits, device)
    opened = open_data(splits, config)
    name = PEERS[config.student.name]
    torch.manual_seed(config.train.seed)
    size = config.student.image_size
    assert size is not None
    model = Convnet(name, len(opened.classes), size).to(device)
    labels, classes = opened.train.images.labels, len(opened.classes)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        config=config,
        model=model,
        make=TrainingViews(opened.train.store, labels, classes, config.augment, size, device).make,
        num_images=len(opened.train.images),
        num_val=len(opened.val.images),
        normalise=normalise,
        teacher=None,
        device=device,
        folder=out,
        evaluate=lambda m: evaluate_student(m, opened.val, device).metrics().to_dict(),
        path_of=opened.train.images.paths.__getitem__,
        workers=view_workers(config, device),
        facts={
            "data": opened.train.images.fingerprint(times=False),
            "settings": config.to_dict(),
            "model": name,
        },
    )
    title, epochs = f"training {name}", config.train.epochs
    assert epochs is not None, "choose_student comes first"
    trained, _ = train_one(trainer, epochs, opened, device, resume=True, title=title)
    # Under timm's own keys, so that it can teach: --teacher timm:NAME@FILE.
    write_tensors(out / "model.safetensors", model.net.state_dict())
    trained["student"]["name"] = name
    found = results.assemble(trained, None, opened, time.monotonic() - started)
    parts = {"train": len(opened.train.images), "val": len(opened.val.images)}
    described: dict[str, Any] = {
        "config": config.to_dict(),
        "classes": list(opened.classes),
        "preprocessing": {"image_size": list(size)},
        "student": {"name": name},
        "data": parts,
    }
    for file, content in (("config.json", described), ("results.json", found)):
        write_json(out / file, content)
