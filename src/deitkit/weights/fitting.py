"""Loads weights into a model of another shape: other classes, image size, patch size or tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..models.blocks import resize_positions
from ..models.deit import DeiT


def load_into(model: DeiT, weights: dict[str, Tensor], *, antialias: bool = False) -> list[str]:
    """Loads `weights` (published keys) into `model`, fitted to its shape.

    Returns one sentence per change; none if every tensor fits.

    - A missing distillation token, its position and its head are copied from the class token; a surplus one
      is dropped.
    - Missing LayerScale gains are 1.
    - Heads for another number of classes are initialised anew.
    - Position embeddings and patch kernels are resized, bicubic as published; antialias: as timm does, and
      the official code does not.

    The number of attention heads cannot be seen in weights and is not checked. Raises WeightsError if width,
    depth or architecture differ.
    """
    state = {k: v.to(model.pos_embed) for k, v in weights.items()}
    _check_backbone(model, state)
    changes: list[str] = []
    _fit_layer_scale(model, state, changes)
    _fit_distillation(model, state, changes)
    _fit_heads(model, state, changes)
    _fit_patches(model, state, changes, antialias)
    _fit_positions(model, state, changes, antialias, getattr(weights, "grid_size", None))
    model.load_state_dict(state)
    return changes


def _check_backbone(model: DeiT, state: dict[str, Tensor]) -> None:
    """Refuses what cannot be adapted: another width, depth, MLP or number of channels, other layers."""
    own = model.state_dict()
    depth = 1 + max((int(k.split(".")[1]) for k in state if k.startswith("blocks.")), default=-1)
    width = state["cls_token"].shape[-1]
    if (width, depth) != (model.embed_dim, model.depth):
        raise WeightsError(
            f"the weights have width {width} and depth {depth}, the student has width {model.embed_dim} and "
            f"depth {model.depth}; choose the student that matches them, or other weights"
        )
    adapted = ("head", "dist_token", "pos_embed", "patch_embed.proj.weight")
    foreign = [k for k in state if k not in own and not k.startswith(adapted)]
    absent = [k for k in own if k not in state and not k.startswith(adapted) and ".gamma_" not in k]
    if foreign or absent:
        what = f"an extra {foreign[0]!r}" if foreign else f"no {absent[0]!r}"
        raise WeightsError(
            f"the weights are of another architecture: they have {what}; give weights of a DeiT"
        )
    shapes = {
        k: (state[k].shape, v.shape) for k, v in own.items() if not k.startswith(adapted) and k in state
    }
    kernel = "patch_embed.proj.weight"
    shapes[kernel] = (state[kernel].shape[:2], own[kernel].shape[:2])  # width and input channels only
    for key, (theirs, ours) in shapes.items():
        if theirs != ours:
            raise WeightsError(
                f"{key!r} is {tuple(theirs)} in the weights and {tuple(ours)} in the student; "
                "choose the student that matches them, or other weights"
            )


def _fit_layer_scale(model: DeiT, state: dict[str, Tensor], changes: list[str]) -> None:
    """Gains of 1 keep the function: `published_keys` folds trained gains into the projections."""
    gains = {k: v for k, v in model.state_dict().items() if ".gamma_" in k and k not in state}
    if gains:
        state |= {k: torch.ones_like(v) for k, v in gains.items()}
        changes.append("LayerScale is initialised to 1: the weights have it folded into their projections")


def _fit_distillation(model: DeiT, state: dict[str, Tensor], changes: list[str]) -> None:
    if model.dist_token is None and "dist_token" in state:
        positions = state["pos_embed"]
        state["pos_embed"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
        for key in ("dist_token", "head_dist.weight", "head_dist.bias"):
            state.pop(key, None)
        changes.append("the distillation token, its position and its head are dropped")
    elif model.dist_token is not None and "dist_token" not in state:
        positions = state["pos_embed"]
        state["dist_token"] = state["cls_token"].clone()
        state["pos_embed"] = torch.cat([positions[:, :1], positions], dim=1)
        if "head.weight" in state:
            state |= {f"head_dist.{k}": state[f"head.{k}"].clone() for k in ("weight", "bias")}
        changes.append("the distillation token, its position and its head are copied from the class token")


def _fit_heads(model: DeiT, state: dict[str, Tensor], changes: list[str]) -> None:
    for name, head in (("head", model.head), ("head_dist", model.head_dist)):
        weight = state.get(f"{name}.weight")
        if head is None or (weight is not None and weight.shape == head.weight.shape):
            continue
        why = "the weights have none" if weight is None else f"the weights have {weight.shape[0]}"
        changes.append(f"{name} is initialised anew for {model.num_classes} classes: {why}")
        state[f"{name}.weight"] = nn.init.trunc_normal_(torch.empty_like(head.weight), std=0.02)
        state[f"{name}.bias"] = torch.zeros_like(head.bias)


def _fit_patches(model: DeiT, state: dict[str, Tensor], changes: list[str], antialias: bool) -> None:
    if model.stem is not None:
        return
    kernel, new = state["patch_embed.proj.weight"], model.patch_embed.patch_size
    old = (kernel.shape[-2], kernel.shape[-1])
    if old == new:
        return
    resized = F.interpolate(kernel, new, mode="bicubic", align_corners=False, antialias=antialias)
    # A kernel sums over its pixels, so the weights of fewer pixels are scaled up to keep the sum.
    state["patch_embed.proj.weight"] = resized * (old[0] * old[1] / (new[0] * new[1]))
    changes.append(f"the patch kernels are resized from {old[0]}x{old[1]} to {new[0]}x{new[1]} pixels")


def _fit_positions(
    model: DeiT,
    state: dict[str, Tensor],
    changes: list[str],
    antialias: bool,
    grid: tuple[int, int] | None,
) -> None:
    count, new = state["pos_embed"].shape[1] - model.num_prefix_tokens, model.grid_size
    guessed = grid is None
    old = grid or _likely_grid(count, new)
    if old != new:
        state["pos_embed"] = resize_positions(
            state["pos_embed"], model.num_prefix_tokens, old, new, antialias
        )
        taken = " (assumed from their number)" if guessed else ""
        changes.append(
            f"the position embeddings are resized from {old[0]}x{old[1]}{taken} to {new[0]}x{new[1]} patches"
        )


def _likely_grid(count: int, target: tuple[int, int]) -> tuple[int, int]:
    """The grid of `count` patches: square if possible, as published, else nearest in shape to `target`."""
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return min(grids, key=lambda g: abs(math.log(g[0] / g[1] * target[1] / target[0])))
