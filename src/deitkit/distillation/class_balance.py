"""What uneven classes add to the logits in the losses, so that the student decides as if they were even.

Logit adjustment, Menon et al., arXiv 2007.07314. With pi_k the share of class k among the training images, a
classifier that is trained with log pi added to its logits (equation 10) gives, without it, the answers that
are right most often when all classes are equally frequent: the balanced error is what it minimises.

Both heads are after these answers, since the joint classifier is the mean of their probabilities, and the
mean of a balanced and an unbalanced posterior would be neither:

- A loss on labels, of either head, sees the student's logits plus log pi. With a sampler it sees them as they
  are: the labels are even already (by the square root, partly).
- A loss on a teacher's logits sees the student's as they are. A teacher whose head was fitted to the same
  images knows their shares, and no sampler of the student's changes what it says of an image. So log pi is
  taken off its logits (post-hoc adjustment, equation 9) before they are softened, or its hard decision is
  taken. A pretrained head knows nothing of these shares, and stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..data.sampler import SAMPLER_POWERS


@dataclass(frozen=True)
class Adjustment:
    """What is added to logits (B, K) in the losses, (K,) each; None for nothing.

    labels: to the student's, in losses on labels. teacher: to the teacher's.
    """

    labels: Tensor | None = None
    teacher: Tensor | None = None


NO_ADJUSTMENT = Adjustment()


def adjustment(balance: str, images_per_class: Tensor, *, fitted_teacher: bool) -> Adjustment:
    """balance: `train.balance`, resolved. images_per_class: (K,), of training.

    fitted_teacher: whether the teacher's head was fitted to these images, and its logits are known in full.
    """
    if balance == "none":
        return NO_ADJUSTMENT
    counts = images_per_class.double().clamp(min=1)
    log_shares = (counts / counts.sum()).log().float()
    # What the student's own labels still say of the classes' shares.
    left = SAMPLER_POWERS.get(balance, 0.0)
    return Adjustment(
        labels=log_shares if balance == "loss" else None,
        teacher=-(1 - left) * log_shares if fitted_teacher else None,
    )
