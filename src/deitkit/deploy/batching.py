"""Views of many requests in one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..inference.backends import Backend

Row = tuple[Tensor, ...]  # one image's outputs, without the batch dimension


@dataclass(frozen=True)
class _Job:
    view: NDArray[np.uint8]
    result: Future[Row]


class Batcher:
    """Runs a backend in a thread of its own, on the views that wait.

    Nothing is delayed to fill a batch: while one runs, the next gathers. So a single request is answered at
    once, and many at the throughput of large batches. on_batch: called with the images of each batch that
    was run.
    """

    def __init__(self, backend: Backend, device: torch.device, max_batch: int = 32):
        self.backend, self.device, self.max_batch = backend, device, max_batch
        self.on_batch: Callable[[int], None] = lambda images: None
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, view: NDArray[np.uint8]) -> Future[Row]:
        """A view (3, H, W) uint8 -> its outputs, once they are there. What is cancelled is not computed."""
        job = _Job(view, Future())
        self._waiting.put(job)
        return job.result

    def close(self) -> None:
        """Answers what was submitted, then ends the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            jobs, ended = self._gather(first)
            wanted = [job for job in jobs if job.result.set_running_or_notify_cancel()]
            if wanted:
                self._run(wanted)
            if ended:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """The jobs that wait, at most a batch of them, and whether the end was reached."""
        jobs = [first]
        while len(jobs) < self.max_batch:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _run(self, jobs: list[_Job]) -> None:
        try:
            pixels = torch.from_numpy(np.stack([job.view for job in jobs]))
            outputs = [out.cpu() for out in self.backend(pixels.to(self.device).float() / 255.0)]
        except Exception as error:  # of any backend; each request reports it
            for job in jobs:
                job.result.set_exception(error)
            return
        self.on_batch(len(jobs))
        for i, job in enumerate(jobs):
            job.result.set_result(tuple(out[i] for out in outputs))
