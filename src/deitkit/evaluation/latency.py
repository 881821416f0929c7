"""How long calls take, and the most memory that a process has held."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .throughput import wait_for_device

_FEWEST_CALLS = 3
_CPU = torch.device("cpu")


def time_calls(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each of as many calls as fit into `seconds`, three at least, the device waited for."""
    times: list[float] = []
    while len(times) < _FEWEST_CALLS or sum(times) < seconds:
        wait_for_device()
        started = time.perf_counter()
        call()
        wait_for_device()
        times.append(time.perf_counter() - started)
    return times


def summarise(times: Sequence[float], batch_size: int) -> dict[str, float]:
    """Percentiles of a batch's latency in milliseconds, and images/s at the median."""
    ordered = sorted(times)

    def percentile(p: float) -> float:
        """The smallest time that p percent of the calls do not exceed."""
        return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]

    latencies = {f"p{p}_ms": 1000 * percentile(p) for p in (50, 90, 99)}
    return latencies | {"images_per_s": batch_size / percentile(50), "calls": len(times)}


def peak_memory_mb(device: torch.device = _CPU) -> float:
    """The most memory this process has held, in MB: on that GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent held when it started this process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
