"""What a measurement was made on, as it stands beside every number."""

from __future__ import annotations

import platform

import torch


def describe_machine() -> str:
    """Architecture and PyTorch's threads, such as "x86_64, 2 threads"."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
