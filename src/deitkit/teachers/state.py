"""Reads a weights file; only tensors and plain values are unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import DeitkitError


def split_path(rest: str) -> tuple[str, Path | None]:
    """`NAME[@PATH]` as name and path; raises DeitkitError where the path leads nowhere."""
    name, _, path = rest.partition("@")
    if path and not Path(path).is_file():
        raise DeitkitError(f"the teacher's weights {path} do not exist; give the path of a weights file")
    return name, Path(path) if path else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, bare or under "model" or "state_dict"."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            loaded = loaded[key] if isinstance(loaded.get(key), dict) else loaded
        return loaded
    except Exception as error:  # a cut file fails in many ways
        raise DeitkitError(f"the weights file {path} cannot be read: {type(error).__name__}") from None


def load_by_name(model: nn.Module, state: dict[str, Tensor], head: str, path: Path, name: str) -> bool:
    """Loads `state`; whether it holds the head, whose keys start with `head`.

    A file without the head is welcome; one that lacks, or adds, anything else is refused.
    """
    own = model.state_dict()
    without = [key for key in own if key not in state]
    foreign = [key for key in state if key not in own or own[key].shape != state[key].shape]
    if [key for key in without if not key.startswith(head)] or foreign:
        raise DeitkitError(f"{path} does not hold weights of {name}; give the matching file")
    model.load_state_dict(state, strict=False)
    return not without
