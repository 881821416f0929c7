"""Several backends over the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from ..inference.backends import Backend
from ..inference.joint_classifier import as_output
from .metrics import LogitAccumulator


def scores_of(
    backends: Mapping[str, Backend],
    batches: Iterable[tuple[Tensor, Tensor]],
    on_progress: Callable[[int], None],
) -> dict[str, float]:
    """Joint top-1 (or mAP) in percent of each backend over batches of (B, 3, H, W) uint8 and their labels.

    Raises DeitkitError where there is no image.
    """
    collected = {name: LogitAccumulator() for name in backends}
    for pixels, labels in batches:
        views = pixels.float() / 255.0
        for name, backend in backends.items():
            collected[name].add(as_output(backend(views)), labels)
        on_progress(len(labels))
    return {name: logits.metrics().score for name, logits in collected.items()}
