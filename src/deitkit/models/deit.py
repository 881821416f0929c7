"""DeiT: a vision transformer with a class token and a distillation token.

Touvron et al., "Training data-efficient image transformers & distillation through attention",
arXiv 2012.12877. State-dict keys are the published ones, so published weights load without renaming.

Shapes in comments: B batch, N tokens, D width, K classes, C/H/W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from .base import BatchRows, Student
from .base import DeiTOutput as DeiTOutput
from .base import joint_logits as joint_logits
from .base import joint_probabilities as joint_probabilities
from .base import probabilities_of as probabilities_of
from .blocks import Block, PatchEmbed, resize_positions, sincos_positions
from .conv_stem import STRIDE, ConvStem, StemPatches


@dataclass(frozen=True)
class Variant:
    """Embedding width, number of blocks and of attention heads (arXiv 2012.12877, table 1).

    hybrid: the first stages of EfficientNet-Lite0 stand in place of the patch projection (`conv_stem`).
    """

    embed_dim: int
    depth: int
    num_heads: int
    hybrid: bool = False


VARIANTS = {
    "nano": Variant(128, 6, 4),  # ours, for CPUs
    "nano-hybrid": Variant(192, 4, 6, hybrid=True),  # ours, for photographs on CPUs
    "tiny": Variant(192, 12, 3),
    "small": Variant(384, 12, 6),
    "base": Variant(768, 12, 12),
}


class DeiT(Student):
    """A vision transformer with a class token and, if `distilled`, a distillation token.

    image_size, patch_size: height, width in pixels. drop_path_rate: stochastic depth at the last block,
    increasing linearly from 0 at the first. layer_scale: LayerScale init value; None disables it.
    patch_drop_rate: share of patches dropped in training (PatchDropout, arXiv 2208.07220). hybrid: the
    stages of a convnet in place of the patch projection, for patches of 32 pixels; see `conv_stem`.

    Images are (B, in_channels, *image_size), normalised. In training they may have any size that is a
    multiple of the patch size; position embeddings are then resized.

    Raises SettingError if the image size is not a multiple of the patch size.

        model = create_model("tiny", num_classes=10)
        output = model(torch.zeros(1, 3, 224, 224))
        output.class_logits.shape, output.distill_logits.shape  # (1, 10), (1, 10)
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        num_classes: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        distilled: bool = True,
        layer_scale: float | None = None,
        patch_drop_rate: float = 0.0,
        hybrid: bool = False,
    ):
        super().__init__()
        if hybrid and (patch_size != StemPatches.patch_size or in_channels != StemPatches.in_channels):
            raise SettingError(f"a hybrid has patches of {STRIDE}x{STRIDE} pixels; leave out the patch size")
        if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
            raise SettingError(
                f"image size {image_size[0]}x{image_size[1]} is not a multiple of patch size "
                f"{patch_size[0]}x{patch_size[1]}; choose sizes that divide evenly"
            )
        self.image_size, self.num_classes = image_size, num_classes
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.grid_size = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
        self.num_prefix_tokens = 2 if distilled else 1
        self.patch_drop_rate = patch_drop_rate

        self.patch_embed: PatchEmbed | StemPatches = (
            StemPatches(embed_dim) if hybrid else PatchEmbed(patch_size, in_channels, embed_dim)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        num_tokens = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, r, layer_scale) for r in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.head_dist = nn.Linear(embed_dim, num_classes) if distilled else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published initialisation: truncated normal of std 0.02 for tokens and matrices, zero biases.

        The patch projection, and the stem of a hybrid, keep PyTorch's default for convolutions.
        """
        for layer in self.patch_embed.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        for name, p in self.named_parameters():
            if name.startswith("patch_embed.") or ".gamma_" in name:
                continue
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif ".norm" in name or name.startswith("norm"):
                nn.init.ones_(p)
            else:
                nn.init.trunc_normal_(p, std=0.02)

    @torch.no_grad()
    def init_structured(self) -> None:
        """The "structured" initialisation, which needs less training than the published one on little data.

        Position embeddings are 0.5 times the two-dimensional sine-cosine embeddings (fixed in
        arXiv 2205.01580, trained here), so that neighbours are similar from the first step. The blocks'
        matrices are Xavier-uniform (as in arXiv 2111.06377): std 0.02 is far too small for a narrow model.
        """
        positions = sincos_positions(self.grid_size, self.embed_dim)
        self.pos_embed[:, self.num_prefix_tokens :] = 0.5 * positions
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def token_cosine(self) -> float | None:
        """Cosine similarity of the class and distillation embeddings; None without a distillation token."""
        if self.dist_token is None:
            return None
        return F.cosine_similarity(self.cls_token.flatten(), self.dist_token.flatten(), dim=0).item()

    def fold_layer_scale(self) -> None:
        """Folds LayerScale into the projections, which keeps the outputs and gives the published keys."""
        for block in self.blocks:
            cast(Block, block).fold_layer_scale()

    @torch.no_grad()
    def scale_heads(self, factor: float) -> None:
        """Multiplies the logits of every head by `factor`, in its weights."""
        for head in (self.head, self.head_dist):
            if head is not None and factor != 1.0:
                head.weight.mul_(factor)
                head.bias.mul_(factor)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def embedding_size(self) -> int:
        """Width of all prefix tokens together."""
        return self.num_prefix_tokens * self.embed_dim

    @property
    def distilled(self) -> bool:
        """Whether the model has a distillation token and its head."""
        return self.dist_token is not None

    @property
    def stem(self) -> ConvStem | None:
        """The convnet's stages of a hybrid; None of a plain model."""
        return self.patch_embed.stem if isinstance(self.patch_embed, StemPatches) else None

    def describe(self) -> dict[str, Any]:
        """The model's shape in JSON types, as in `config.json`; the inverse of `from_description`."""
        return {
            "image_size": list(self.image_size),
            "patch_size": list(self.patch_embed.patch_size),
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": cast(Block, self.blocks[0]).mlp.fc1.out_features / self.embed_dim,
            "distilled": self.distilled,
            **({"hybrid": True} if self.stem is not None else {}),
        }

    @classmethod
    def from_description(cls, saved: dict[str, Any], num_classes: int) -> DeiT:
        """A randomly initialised model of the described shape; the inverse of `describe`.

        Raises KeyError, TypeError or ValueError if `saved` does not describe a model.
        """
        return cls(
            image_size=tuple(saved["image_size"]),
            patch_size=tuple(saved["patch_size"]),
            num_classes=num_classes,
            embed_dim=saved["embed_dim"],
            depth=saved["depth"],
            num_heads=saved["num_heads"],
            mlp_ratio=saved.get("mlp_ratio", 4.0),
            distilled=saved["distilled"],
            hybrid=saved.get("hybrid", False),
        )

    @property
    def num_params(self) -> int:
        """Number of parameters of the model as it is saved: without LayerScale, which is folded."""
        return sum(p.numel() for name, p in self.named_parameters() if ".gamma_" not in name)

    def through_stem(self, images: Tensor) -> Tensor:
        """Of a hybrid: (B, 3, H, W) -> (B, 192, H / 32, W / 32), which `forward` takes in place of images."""
        assert isinstance(self.patch_embed, StemPatches)
        return self.patch_embed.through_stem(images)

    def embed(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, P + N, D): P prefix tokens, N patch tokens, positions added."""
        grid = self._grid_of(images)
        x = self.patch_embed(images)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.dist_token) if t is not None]
        positions: Tensor = self.pos_embed
        if grid != self.grid_size:
            # Antialiased, so that every position of the full grid contributes to a coarser one.
            P = self.num_prefix_tokens
            positions = resize_positions(positions, P, self.grid_size, grid, antialias=True)
        return torch.cat([*prefix, x], dim=1) + positions

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches. Raises SettingError if the size of the images does not fit."""
        if self.stem is not None and images.shape[1] == self.stem.channels:
            return images.shape[-2], images.shape[-1]
        (H, W), (p, q) = images.shape[-2:], self.patch_embed.patch_size
        if self.image_size != (H, W) and (not self.training or H % p or W % q):
            raise SettingError(
                f"the model takes images of {self.image_size[0]}x{self.image_size[1]}, got {H}x{W}"
            )
        return H // p, W // q

    def drop_patches(self, x: Tensor, rows: BatchRows | None = None) -> tuple[Tensor, Tensor | None]:
        """Drops patches at random, per image: (B, P + N, D) -> (B, P + n, D) and the kept indices (B, n).

        n = round(N (1 - rate)), at least 1, and every subset of n patches is equally likely. Prefix
        tokens are kept. In evaluation nothing is dropped and the indices are None.
        """
        if not self.training or self.patch_drop_rate == 0.0:
            return x, None
        B, P, N = len(x), self.num_prefix_tokens, x.shape[1] - self.num_prefix_tokens
        count = max(1, round(N * (1.0 - self.patch_drop_rate)))
        first, size = rows or (0, B)
        drawn = torch.rand(size, N, device=x.device)[first : first + B]
        kept = drawn.argsort(1)[:, :count].sort(1).values
        patches = x[:, P:].gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([x[:, :P], patches], dim=1), kept

    def forward(
        self, images: Tensor, tokens_after: Sequence[int] = (), rows: BatchRows | None = None
    ) -> DeiTOutput:
        """(B, C, H, W) -> DeiTOutput. `tokens_after`: indices of blocks whose patch tokens to return.

        A hybrid takes the output of its stem (B, 192, H / 32, W / 32) as well, in place of images.

        Raises SettingError if the size of the images does not fit.
        """
        x, kept_patches = self.drop_patches(self.embed(images), rows)
        patch_tokens = []
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            # The heads read the prefix tokens only, so the last block skips the patch tokens.
            x = block(x, self.num_prefix_tokens if i == last and i not in tokens_after else None, rows)
            if i in tokens_after:
                patch_tokens.append(x[:, self.num_prefix_tokens :])
        return self.classify(x)._replace(
            patch_tokens=tuple(patch_tokens), grid_size=self._grid_of(images), kept_patches=kept_patches
        )

    def classify(self, x: Tensor) -> DeiTOutput:
        """Applies the heads to the last block's tokens (B, N, D), prefix tokens first."""
        prefix = self.norm(x[:, : self.num_prefix_tokens])
        distill_logits = self.head_dist(prefix[:, 1]) if self.head_dist is not None else None
        return DeiTOutput(self.head(prefix[:, 0]), distill_logits, embedding=prefix.flatten(1))


def create_model(
    name: str,
    *,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    patch_size: int | tuple[int, int] | None = None,
    drop_path_rate: float = 0.0,
    distilled: bool = True,
    layer_scale: float | None = None,
    patch_drop_rate: float = 0.0,
) -> DeiT:
    """A DeiT of the variant `name` (a key of `VARIANTS`).

    image_size, patch_size: pixels, one number for a square; patches are of 16 pixels by default, those of a
    hybrid of 32. The other arguments are those of `DeiT`.
    Raises SettingError for an unknown name, or if the image size is not a multiple of the patch size.
    """
    if name not in VARIANTS:
        raise SettingError(f"unknown student {name!r}; choose one of {', '.join(VARIANTS)}")
    v = VARIANTS[name]
    return DeiT(
        image_size=_pair(image_size),
        patch_size=_pair(patch_size or (STRIDE if v.hybrid else 16)),
        num_classes=num_classes,
        embed_dim=v.embed_dim,
        depth=v.depth,
        num_heads=v.num_heads,
        drop_path_rate=drop_path_rate,
        distilled=distilled,
        layer_scale=layer_scale,
        patch_drop_rate=patch_drop_rate,
        hybrid=v.hybrid,
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
