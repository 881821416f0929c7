"""A convnet of similar cost, trained from scratch with the student's loop, views and schedule.

It is the fair comparison for a student from scratch, as a teacher with ImageNet weights is not.
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
from ..models import BatchRows, DeiTOutput, Student
from ..run_folder import CONFIG, RESULTS, WEIGHTS, results_to_json
from ..training import results
from ..training.session import open_session
from ..training.student_training import StudentTraining, train_and_measure

# By student, the timm model with the nearest number of multiply-adds at 224 pixels, in 10^9: 1.1 for tiny
# (1.3), 4.1 for small (4.6), 15.9 for base (17.6); 0.09 at the 64 patches of nano.
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

    def forward(
        self, images: Tensor, tokens_after: Sequence[int] = (), rows: BatchRows | None = None
    ) -> DeiTOutput:
        """(B, C, H, W) -> DeiTOutput with class logits only."""
        return DeiTOutput(self.net(images), None)


def train_convnet(data: Path, out: Path, config: Config) -> None:
    """Trains the convnet for the configured student on labels alone, and writes a run folder.

    Resumes an interrupted training. Raises Interrupted if a signal stops it.
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
    assert trained is not None, "every run of a study is one process's own"
    # With timm's keys, so that it can be a teacher: --teacher timm:NAME@FILE.
    assert isinstance(trainer.student, Convnet)
    write_tensors(out / WEIGHTS, trainer.student.net.state_dict())
    found = results.assemble(trained, None, None, dataset, session.seconds)
    described: dict[str, Any] = {
        "config": training.config.to_dict(),
        "classes": list(dataset.classes),
        "preprocessing": {"image_size": list(image_size)},
        "student": {"name": name},
        "data": {"train": len(dataset.train.images), "val": len(dataset.val.images)},
    }
    for file, content in ((CONFIG, described), (RESULTS, results_to_json(found))):
        write_json(out / file, content)
