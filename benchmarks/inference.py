"""Inference of deitkit's DeiT and timm's, in PyTorch, compiled, ONNX Runtime and OpenVINO.

    python benchmarks/inference.py [--models tiny,small] [--batch 1,32] [--device cpu] [--rounds 5]
        [--seconds 2] [--merge 13] [--out results/inference/NAME.json]

Both have the same random weights, 224 px, distilled, 1000 classes; fp32 on a CPU, bf16 on a GPU (PyTorch
and compiled only). Each side has its own process and the sides take turns, so run it on a quiet machine.
Each row has the largest difference of its joint logits from timm's in eager PyTorch. The table goes to
stderr; the last line of stdout is JSON, with the ratio of deitkit's fastest side to timm's fastest for
each model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from deitkit.evaluation.side_by_side import serve, take_turns
from deitkit.inference.backends import (
    Backend,
    OnnxRuntimeBackend,
    OpenVINOBackend,
    PyTorchBackend,
    to_openvino,
)
from deitkit.inference.onnx_graph import to_onnx
from deitkit.models.deit import DeiT, create_model, joint_logits
from deitkit.models.token_merging import TokenMerging
from provenance import provenance

SIZE = 224
BACKENDS = ("pytorch", "compiled", "onnxruntime", "openvino")


class Joint(nn.Module):
    """deitkit's model with timm's output: the mean of both heads' logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (joint_logits(self.network(images)),)


class Theirs(nn.Module):
    """timm's model, with its output in a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def ours(name: str) -> DeiT:
    torch.manual_seed(0)
    return create_model(name, num_classes=1000).eval()


def network_of(who: str, name: str, merge: int) -> nn.Module:
    """The model of one side. who: deitkit, merged or timm, all with the same weights."""
    model = ours(name)
    if who == "timm":
        theirs = timm.create_model(f"deit_{name}_distilled_patch16_224", num_classes=1000)
        theirs.load_state_dict(model.state_dict())
        return Theirs(theirs).eval()
    return Joint(TokenMerging(model, merge) if who == "merged" else model).eval()


def backend_of(network: nn.Module, backend: str, device: torch.device) -> Backend:
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(to_onnx(network, (SIZE, SIZE), ["logits"]).SerializeToString())
    if backend == "openvino":
        return OpenVINOBackend(to_openvino(network, (SIZE, SIZE)))
    precision = torch.bfloat16 if device.type == "cuda" else torch.float32
    return PyTorchBackend(network, device, precision=precision, compiled=backend == "compiled")


def side(spec: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """The calls for `serve`."""
    device = torch.device(spec["device"])
    network = network_of(spec["who"], spec["model"], spec["merge"])
    backend = backend_of(network, spec["backend"], device)

    def passes(batch_size: int) -> Callable[[], object]:
        images = torch.randn(batch_size, 3, SIZE, SIZE).to(device)
        return lambda: backend(images)

    return passes


def differences(name: str) -> dict[str, float]:
    """Largest difference of the logits from timm's in eager PyTorch, on two images, fp32 on the CPU."""
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    cpu = torch.device("cpu")
    expected = backend_of(network_of("timm", name, 0), "pytorch", cpu)(images)[0]
    found = {}
    for runtime in ("pytorch", "onnxruntime", "openvino"):
        backend = backend_of(network_of("deitkit", name, 0), runtime, cpu)
        found[f"deitkit {runtime}"] = (backend(images)[0] - expected).abs().max().item()
    return found


def measure(name: str, batches: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Measures all sides of one model."""
    who = ["timm", "deitkit"] + (["merged"] if options.merge else [])
    backends = BACKENDS if options.device == "cpu" else BACKENDS[:2]
    commands = {}
    for one in who:
        for backend in backends:
            spec = {"who": one, "model": name, "backend": backend}
            spec |= {"merge": options.merge, "device": options.device}
            commands[f"{one} {backend}"] = [sys.executable, __file__, "--side", json.dumps(spec)]
    found, failed = take_turns(commands, batches, rounds=options.rounds, seconds=options.seconds)
    rows = [{"model": name, "side": s, "batch": b} | turns.to_dict() for (s, b), turns in found.items()]
    for row in rows:
        print(
            f"{name:6} batch {row['batch']:<4} {row['side']:22} {row['images_per_s']:9.1f} images/s  "
            f"p50 {row['p50_ms']:8.1f} ms  p99 {row['p99_ms']:8.1f} ms  {row['memory_mb']:7.0f} MB",
            file=sys.stderr,
        )
    speed = {(*r["side"].split(), r["batch"]): r["images_per_s"] for r in rows}

    def best(one: str, batch: int) -> float:
        return max((v for (who, _, b), v in speed.items() if (who, b) == (one, batch)), default=0.0)

    ratios = {f"batch {b}": best("deitkit", b) / best("timm", b) for b in batches if best("timm", b)}
    merged = {
        f"batch {b} {backend}": value / speed["deitkit", backend, b]
        for (one, backend, b), value in speed.items()
        if one == "merged" and ("deitkit", backend, b) in speed
    }
    return {"rows": rows, "failed": failed, "ratio_to_best_of_timm": ratios, "merged_speedup": merged}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", default="tiny,small")
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a side, batch and round")
    parser.add_argument("--merge", type=int, default=13, help="tokens a block; 0 leaves merging out")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        serve(lambda: side(json.loads(options.side)), options.device)
        return
    batches = [int(b) for b in options.batch.split(",")]
    names = options.models.split(",")
    found = {
        "benchmark": "inference",
        "merge": options.merge,
        "models": {name: measure(name, batches, options) for name in names},
        "logits_within": {name: differences(name) for name in names} if options.device == "cpu" else {},
        **provenance(timm, on_gpu=options.device == "cuda"),
    }
    text = json.dumps(found)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=options.out.parent, delete=False) as file:
            file.write(text)
        Path(file.name).replace(options.out)
    print(text)


if __name__ == "__main__":
    main()
