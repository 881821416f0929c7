"""A folder of soft labels: a manifest, and safetensors shards that each hold a part of an epoch.

A shard has the rows of whole planned batches, in the plan's order: at most about 130,000 views of one epoch.
It is the unit that an interrupted process repeats and that processes share out. It names the manifest, its
place and the hash of its rows, and is written to a temporary file that is then renamed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..data.sampler import Batch, ClassShares, Sampler
from ..errors import RunFolderError
from ..io import write_tensors
from ..run_folder import TEACHER_FOLDER
from ..teachers.saved import read_card
from ..teachers.teacher import TeacherOutput
from .codec import HardCodec, make_codec
from .manifest import Manifest, read_manifest

SHARD_VIEWS = 131_072

Place = tuple[int, int]  # epoch, shard of that epoch


class SoftLabelStore:
    """Soft labels for the views that `Sampler` plans. Epochs, shards and positions count from 0.

    shares: as in Sampler, if classes were sampled; a plan needs them, and nothing else does.
    """

    def __init__(self, folder: Path, manifest: Manifest, shares: ClassShares | None = None):
        self.folder, self.manifest = folder, manifest
        self.codec = make_codec(len(manifest.classes), manifest.format)
        self.id = manifest.fingerprint()
        config = manifest.config
        self._sampler = Sampler(
            manifest.images - manifest.unlabeled,
            batch_size=config.train.batch_size,
            repeats=config.data.repeats,
            views=config.data.views,
            seed=config.train.seed,
            num_unlabeled=manifest.unlabeled,
            unlabeled_share=config.data.unlabeled_share,
            shares=shares,
        )
        sizes = [len(batch.indices) for batch in self.plan(0)]  # the same in every epoch, with any shares
        self.views_per_epoch = sum(sizes)
        self._first_row = [0, *itertools.accumulate(sizes)]
        self.shards = -(-len(sizes) // manifest.shard_batches)
        self._loaded: tuple[Place, Tensor] | None = None

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of an epoch, as training plans them."""
        return self._sampler.epoch(epoch)

    def path(self, place: Place) -> Path:
        return self.folder / f"epoch-{place[0]:05d}-{place[1]:03d}.safetensors"

    def places(self, epochs: int) -> Iterator[Place]:
        """All shards of the first `epochs` epochs."""
        return itertools.product(range(epochs), range(self.shards))

    def batches(self, place: Place) -> slice:
        """The positions in the plan of a shard's batches."""
        per_shard = self.manifest.shard_batches
        return slice(place[1] * per_shard, min((place[1] + 1) * per_shard, len(self._first_row) - 1))

    def num_views(self, place: Place) -> int:
        batches = self.batches(place)
        return int(self._first_row[batches.stop] - self._first_row[batches.start])

    @property
    def from_fitted_teacher(self) -> bool:
        """Whether the teacher's head was fitted to the data."""
        return read_card(self.folder / TEACHER_FOLDER).fitted

    def epochs(self) -> int:
        """The number of complete epochs, counted from the first one to the first gap."""
        complete = (
            all(self.path((epoch, shard)).exists() for shard in range(self.shards))
            for epoch in itertools.count()
        )
        return sum(1 for _ in itertools.takewhile(bool, complete))

    def write(self, place: Place, rows: Sequence[Tensor]) -> None:
        """Stores a shard: the encoded rows of its batches, in order."""
        tensor = torch.cat(list(rows))
        metadata = self._identity(place) | {"sha256": _digest(tensor)}
        write_tensors(self.path(place), {"labels": tensor}, metadata)

    def read(self, place: Place) -> Tensor:
        """The rows of a shard. Raises RunFolderError if it is missing, damaged or of another store."""
        path = self.path(place)
        if not path.is_file():
            raise RunFolderError(f"{path} is missing; {self._again(place)}")
        try:
            with safe_open(path, "pt") as opened:
                metadata, rows = opened.metadata() or {}, opened.get_tensor("labels")
        except Exception as error:  # a truncated file raises errors of many kinds
            raise RunFolderError(
                f"{path} cannot be read ({type(error).__name__}); delete it, then {self._again(place)}"
            ) from None
        for name, value in self._identity(place).items():
            if metadata.get(name) != value:
                raise RunFolderError(
                    f"{path} belongs elsewhere ({name} is {metadata.get(name)}, not {value}); "
                    f"delete it, then {self._again(place)}"
                )
        if not self._fits(place, rows) or metadata.get("sha256") != _digest(rows):
            raise RunFolderError(
                f"{path} is damaged (its checksum differs); delete it, then {self._again(place)}"
            )
        tensor: Tensor = rows
        return tensor

    def verify(self, epochs: int, on_progress: Callable[[int], None]) -> None:
        """Reads all shards of the first `epochs` epochs. Raises RunFolderError for the first damaged one."""
        for place in self.places(epochs):
            self.read(place)
            on_progress(1)

    def outputs(self, epoch: int, position: int, device: torch.device) -> TeacherOutput:
        """The teacher's logits (B, C) for the batch at `position` of an epoch's plan; no feature maps."""
        place = (epoch, position // self.manifest.shard_batches)
        if self._loaded is None or self._loaded[0] != place:
            self._loaded = (place, self.read(place))
        start = self._first_row[self.batches(place).start]
        rows = self._loaded[1][self._first_row[position] - start : self._first_row[position + 1] - start]
        return TeacherOutput(self.codec.decode(rows.to(torch.int32).to(device)), ())

    def _identity(self, place: Place) -> dict[str, str]:
        """What a shard's metadata says of its place."""
        return {"labels": self.id, "epoch": str(place[0]), "shard": str(place[1])}

    def _fits(self, place: Place, rows: Tensor) -> bool:
        shape = (self.num_views(place), *self.codec.row_shape)
        if rows.dtype != self.codec.dtype or tuple(rows.shape) != shape:
            return False
        return not isinstance(self.codec, HardCodec) or int(rows.int().max()) < self.codec.num_classes

    def _again(self, place: Place) -> str:
        return f"label again: deitkit label DATA --epochs {place[0] + 1} --out {self.folder}"


def open_soft_labels(folder: Path) -> SoftLabelStore:
    """The store in `folder`. Raises RunFolderError if there is none."""
    return SoftLabelStore(folder, read_manifest(folder))


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().numpy().data).hexdigest()
