"""The folder of stored labels: a manifest, and one safetensors file for each part of an epoch.

A file holds the rows of whole planned batches, in the plan's order, at most about 130,000 views of
one epoch; that is what a stopped process has to do again, and what processes share out. Each names
its manifest, its place and the hash of its rows, and is written to the side and renamed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..data.sampler import Batch, plan_epoch
from ..errors import RunFolderError
from ..io import write_tensors
from ..teachers.teacher import TeacherOutput
from .codec import make_codec
from .manifest import Manifest, read_manifest

SHARD_VIEWS = 131_072

Place = tuple[int, int]  # epoch, shard of that epoch


class SoftLabelStore:
    """Labels of the views that `plan_epoch` plans; epochs and positions count from 0."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        self.codec = make_codec(len(manifest.classes), **manifest.labels)
        self.id = manifest.fingerprint()
        sizes = [len(batch.indices) for batch in self.plan(0)]  # the same in every epoch
        self.views_per_epoch = sum(sizes)
        self._first_row = [0, *itertools.accumulate(sizes)]
        self.shards = -(-len(sizes) // manifest.shard_batches)
        self._loaded: tuple[Place, Tensor] | None = None

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of an epoch, as training plans them."""
        config = self.manifest.config
        return plan_epoch(
            self.manifest.images - self.manifest.unlabeled,
            batch_size=config.train.batch_size,
            repeats=config.data.repeats,
            seed=config.train.seed,
            epoch=epoch,
            num_unlabeled=self.manifest.unlabeled,
            unlabeled_share=config.data.unlabeled_share,
        )

    def path(self, place: Place) -> Path:
        return self.folder / f"epoch-{place[0]:05d}-{place[1]:03d}.safetensors"

    def places(self, epochs: int) -> Iterator[Place]:
        """Every shard of the first `epochs` epochs."""
        return itertools.product(range(epochs), range(self.shards))

    def batches(self, place: Place) -> slice:
        """Positions in the plan of the batches that a shard holds."""
        per = self.manifest.shard_batches
        return slice(place[1] * per, min((place[1] + 1) * per, len(self._first_row) - 1))

    def num_views(self, place: Place) -> int:
        held = self.batches(place)
        return self._first_row[held.stop] - self._first_row[held.start]

    def epochs(self) -> int:
        """How many epochs are there from the first one on, without a gap."""
        for epoch in itertools.count():
            if not all(self.path((epoch, shard)).exists() for shard in range(self.shards)):
                return epoch
        raise AssertionError

    def write(self, place: Place, rows: Sequence[Tensor]) -> None:
        """Stores a shard: the encoded rows of its batches, in order."""
        tensor = torch.cat(list(rows))
        facts = {
            "labels": self.id,
            "epoch": str(place[0]),
            "shard": str(place[1]),
            "sha256": _digest(tensor),
        }
        write_tensors(self.path(place), {"labels": tensor}, facts)

    def read(self, place: Place) -> Tensor:
        """The rows of a shard; raises DeitkitError where it is missing, cut, damaged or another's."""
        path = self.path(place)
        try:
            with safe_open(path, "pt") as opened:
                facts, rows = opened.metadata() or {}, opened.get_tensor("labels")
        except FileNotFoundError:
            raise RunFolderError(f"{path} is missing; {self._again(place)}") from None
        except Exception as error:  # a cut file fails in many ways
            raise RunFolderError(
                f"{path} cannot be read ({type(error).__name__}); delete it, then {self._again(place)}"
            ) from None
        expected = {"labels": self.id, "epoch": str(place[0]), "shard": str(place[1])}
        for name, value in expected.items():
            if facts.get(name) != value:
                raise RunFolderError(
                    f"{path} belongs elsewhere ({name} is {facts.get(name)}, not {value}); "
                    f"delete it, then {self._again(place)}"
                )
        if len(rows) != self.num_views(place) or facts.get("sha256") != _digest(rows):
            raise RunFolderError(
                f"{path} is damaged (its checksum differs); delete it, then {self._again(place)}"
            )
        return rows

    def verify(self, epochs: int, on_progress: Callable[[int], None]) -> None:
        """Reads every shard of the first `epochs` epochs; raises DeitkitError for the first bad one."""
        for place in self.places(epochs):
            self.read(place)
            on_progress(1)

    def answer(self, epoch: int, position: int, device: torch.device) -> TeacherOutput:
        """The teacher's answer to the batch at `position` of an epoch's plan: logits (B, C), no maps."""
        place = (epoch, position // self.manifest.shard_batches)
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = (place, self.read(place))
        start = self._first_row[self.batches(place).start]
        rows = self._loaded[1][self._first_row[position] - start : self._first_row[position + 1] - start]
        return TeacherOutput(self.codec.decode(rows.to(torch.int32).to(device)), ())

    def _again(self, place: Place) -> str:
        return f"label again: deitkit label DATA --epochs {place[0] + 1} --out {self.folder}"


def open_soft_labels(folder: Path) -> SoftLabelStore:
    """The store in `folder`; raises DeitkitError where there is none."""
    return SoftLabelStore(folder, read_manifest(folder))


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().numpy().data).hexdigest()
