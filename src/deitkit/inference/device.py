"""Where a network runs."""

from __future__ import annotations

import os

import torch

from .. import distributed
from ..errors import DependencyError, SettingError


def resolve_inference_device(name: str) -> torch.device:
    """As `resolve_device`, but "auto" is CUDA or the CPU, whose backends suit few images better than MPS."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_device(name)


def fast_precision(device: torch.device) -> torch.dtype:
    """The precision of inference: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def resolve_device(name: str) -> torch.device:
    """The named device, or the best one for "auto". Under torchrun each process of a machine has its own GPU.

    Raises SettingError for an unknown name, DependencyError if this machine does not have the device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise SettingError(f"there is no device {name!r}; choose auto, cpu, cuda or mps")
    if (name == "cuda" and not torch.cuda.is_available()) or (name == "mps" and not has_mps):
        raise DependencyError(f"this machine has no {name} device; use --device cpu or auto")
    index = distributed.local_rank()
    if name != "cuda" or index is None:
        return torch.device(name)
    if index >= torch.cuda.device_count():
        raise DependencyError(
            f"this machine has {torch.cuda.device_count()} GPUs and process {index} of it, from 0, has none; "
            "give torchrun a smaller --nproc-per-node"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def memory_bytes(device: torch.device) -> int | None:
    """The memory of a GPU; None for a device whose memory is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else None


def be_deterministic() -> None:
    """From now on operations on a GPU give the same bits in every run of this process. A CPU's do anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS asks for
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
