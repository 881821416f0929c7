"""An exported file, opened by its own runtime in a process of its own: what it answers, and how fast.

`open_again` starts such processes: python -m deitkit.deploy.reopened SPEC.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DependencyError
from ..evaluation.side_by_side import Turns, serve, take_turns
from ..inference.backends import Backend
from .export_formats import FORMATS

_BATCHES = (1, 3)  # that a file for any number of images is tried with before larger ones
_LARGE_BATCH = 32
_ROUNDS, _SECONDS = 3, 0.4


@dataclass(frozen=True)
class OpenedFile:
    """A file to open again. batch: the number of images it was written for; None for any, or for one image of
    any size."""

    format: str
    file: Path
    batch: int | None
    raw: bool = False

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to time."""
        if self.raw:
            return (1,)
        return (1, _LARGE_BATCH) if self.batch is None else (self.batch,)

    def open(self) -> Backend:
        """The format's own runtime on the file, for any number of views."""
        backend = FORMATS[self.format].open(self.file)
        return backend if self.batch is None else InBatches(backend, self.batch)


class InBatches:
    """A backend that runs one batch size, for any number of views: the last batch is filled with zeros."""

    def __init__(self, backend: Backend, batch: int):
        self.backend, self.batch = backend, batch

    @property
    def name(self) -> str:
        return self.backend.name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        n = len(views)
        filled = torch.cat([views, views.new_zeros(-n % self.batch, *views.shape[1:])])
        parts = [self.backend(part) for part in filled.split(self.batch)]
        return tuple(torch.cat(outputs)[:n] for outputs in zip(*parts, strict=True))


@dataclass(frozen=True)
class Reopened:
    """What a file answered for all inputs, (n, ...) each, and its times by batch size."""

    outputs: tuple[Tensor, ...]
    turns: dict[int, Turns]


def open_again(
    files: Mapping[str, OpenedFile], inputs: Sequence[Tensor], folder: Path
) -> dict[str, Reopened]:
    """Runs files on the same inputs, each in a fresh process, and times them in turns.

    inputs: a view (3, H, W) each, or images (H, W, 3) uint8 of any sizes. folder: for what the processes
    exchange. Raises DependencyError if one of them fails.
    """
    np.savez(folder / "inputs.npz", *(t.numpy() for t in inputs))
    commands = {}
    for name, opened in files.items():
        spec = asdict(opened) | {"file": str(opened.file.absolute()), "name": name, "folder": str(folder)}
        commands[name] = [sys.executable, "-m", __name__, json.dumps(spec)]
    batches = next(iter(files.values())).batches
    turns, failed = take_turns(commands, batches, rounds=_ROUNDS, seconds=_SECONDS)
    for name, why in failed.items():
        raise DependencyError(f"the {name} file does not run when it is opened again ({why})")
    found = {}
    for name in files:
        with np.load(folder / f"{name}.npz") as saved:
            outputs = tuple(torch.from_numpy(saved[key]) for key in saved.files)
        found[name] = Reopened(outputs, {batch: turns[name, batch] for batch in batches})
    return found


def run_inputs(backend: Backend, inputs: Sequence[Tensor], *, raw: bool) -> tuple[Tensor, ...]:
    """A backend's outputs for all inputs, on batches of different sizes."""
    if raw:
        parts = [backend(image) for image in inputs]
    else:
        views = torch.stack(list(inputs))
        sizes = [*_BATCHES[: len(views)], *[_LARGE_BATCH] * (len(views) // _LARGE_BATCH + 1)]
        cuts = np.minimum(np.cumsum([0, *sizes]), len(views)).tolist()
        parts = [backend(views[a:b]) for a, b in pairwise(cuts) if a < b]
    return tuple(torch.cat([t.float().cpu() for t in outputs]) for outputs in zip(*parts, strict=True))


def create_side(spec: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """Opens the file of a spec, writes its outputs, and then runs batches for `side_by_side.serve`."""
    folder, name = Path(spec.pop("folder")), spec.pop("name")
    opened = OpenedFile(**spec | {"file": Path(spec["file"])})
    backend = opened.open()
    with np.load(folder / "inputs.npz") as saved:
        inputs = [torch.from_numpy(saved[key]) for key in saved.files]
    outputs = run_inputs(backend, inputs, raw=opened.raw)
    np.savez(folder / f"{name}.npz", *(t.numpy() for t in outputs))

    def passes(batch_size: int) -> Callable[[], object]:
        batch = inputs[0] if opened.raw else torch.rand(batch_size, *inputs[0].shape)
        return lambda: backend(batch)

    return passes


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    serve(lambda: create_side(asked))
