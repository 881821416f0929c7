"""A convnet of like cost, trained from scratch by the student's own loop, views and schedule.

A teacher with ImageNet's weights is no fair peer of a student from scratch; this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.dataset import find_splits
from ..io import write_json, write_tensors
from ..models import DeiTOutput, Student
from ..run_folder import results_to_json
from ..training import results
from ..training.session import open_session
from ..training.student_training import StudentTraining, train_and_measure

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
    session = open_session(config, partial(find_splits, data))
    config, dataset, device = session.config, session.dataset, session.device
    name, image_size = PEERS[config.student.name], config.student.image_size

    def create() -> Convnet:
        torch.manual_seed(config.train.seed)
        return Convnet(name, len(dataset.classes), image_size).to(device)

    training = StudentTraining.of(session, dataset, out, teacher=None)
    training = replace(training, create=create, identity=training.identity | {"model": name})
    trainer = training.trainer(config.train.epochs)
    trained = train_and_measure(trainer, name, dataset, resume=True, title=f"training {name}")
    # Under timm's own keys, so that it can teach: --teacher timm:NAME@FILE.
    assert isinstance(trainer.student, Convnet)
    write_tensors(out / "model.safetensors", trainer.student.net.state_dict())
    found = results.assemble(trained, None, None, dataset, session.seconds)
    described: dict[str, Any] = {
        "config": training.config.to_dict(),
        "classes": list(dataset.classes),
        "preprocessing": {"image_size": list(image_size)},
        "student": {"name": name},
        "data": {"train": len(dataset.train.images), "val": len(dataset.val.images)},
    }
    for file, content in (("config.json", described), ("results.json", results_to_json(found))):
        write_json(out / file, content)
