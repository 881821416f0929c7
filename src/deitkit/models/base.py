"""What the training loop, evaluation and export require of a model, and what a model returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from ..tasks import Task

_LEAST = 1e-30  # a probability that has underflowed to 0 in float32


class DeiTOutput(NamedTuple):
    """The output of a student, the same fields in training and evaluation.

    class_logits: (B, K) from the class token's head.
    distill_logits: (B, K) from the distillation token's head; None for a model without one.
    patch_tokens: (B, N, D) after each block in `tokens_after`, without the prefix tokens.
    grid_size: rows and columns of patches.
    kept_patches: (B, N) indices into the flattened grid if patches were dropped; None: all, in order.
    embedding: (B, F) what the heads read, one after the other; None for a model that does not say.
    """

    class_logits: Tensor
    distill_logits: Tensor | None
    patch_tokens: tuple[Tensor, ...] = ()
    grid_size: tuple[int, int] | None = None
    kept_patches: Tensor | None = None
    embedding: Tensor | None = None


class BatchRows(NamedTuple):
    """Which rows of a micro-batch that several processes share a model is given: the first, and of how many.

    Random decisions are then made for the whole micro-batch, so that each row gets its own.
    """

    first: int
    size: int


class Student(nn.Module):
    """Base class of every model that `Trainer` trains. A subclass defines `forward`.

    image_size: height, width in pixels. num_classes: K. distilled: whether `distill_logits` is returned.
    depth, embed_dim: blocks whose patch tokens `tokens_after` can ask for, and their width; 0 for a
    model without patch tokens, such as a convnet.
    """

    image_size: tuple[int, int]
    num_classes: int
    embed_dim: int = 0

    def forward(
        self, images: Tensor, tokens_after: Sequence[int] = (), rows: BatchRows | None = None
    ) -> DeiTOutput:
        """(B, C, H, W), normalised -> DeiTOutput. `tokens_after`: blocks whose patch tokens to return.

        rows: where `images` are in a shared micro-batch; B may be 0.
        """
        raise NotImplementedError

    if TYPE_CHECKING:

        def __call__(
            self, images: Tensor, tokens_after: Sequence[int] = (), rows: BatchRows | None = None
        ) -> DeiTOutput: ...

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return 0

    @property
    def embedding_size(self) -> int:
        """Numbers in `DeiTOutput.embedding` for an image; 0 without one."""
        return 0

    @property
    def distilled(self) -> bool:
        """Whether the model has a distillation token and its head."""
        return False

    @property
    def num_params(self) -> int:
        """Number of parameters of the model as it is saved."""
        return sum(p.numel() for p in self.parameters())

    def token_cosine(self) -> float | None:
        """Cosine similarity of the class and distillation embeddings; None without a distillation token."""
        return None

    def fold_layer_scale(self) -> None:
        """Folds LayerScale into the projections before saving; does nothing without LayerScale."""

    def describe(self) -> dict[str, Any]:
        """The model's shape in JSON types, as saved under "student" in `config.json`."""
        return {"image_size": list(self.image_size)}


def probabilities_of(logits: Tensor, task: Task = "multiclass") -> Tensor:
    """(B, K) logits -> (B, K) probabilities: softmax if multiclass, sigmoid if multilabel."""
    return logits.float().softmax(-1) if task == "multiclass" else logits.float().sigmoid()


def joint_probabilities(output: DeiTOutput, task: Task = "multiclass") -> Tensor:
    """The mean of both heads' probabilities, (B, K); the class head's without a distillation head.

    The paper adds the softmaxes (arXiv 2012.12877, section 4, "Classification with our approach"); the
    mean has the same order and sums to 1. Multilabel: the mean of the sigmoids.
    """
    p = probabilities_of(output.class_logits, task)
    if output.distill_logits is None:
        return p
    return (p + probabilities_of(output.distill_logits, task)) / 2


def tempered(probabilities: Tensor, temperature: float, task: Task = "multiclass") -> Tensor:
    """Probabilities (B, K) at a temperature above 0: powers 1 / T, normalised; the order stays.

    For a softmax that divides its logits by T (arXiv 1706.04599, section 4.2). The joint classifier is a mean
    of two softmaxes and has no logits; its powers calibrate it as a whole. Multilabel: the log-odds of each
    label are divided by T.
    """
    if temperature == 1.0:
        return probabilities
    if task == "multilabel":
        return (probabilities.logit() / temperature).sigmoid()
    return (probabilities.clamp(min=_LEAST).log() / temperature).softmax(-1)


def joint_logits(output: DeiTOutput) -> Tensor:
    """The mean of both heads' logits, (B, K), as the published code evaluates."""
    if output.distill_logits is None:
        return output.class_logits
    return (output.class_logits + output.distill_logits) / 2
