"""Counts of what a server did, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Requests by status, and how long those took that were answered with a prediction."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self._durations = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0

    def answered(self, status: int, seconds: float) -> None:
        """Counts a request to /predict."""
        self.requests[status] += 1
        if status == 200:
            self._durations[bisect_left(_BUCKETS_S, seconds)] += 1
            self._seconds += seconds

    def render(self, in_progress: int, models: Mapping[str, tuple[int, int]]) -> str:
        """The text. in_progress: requests that are being answered. models: batches and images by name."""
        batches = [({"model": name}, batches) for name, (batches, _) in models.items()]
        images = [({"model": name}, images) for name, (_, images) in models.items()]
        lines = [
            *_family("deitkit_requests_total", "counter", "Requests to /predict.", self._by_status()),
            *_family(
                "deitkit_requests_in_progress", "gauge", "Requests being answered.", [({}, in_progress)]
            ),
            *_family("deitkit_images_total", "counter", "Images classified.", images),
            *_family("deitkit_batches_total", "counter", "Batches that the images were in.", batches),
            *self._histogram("deitkit_request_seconds"),
        ]
        return "\n".join(lines) + "\n"

    def _by_status(self) -> list[tuple[dict[str, str], float]]:
        return [({"status": str(status)}, count) for status, count in sorted(self.requests.items())]

    def _histogram(self, name: str) -> Iterator[str]:
        yield f"# HELP {name} Time to a prediction."
        yield f"# TYPE {name} histogram"
        total = 0
        for edge, count in zip((*map(str, _BUCKETS_S), "+Inf"), self._durations, strict=True):
            total += count
            yield f'{name}_bucket{{le="{edge}"}} {total}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {total}"


def _family(
    name: str, kind: str, meaning: str, values: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        yield f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
