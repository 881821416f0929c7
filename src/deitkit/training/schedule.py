"""What changes while a run goes on: pure functions of the update's number, so a resumed run agrees."""

from __future__ import annotations

import itertools
import math

from ..config import Config

_PASS_COST = 0.25  # of an image measured, in images trained: 0.18 with a teacher, 0.3 without, on a CPU


def image_size_at(step: int, total_steps: int, config: Config) -> tuple[int, int] | None:
    """Height and width of the views of update `step` (from 0); None: the student's own.

    Smaller at first, full size for a short last part, in which the student gets used to it (FixRes,
    arXiv 1906.06423; DeiT III, arXiv 2204.07118, section 3; progressive learning, arXiv 2104.00298).
    """
    train = config.train
    return train.start_size if step < round(train.start_share * total_steps) else None


def answered_at(step: int, total_steps: int, config: Config) -> bool:
    """Whether update `step` learns from the teacher's answers, and not from labels alone."""
    return step < round(config.distillation.distill_until * total_steps)


def guided_at(step: int, total_steps: int, config: Config) -> bool:
    """Whether update `step` has the teacher's feature maps to imitate (arXiv 2207.10026)."""
    return step < round(config.distillation.feature_until * total_steps)


def phases(total_steps: int, config: Config) -> list[range]:
    """The updates in runs of equal work, in order."""
    shares = [config.distillation.distill_until, config.distillation.feature_until]
    if config.train.start_size is not None:
        shares.append(config.train.start_share)
    bounds = sorted({0, total_steps, *(round(share * total_steps) for share in shares)})
    return [range(first, last) for first, last in itertools.pairwise(bounds)]


def measured_after(epoch: int, epochs: int, val_share: float) -> bool:
    """Whether raw and averaged weights are measured after `epoch` (from 0); always after the last.

    About twenty times a run: enough for a curve. Fewer where the validation images are so many
    (`val_share` of the training images) that the measuring would take more than about a twentieth of the
    training's time, but four times at least.
    """
    affordable = math.ceil(2 * val_share * _PASS_COST / 0.05)
    every = max(1, epochs // 20, min(affordable, epochs // 4))
    return (epoch + 1) % every == 0 or epoch + 1 == epochs
