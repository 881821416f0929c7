"""How little an image looks like those of the classes: one minus its cosine with the nearest class mean.

Of the features that a model's head reads. Logits do not tell: a classifier of two classes is more certain of
most photographs than of its own images (docs/answers.md). Shapes in comments: B images, F features, C class
means.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_LEAST = 1e-12  # norm of features that are all 0


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, (B, F)."""
    norm: Tensor = features.norm(dim=-1, keepdim=True)
    return features / norm.clamp(min=_LEAST)


def unfamiliarity(embedding: Tensor, class_means: Tensor) -> Tensor:
    """From 0 to 2 for each image, (B,), of features (B, F) and class means of length 1, (C, F)."""
    # The class means as they are, so that `inference.int8` finds them and leaves this product in float.
    similar: Tensor = class_means @ unit(embedding.float()).transpose(0, 1)
    return 1 - similar.amax(0)


def unfamiliarity_of(outputs: Sequence[Tensor]) -> Tensor | None:
    """The score (B,) among a graph's outputs, which comes last; None if it has none."""
    return outputs[-1] if outputs[-1].ndim == 1 else None
