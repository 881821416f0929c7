"""Counts of what a server's processes did, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STATUSES = 600  # of HTTP, from 0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def counts_layout(models: int) -> np.dtype[np.void]:
    """What one process counts, for that number of models."""
    return np.dtype(
        [
            ("requests", "f8", (_STATUSES,)),
            ("durations", "f8", (len(_BUCKETS_S) + 1,)),
            ("seconds", "f8"),
            ("in_progress", "f8"),
            ("batches", "f8", (models,)),
            ("images", "f8", (models,)),
        ]
    )


class Metrics:
    """Requests by status, how long those took that were answered with a prediction, and images by model.

    models: how many; they are counted by their place in the order of the runs, because a reload may rename
    them. memory: that the processes share, of `counts_layout(models).itemsize` bytes each; None for memory of
    its own. process: the place in it where this one counts; the text sums over all. Each number is written by
    one thread of one process, so that no lock is needed.
    """

    def __init__(self, models: int, memory: Any = None, process: int = 0):
        layout = counts_layout(models)
        self._all = np.zeros(1, layout) if memory is None else np.frombuffer(memory, layout)
        self._own = self._all[process : process + 1]
        self._own["in_progress"] = 0  # of a process that ended, whose other counts go on

    def answered(self, status: int, seconds: float) -> None:
        """Counts a request to /predict or /explain."""
        self._own["requests"][0, status] += 1
        if status == 200:
            self._own["durations"][0, bisect_left(_BUCKETS_S, seconds)] += 1
            self._own["seconds"] += seconds

    def in_progress(self, requests: int) -> None:
        """Notes how many requests are being answered."""
        self._own["in_progress"] = requests

    def ran(self, model: int, images: int) -> None:
        """Counts a batch of a model."""
        self._own["batches"][0, model] += 1
        self._own["images"][0, model] += images

    def render(self, models: Sequence[str]) -> str:
        """The text. models: their names, in order."""
        total = {name: self._all[name].sum(0) for name in self._all.dtype.names or ()}
        by_status = [({"status": str(s)}, total["requests"][s]) for s in np.flatnonzero(total["requests"])]
        images, batches = (
            [({"model": name}, count) for name, count in zip(models, total[what], strict=True)]
            for what in ("images", "batches")
        )
        in_progress: list[tuple[dict[str, str], float]] = [({}, total["in_progress"])]
        lines = [
            *_family("deitkit_requests_total", "counter", "Requests to /predict and /explain.", by_status),
            *_family("deitkit_requests_in_progress", "gauge", "Requests being answered.", in_progress),
            *_family("deitkit_images_total", "counter", "Images classified.", images),
            *_family("deitkit_batches_total", "counter", "Batches that the images were in.", batches),
            *_histogram("deitkit_request_seconds", total["durations"], total["seconds"]),
        ]
        return "\n".join(lines) + "\n"


def _histogram(name: str, durations: Iterable[float], seconds: float) -> Iterator[str]:
    yield f"# HELP {name} Time to a prediction."
    yield f"# TYPE {name} histogram"
    total = 0
    for edge, count in zip((*map(str, _BUCKETS_S), "+Inf"), durations, strict=True):
        total += int(count)
        yield f'{name}_bucket{{le="{edge}"}} {total}'
    yield f"{name}_sum {seconds:.6f}"
    yield f"{name}_count {total}"


def _family(
    name: str, kind: str, meaning: str, counts: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, count in counts:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{shown}}} {int(count)}" if shown else f"{name} {int(count)}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
