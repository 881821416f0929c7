"""The first stages of a convnet in place of the patch projection, for hybrid students.

ViT's paper has the hybrid (Dosovitskiy et al., arXiv 2010.11929, section 3.1); here the stages are those of
EfficientNet-Lite0, so that a student starts from the weights of its teacher.

Shapes in comments: B batch, C channels, H/W image, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stage(NamedTuple):
    """Inverted residual blocks (MobileNetV2, arXiv 1801.04381, section 3.2); the first one has the stride."""

    expansion: int
    channels: int
    blocks: int
    kernel: int
    stride: int


# Tan & Le, arXiv 1905.11946, table 1, without squeeze-and-excitation and with ReLU6: EfficientNet-Lite0.
FIRST_CHANNELS = 32
STAGES = (
    Stage(1, 16, 1, 3, 1),
    Stage(6, 24, 2, 3, 2),
    Stage(6, 40, 2, 5, 2),
    Stage(6, 80, 3, 3, 2),
    Stage(6, 112, 3, 5, 1),
    Stage(6, 192, 4, 5, 2),
)
STRIDE = 32  # pixels a side of what one output stands for
_BATCH_NORM_EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same", for sizes that its stride divides."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        both = kernel - stride  # in all; where it is odd, the far side has one more
        super().__init__(inputs, outputs, kernel, stride, 0 if both % 2 else both // 2, groups=groups)
        self.uneven = (both // 2, both - both // 2) if both % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven is not None:
            x = F.pad(x, self.uneven * 2)
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expands, filters each channel, projects: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, inputs: int, stage: Stage, stride: int):
        super().__init__()
        width = inputs * stage.expansion
        self.expand = SameConv(inputs, width, 1) if stage.expansion > 1 else None
        self.depthwise = SameConv(width, width, stage.kernel, stride, groups=width)
        self.project = SameConv(width, stage.channels, 1)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + out if self.residual else out


class ConvStem(nn.Module):
    """Normalised images (B, 3, H, W) -> (B, 192, H / 32, W / 32).

    Batch norms are folded into the convolutions before them, so that an image's output does not depend on
    the others in its batch, in training as in evaluation.
    """

    channels = STAGES[-1].channels

    def __init__(self) -> None:
        super().__init__()
        self.first = SameConv(3, FIRST_CHANNELS, 3, 2)
        blocks, channels = [], FIRST_CHANNELS
        for stage in STAGES:
            for i in range(stage.blocks):
                blocks.append(InvertedResidual(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.first(images))
        for block in self.blocks:
            x = block(x)
        return x

    @torch.no_grad()
    def load_efficientnet(
        self, state: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Takes the weights of an EfficientNet-Lite0, batch norms folded.

        state: its state dict in the order of execution, each convolution followed by the weight, bias, mean
        and variance of its batch norm; names do not matter. It was trained on images normalised by
        (pixel - 127) / 128. mean, std: how the images of this stem are normalised.

        Raises ValueError if the weights are of another network.
        """
        tensors = [tensor for tensor in state.values() if tensor.ndim > 0]  # without counts of batches
        own = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for i, layer in enumerate(own):
            weight, gain, shift, centre, variance = tensors[5 * i : 5 * i + 5]
            if weight.shape != layer.weight.shape:
                raise ValueError(f"a layer of {tuple(weight.shape)}, expected {tuple(layer.weight.shape)}")
            gain = gain / (variance + _BATCH_NORM_EPS).sqrt()
            assert layer.bias is not None
            layer.weight.copy_(weight * gain.view(-1, 1, 1, 1))
            layer.bias.copy_(shift - centre * gain)
        # The change of normalisation, (x std + mean - 127/255) / (128/255), is folded as well.
        offset = (torch.tensor(mean) * 255 - 127) / 128
        assert self.first.bias is not None
        self.first.bias += (self.first.weight * offset.view(-1, 1, 1)).sum((1, 2, 3))
        self.first.weight *= torch.tensor(std).view(-1, 1, 1) * 255 / 128


class StemPatches(nn.Module):
    """A convnet's stages in place of the patch projection: (B, 3, H, W) -> (B, N, D).

    What is the stem's output already, (B, 192, H / 32, W / 32), is projected only.

    run_stem: how a frozen stem is run instead of by PyTorch, for a while; None otherwise.
    """

    patch_size = (STRIDE, STRIDE)
    in_channels = 3

    def __init__(self, embed_dim: int):
        super().__init__()
        self.stem = ConvStem()
        self.proj = nn.Conv2d(self.stem.channels, embed_dim, 1)
        self.run_stem: Callable[[Tensor], Tensor] | None = None

    def through_stem(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 192, H / 32, W / 32)."""
        return (self.run_stem or self.stem)(images)

    def forward(self, images: Tensor) -> Tensor:
        is_output = images.shape[1] == self.stem.channels
        projected: Tensor = self.proj(images if is_output else self.through_stem(images))
        return projected.flatten(2).transpose(1, 2)
