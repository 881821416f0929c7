"""Where a network runs."""

from __future__ import annotations

import torch

from ..errors import DependencyError


def resolve_inference_device(name: str) -> torch.device:
    """As `settle_device`, but `auto` is a CUDA device or the CPU, whose backends suit few images better."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_device(name)


def fast_precision(device: torch.device) -> torch.dtype:
    """What a network is run in where two of them are compared or one only answers: bfloat16 on CUDA."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_device(name: str) -> torch.device:
    """The named device, or the best one for `auto`; raises DeitkitError where it is not there."""
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise DependencyError(f"there is no device {name!r}; choose auto, cpu, cuda or mps")
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not has_mps):
        raise DependencyError(f"this machine has no {name} device; use --device cpu or auto")
    return torch.device(name)
