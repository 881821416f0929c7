"""What uneven classes add to the logits in the losses, so that the student decides as if they were even.

Logit adjustment, Menon et al., arXiv 2007.07314. With pi_k the share of class k among the training images, a
classifier that is trained with log pi added to its logits (equation 10) gives, without it, the answers that
are right most often when all classes are equally frequent: the balanced error is what it minimises.

Both heads are after these answers, since the joint classifier is the mean of their probabilities, and the
mean of a balanced and an unbalanced posterior would be neither. So log pi is added to the student's logits

- in a loss on labels, of either head, unless a sampler has made the labels even already;
- in a loss on a teacher's hard decisions likewise: they are as uneven as the images that are shown;
- in a loss on the logits of a teacher whose head was fitted to the same images, and so knows their shares:
  with a sampler as well, since how often an image is shown does not change what the teacher says of it. What
  the student then has to say by itself is the teacher's answer without log pi (post-hoc adjustment, equation
  9).

A pretrained head knows nothing of these shares: its logits are learnt as they are. A sampler by square roots
leaves half of each log pi.

A fitted teacher that is deployed instead of the student gives that same answer: what its logits know of the
shares is taken off them (`Teacher.adjusted`), and the student still learns from the logits as fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.sampler import SAMPLER_POWERS


@dataclass(frozen=True)
class Adjustment:
    """What is added to the student's logits (B, K) in the losses, (K,) each; None for nothing.

    labels: in losses on labels. distillation: in the loss on the teacher's outputs.
    """

    labels: Tensor | None = None
    distillation: Tensor | None = None

    def to(self, device: torch.device) -> Adjustment:
        return Adjustment(
            *(part if part is None else part.to(device) for part in (self.labels, self.distillation))
        )


NO_ADJUSTMENT = Adjustment()


def adjustment(balance: str, images_per_class: Tensor, mode: str, *, fitted_teacher: bool) -> Adjustment:
    """balance: `train.balance`, resolved. images_per_class: (K,), of training. mode: `distillation.mode`.

    fitted_teacher: whether the teacher's head was fitted to these images.
    """
    taken_off = taken_off_teacher(balance, images_per_class)
    if taken_off is None:
        return NO_ADJUSTMENT
    labels = _log_shares(images_per_class) if balance == "loss" else None
    if mode == "hard":
        return Adjustment(labels, labels)
    return Adjustment(labels, taken_off if fitted_teacher else None)


def taken_off_teacher(balance: str, images_per_class: Tensor) -> Tensor | None:
    """(K,) what a fitted teacher's logits know of the classes' shares, and should not; None for nothing.

    balance: `train.balance`, resolved. images_per_class: (K,), of training.
    """
    if balance == "none":
        return None
    # What the student's own labels still say of the classes' shares.
    left = SAMPLER_POWERS.get(balance, 0.0)
    return (1 - left) * _log_shares(images_per_class)


def _log_shares(images_per_class: Tensor) -> Tensor:
    counts = images_per_class.double().clamp(min=1)
    return (counts / counts.sum()).log().float()
