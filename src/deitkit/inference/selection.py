"""Which backend runs a frozen network: one test of agreement, one choice.

PyTorch is the reference. "auto" keeps it on a GPU; on a CPU it takes the first converted graph whose outputs
agree with the reference, unless the reference is clearly faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from .. import log
from ..config import BackendName
from ..errors import DeitkitError, DependencyError
from .backends import CONVERTED, Backend, FrozenNetwork, builders, installed, require
from .joint_classifier import ClassifierGraph

Builders = Mapping[str, Callable[[], Backend]]  # by backend's name, the reference first

_CALLS = 5  # of each backend in a race
# Roughly the time that a conversion takes. A backend is looked for once eager passes have cost as much:
# a single image need not wait for it, and many images do not go without it.
_LOOK_AFTER_S = 4.0


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may differ: `absolute`, plus `relative` to each output's largest value."""

    absolute: float = 0.0
    relative: float = 0.0


STUDENT_TOLERANCE = Tolerance(absolute=1e-3)  # of logits and probabilities in float32


@dataclass(frozen=True)
class Rule:
    """When another backend replaces the reference.

    margin: the reference stays if it is more than `margin` times as fast. what: in messages, "the teacher";
    None reports nothing.
    """

    tolerance: Tolerance
    margin: float = 1.0
    what: str | None = None


def agrees(reference: Sequence[Tensor], outputs: Sequence[Tensor], tolerance: Tolerance) -> bool:
    """Whether two backends' outputs are within `tolerance`; outputs that are not finite never agree."""
    return len(reference) == len(outputs) and all(
        torch.allclose(
            a.cpu(),
            b.cpu(),
            rtol=tolerance.relative,
            atol=tolerance.absolute + tolerance.relative * float(a.abs().max()),
        )
        for a, b in zip(reference, outputs, strict=True)
    )


def choose_backend(
    candidates: Builders, views: Tensor, device: torch.device, wanted: str, rule: Rule
) -> Backend:
    """The backend `wanted` of `candidates`, checked against the first of them, the reference.

    views: the batch (B, 3, H, W) that agreement and speed are measured on. wanted: a name; "auto" chooses as
    the module describes. It never compiles, which takes long. Raises DependencyError if `wanted` is not
    among `candidates`, is not installed, fails, or disagrees with the reference.
    """
    reference = next(iter(candidates))
    if wanted == "auto":
        first = candidates[reference]()
        names = [name for name in CONVERTED if name in candidates and name != reference]
        return first if device.type != "cpu" else _fastest(first, names, candidates, views, rule)
    what = rule.what or "this network"
    if wanted not in candidates:
        if wanted == "pytorch":  # asks for no conversion, which the reference is
            return candidates[reference]()
        raise DependencyError(f"{what} cannot run with {wanted}; choose one of auto, {', '.join(candidates)}")
    require(wanted)
    if wanted == reference:
        return candidates[reference]()
    expected = candidates[reference]()(views)
    try:
        backend = candidates[wanted]()
        outputs = backend(views)
    except DeitkitError:
        raise
    except Exception as error:  # converters and compilers raise errors of their own
        raise DependencyError(
            f"{what} cannot be run with {wanted} ({type(error).__name__}); use backend auto"
        ) from error
    if not agrees(expected, outputs, rule.tolerance):
        raise DependencyError(f"{wanted} disagrees with {reference} on {what}; use backend auto")
    return backend


def _fastest(first: Backend, names: list[str], candidates: Builders, views: Tensor, rule: Rule) -> Backend:
    """The first of `names` that is installed and agrees, unless `first` is clearly faster."""
    say = log.logger.debug if rule.what is None else log.info
    what = rule.what or "the network"
    expected = first(views)
    for name in filter(installed, names):
        try:
            other = candidates[name]()
            same = agrees(expected, other(views), rule.tolerance)
        except Exception as error:  # a converter raises errors of its own, and the next backend may work
            say(f"{what} does not run with {name} ({type(error).__name__})")
            continue
        if not same:
            say(f"{name} disagrees with {first.name} on {what} and is not used")
            continue
        speeds = {who: len(views) / seconds for who, seconds in race((first, other), views).items()}
        say(f"backends for {what}: " + ", ".join(f"{n} {v:.0f} images/s" for n, v in speeds.items()))
        return first if speeds[first.name] > rule.margin * speeds[other.name] else other
    return first


def race(backends: Sequence[Backend], views: Tensor) -> dict[str, float]:
    """Seconds per pass of each backend, by name: the fastest of a few calls.

    The backends take turns, so that a slow moment of the machine affects all of them.
    """
    times: dict[str, list[float]] = {backend.name: [] for backend in backends}
    for _ in range(_CALLS):
        for backend in backends:
            started = time.perf_counter()
            backend(views)
            times[backend.name].append(time.perf_counter() - started)
    return {name: min(values) for name, values in times.items()}


class AutoBackend:
    """Starts with PyTorch at once, and changes to a faster backend when there is enough to do.

    After about four seconds of passes it chooses again, with the batch at hand.
    """

    def __init__(self, candidates: Builders):
        self.candidates = candidates
        self.eager = next(iter(candidates.values()))()
        self.chosen: Backend = self.eager
        self.spent_s, self.looked = 0.0, False

    @property
    def name(self) -> str:
        return self.chosen.name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        if self.looked:
            return self.chosen(views)
        if self.spent_s >= _LOOK_AFTER_S:
            self.look(views)
        started = time.perf_counter()
        outputs = self.chosen(views)
        self.spent_s += time.perf_counter() - started
        return outputs

    def look(self, views: Tensor) -> None:
        """Chooses a backend now, for batches such as `views`."""
        self.looked = True
        candidates = {**self.candidates, self.eager.name: lambda: self.eager}
        self.chosen = choose_backend(candidates, views, torch.device("cpu"), "auto", Rule(STUDENT_TOLERANCE))


def create_backend(
    graph: ClassifierGraph, view_size: tuple[int, int], name: str, device: torch.device
) -> Backend:
    """The backend `name` (a `BackendName`) for `graph`.

    A converted graph runs on the CPU, whatever `device` is. Raises DependencyError for an unknown name and
    for a backend that is not installed.
    """
    if name not in get_args(BackendName):
        raise DependencyError(
            f"there is no backend {name!r}; choose one of {', '.join(get_args(BackendName))}"
        )
    candidates = builders(FrozenNetwork(graph, view_size, device, output_names=graph.output_names))
    if name == "auto":
        return AutoBackend(candidates) if device.type == "cpu" else candidates["pytorch"]()
    require(name)
    return candidates[name]()
