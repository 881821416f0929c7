"""Makes batches of training views on the device, prefetched by threads.

Threads, not processes: decoding and tensor operations release the interpreter's lock. A batch is a pure
function of its plan, so the number of workers changes only the speed. On a GPU, pixels that fit are kept
there, and views are made beside the training step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..config import AugmentConfig
from .augment import ViewMaker
from .cache import DevicePixels, PixelStore
from .image_set import has_label, targets_of
from .mixup import mix_pairs
from .sampler import Batch

Planned = TypeVar("Planned")
Made = TypeVar("Made")


class SideStreams:
    """Streams of a GPU on which work goes on beside the training step; elsewhere work is just done.

    On the default stream each copy of a few numbers from the host would wait for the step. Streams are used
    again, because PyTorch keeps freed memory for each of them.
    """

    def __init__(self) -> None:
        self._free: list[torch.cuda.Stream] = []

    def run(self, device: torch.device, make: Callable[[], Made]) -> Made:
        """`make()`, done: its tensors can be used on the default stream, and freed there."""
        if device.type != "cuda":
            return make()
        stream = self._free.pop() if self._free else torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            made = make()
        stream.synchronize()
        self._free.append(stream)
        for tensor in _tensors(made):
            tensor.record_stream(torch.cuda.default_stream(device))
        return made


def _tensors(made: object) -> Iterator[Tensor]:
    """Every tensor in nested sequences and dataclasses."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, (list, tuple)):
        for part in made:
            yield from _tensors(part)
    elif is_dataclass(made):
        yield from _tensors([getattr(made, field.name) for field in fields(made)])


_STREAMS = SideStreams()


@dataclass(frozen=True)
class ViewBatch:
    """Training views: images (B, 3, H, W) float in [0, 1], soft targets (B, K), image indices (B,).

    The target of an unlabelled view is a row of zeros. rows: which of the views `images` and `targets` hold,
    if several processes share the batch; None for all. `indices` and `labelled_share` are of the whole batch.
    """

    images: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    labelled_share: float = 1.0  # share of the views with a label
    rows: range | None = None

    def split_sizes(self, micro_batch_size: int) -> list[int]:
        """How many of `images` are in each micro-batch of the whole batch; 0 where all are of others."""
        size = len(self.indices)
        rows = range(size) if self.rows is None else self.rows
        firsts = range(0, size, micro_batch_size)
        ends = (min(rows.stop, first + micro_batch_size) for first in firsts)
        return [max(0, end - max(rows.start, first)) for first, end in zip(firsts, ends, strict=True)]


@dataclass(frozen=True)
class TrainingViews:
    """Makes the views of planned batches, each a pure function of the batch.

    Views have `image_size` unless the batch names another. A smaller view shows the same crop, flipped and
    mixed alike, because a key decides shares of an image's sides. labels: as in ImageSet.
    """

    store: PixelStore | DevicePixels
    labels: NDArray[Any]
    num_classes: int
    augment: AugmentConfig
    image_size: tuple[int, int]
    device: torch.device

    def make(self, batch: Batch) -> ViewBatch:
        """Fetches, augments and mixes the views of `batch`, those of its `rows`.

        The rows begin with an even one, since mixing pairs neighbours.
        """
        return _STREAMS.run(self.device, lambda: self._make(batch))

    def _make(self, batch: Batch) -> ViewBatch:
        indices, keys, size = batch.indices, batch.keys, batch.image_size or self.image_size
        labelled_share = float(has_label(self.labels[indices]).mean())
        if batch.rows is not None:
            own = slice(batch.rows.start, batch.rows.stop)
            indices, keys = indices[own], keys[own]
        if len(indices) == 0:  # fewer pairs than processes
            images = torch.zeros(0, 3, *size, device=self.device)
            targets = torch.zeros(0, self.num_classes, device=self.device)
            return ViewBatch(images, targets, batch.indices, labelled_share, batch.rows)
        pixels = self.store.fetch(indices)
        if self.device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()  # a copy from pageable memory takes longer
        pixels = pixels.to(self.device, non_blocking=True)
        if size != self.image_size:
            pixels = self._downscaled(pixels, size)
        maker = ViewMaker(self.augment, size)
        images = maker(pixels, self.store.aspects[indices], keys)
        targets = torch.from_numpy(targets_of(self.labels[indices], self.num_classes)).to(self.device)
        images, targets = mix_pairs(images, targets, keys, self.augment)
        return ViewBatch(images, targets, batch.indices, labelled_share, batch.rows)

    def without_images(self, batch: Batch) -> ViewBatch:
        """As `make` for a whole batch, but with images of no pixels, if nothing is mixed."""
        labels = self.labels[batch.indices]
        targets = torch.from_numpy(targets_of(labels, self.num_classes)).to(self.device)
        images = torch.zeros(len(labels), 3, 0, 0, device=self.device)
        return ViewBatch(images, targets, batch.indices, float(has_label(labels).mean()))

    def _downscaled(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 3, S, T) uint8 -> the size that is stored for views of `size`, so that these do not alias."""
        H, W = self.image_size
        sides = [round(pixels.shape[-2] * size[0] / H), round(pixels.shape[-1] * size[1] / W)]
        smaller = F.interpolate(pixels.float(), sides, mode="bilinear", antialias=True)
        return smaller.round_().clamp_(0, 255).to(torch.uint8)


def prefetch(make: Callable[[Planned], Made], batches: Iterable[Planned], workers: int) -> Iterator[Made]:
    """`make(batch)` for each batch, in order. `workers` threads make up to `workers` + 1 of them ahead."""
    if workers == 0:
        yield from map(make, batches)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="views") as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for batch in batches:
                pending.append(pool.submit(make, batch))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
