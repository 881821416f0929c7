"""Makes batches of training views on the device, prefetched by threads.

Threads, not processes: decoding and tensor operations release the interpreter's lock. A batch is a pure
function of its plan, so the number of workers changes only the speed. On a GPU, pixels that fit are kept
there, and views are made on streams of their own, beside the training step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class ViewBatch:
    """Training views: images (B, 3, H, W) float in [0, 1], soft targets (B, K), image indices (B,).

    The target of an unlabelled view is a row of zeros.
    """

    images: Tensor
    targets: Tensor
    indices: NDArray[np.int64]
    labelled_share: float = 1.0  # share of the views with a label


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
        """Fetches, augments and mixes the views of `batch`."""
        if self.device.type != "cuda":
            return self._make(batch)
        # On the default stream each copy of a few numbers from the host would wait for the training step.
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            made = self._make(batch)
        stream.synchronize()
        for tensor in (made.images, made.targets):
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return made

    def _make(self, batch: Batch) -> ViewBatch:
        pixels = self.store.fetch(batch.indices).to(self.device)
        size = batch.image_size or self.image_size
        if size != self.image_size:
            pixels = self._downscaled(pixels, size)
        maker = ViewMaker(self.augment, size)
        images = maker(pixels, self.store.aspects[batch.indices], batch.keys)
        labels = self.labels[batch.indices]
        targets = torch.from_numpy(targets_of(labels, self.num_classes)).to(self.device)
        images, targets = mix_pairs(images, targets, batch.keys, self.augment)
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
