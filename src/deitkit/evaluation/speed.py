"""What a forward pass costs: images/s, latency, memory, multiply-adds, and the machine it was measured on."""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ..models.deit import DeiT
from ..run_schema import Speedup

_FEWEST_CALLS = 3
Name = TypeVar("Name", bound=str)
_CPU = torch.device("cpu")


def images_per_s(forward: Callable[[], object], batch_size: int, seconds: float = 1.5) -> float:
    """Images per second of `forward`, which processes one batch of `batch_size` per call.

    After two warm-up calls (allocation, compilation, clocks), rounds of equally many calls run for about
    `seconds`. The median round counts, so that another process waking up does not. A call that takes longer
    than `seconds` is timed three times.
    """
    for _ in range(2):
        pass_s = _timed(forward, 1)
    rounds = 5 if pass_s * 5 <= seconds else 3
    calls = max(1, int(seconds / rounds / pass_s))
    return batch_size * calls / statistics.median(_timed(forward, calls) for _ in range(rounds))


def rates_in_turns(
    forwards: Mapping[Name, Callable[[], object]], batch_size: int, *, rounds: int = 5, seconds: float = 0.3
) -> dict[Name, list[float]]:
    """Images per second of several models, one value per round, by name.

    The models take turns within each round, so that a slow moment of the machine affects all of them. Each
    processes `batch_size` images per call, for about `seconds` in each round.
    """
    calls: dict[Name, int] = {}
    for name, forward in forwards.items():
        for _ in range(2):  # warm-up
            pass_s = _timed(forward, 1)
        calls[name] = max(1, int(seconds / pass_s))
    rates: dict[Name, list[float]] = {name: [] for name in forwards}
    for _ in range(rounds):
        for name, forward in forwards.items():
            rates[name].append(batch_size * calls[name] / _timed(forward, calls[name]))
    return rates


def speedup_of(rates: Sequence[float], over: Sequence[float]) -> Speedup:
    """The speedup behind two models' `rates_in_turns`, round by round."""
    ratios = [a / b for a, b in zip(rates, over, strict=True)]
    return Speedup(value=statistics.median(ratios), low=min(ratios), high=max(ratios))


def _timed(forward: Callable[[], object], calls: int) -> float:
    """Seconds that `calls` calls take, including the accelerator's queue."""
    wait_for_device()
    start = time.perf_counter()
    for _ in range(calls):
        forward()
    wait_for_device()
    return max(time.perf_counter() - start, 1e-9)


def wait_for_device() -> None:
    """Waits until the accelerator, if there is one, is idle."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def time_calls(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for as many calls as fit into `seconds` but at least three."""
    times: list[float] = []
    while len(times) < _FEWEST_CALLS or sum(times) < seconds:
        wait_for_device()
        started = time.perf_counter()
        call()
        wait_for_device()
        times.append(time.perf_counter() - started)
    return times


@dataclass(frozen=True)
class Latency:
    """Percentiles of a batch's latency in milliseconds, images/s at the median, and the calls behind them."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    calls: int


def summarise(times: Sequence[float], batch_size: int) -> Latency:
    """The latency of calls that took `times` seconds each on a batch of `batch_size`."""
    ordered = sorted(times)

    def percentile(p: float) -> float:
        """The smallest time that p percent of the calls do not exceed."""
        return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]

    p50, p90, p99 = (percentile(p) for p in (50, 90, 99))
    return Latency(1000 * p50, 1000 * p90, 1000 * p99, batch_size / p50, len(times))


def peak_memory_mb(device: torch.device = _CPU) -> float:
    """Peak memory of this process in MB: allocated on a GPU, else resident."""
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


def multiply_adds(model: DeiT) -> int:
    """Multiply-adds of the matrix products in one forward pass on one image at the model's size.

    Papers on vision transformers call this FLOPs; processors count twice as many. Every token goes through
    every block, although deitkit's forward pass skips the unused tokens of the last block. Counted on meta
    tensors, so a large model takes neither time nor memory.
    """
    shapes = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    images = _meta_image(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, shapes, (images,), {"tokens_after": (model.depth - 1,)})
    return int(counter.get_total_flops() // 2)


def kept_values(model: DeiT) -> int:
    """Numbers that autograd keeps of one image's forward pass until the backward pass.

    Without parameters, and without attention weights, which a fused kernel does not keep. model: on the
    device "meta", so that this takes neither time nor memory.
    """
    kept: dict[int, Tensor] = {}
    tokens = model.pos_embed.shape[1]

    def keep(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        attention = tuple(whole.shape[-2:]) == (tokens, tokens)
        if not (attention or isinstance(whole, nn.Parameter)):
            kept[id(whole)] = whole
        return tensor

    images = _meta_image(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    assert output.class_logits.grad_fn is not None
    return sum(tensor.numel() for tensor in kept.values())


def _meta_image(model: DeiT) -> Tensor:
    """A batch of one image at the model's size, without values."""
    return torch.empty(1, model.patch_embed.in_channels, *model.image_size, device="meta")


def describe_machine() -> str:
    """Architecture and PyTorch's threads, such as "x86_64, 2 threads"."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
