"""What changes during training: pure functions of the step, so that a resumed run agrees."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ..config import OptimConfig, ResolvedTrain

# Evaluating an image costs this much of training on one: 0.18 with a teacher, 0.3 without, on a CPU.
_EVALUATION_COST = 0.25


@dataclass(frozen=True)
class Schedule:
    """Learning rate and image size of every step of a run of `epochs`."""

    epochs: int
    steps_per_epoch: int
    train: ResolvedTrain
    optim: OptimConfig

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """See `learning_rate`."""
        return learning_rate(
            step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.train.batch_size,
            config=self.optim,
        )

    def image_size(self, step: int) -> tuple[int, int] | None:
        """Height and width of the views of a step; None: the student's own.

        Smaller at first, then full size for a short last part, in which the student adapts (FixRes, arXiv
        1906.06423; DeiT III, arXiv 2204.07118, section 3; progressive learning, arXiv 2104.00298).
        """
        small = step < round(self.train.start_share * self.total_steps)
        return self.train.start_size if small else None

    def phases(self, *ends: float) -> list[range]:
        """The steps in ranges of equal work, in order. ends: shares of training where the work changes."""
        shares = [*ends, self.train.start_share] if self.train.start_size is not None else list(ends)
        bounds = sorted({0, self.total_steps, *(round(share * self.total_steps) for share in shares)})
        return [range(first, last) for first, last in itertools.pairwise(bounds)]

    def evaluates_after(self, epoch: int, val_share: float) -> bool:
        """Whether raw and averaged weights are evaluated after `epoch` (from 0); always after the last.

        About twenty times a run, which is enough for a curve; less often, but at least four times, if the
        validation images (`val_share` of the training images) are so many that evaluation would take more
        than about a twentieth of the training time.
        """
        affordable = math.ceil(2 * val_share * _EVALUATION_COST / 0.05)
        every = max(1, self.epochs // 20, min(affordable, self.epochs // 4))
        return (epoch + 1) % every == 0 or epoch + 1 == self.epochs


def learning_rate(
    step: int, *, total_steps: int, steps_per_epoch: int, batch_size: int, config: OptimConfig
) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then a cosine to `min_lr` at the last step.

    The peak is `lr x batch_size / lr_batch` (arXiv 2012.12877, section 6). The rate changes per step, not
    per epoch as in the published code, so the first epoch and a resumed run get the rate they should.
    """
    peak = config.lr * batch_size / config.lr_batch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 5)
    if step < warmup:
        return config.warmup_lr + (peak - config.warmup_lr) * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
