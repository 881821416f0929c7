"""Times several models side by side: each in its own process, in turns.

A side is a command that calls `serve`. `take_turns` starts all of them and asks one after the other: a
machine that slows down slows all of them, and no side's memory or threads count for another.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from .speed import Latency, peak_memory_mb, summarise, time_calls


def serve(create: Callable[[], Callable[[int], Callable[[], object]]], device: str = "cpu") -> None:
    """Answers `take_turns` over stdin and stdout until stdin is closed.

    create: prepares the side and returns a function from a batch size to a call that runs one such batch.
    Memory of `device` counts from before `create`, so that libraries loaded by then do not count.
    """
    where = torch.device(device)
    before = peak_memory_mb(where)
    passes = create()
    warm: dict[int, Callable[[], object]] = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        batch_size = question["batch"]
        if batch_size not in warm:
            warm[batch_size] = passes(batch_size)
            for _ in range(2):
                warm[batch_size]()
        times = time_calls(warm[batch_size], question["seconds"])
        print(json.dumps({"times": times, "memory_mb": peak_memory_mb(where) - before}), flush=True)


@dataclass(frozen=True)
class Turns:
    """One side at one batch size, over all its turns."""

    latency: Latency
    memory_mb: float

    def to_dict(self) -> dict[str, float]:
        return {**dataclasses.asdict(self.latency), "memory_mb": self.memory_mb}


def take_turns(
    sides: Mapping[str, Sequence[str]],
    batches: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    on_turn: Callable[[], None] = lambda: None,
) -> tuple[dict[tuple[str, int], Turns], dict[str, str]]:
    """Times commands that `serve`, in rounds: {(side, batch size): Turns}, and {side: why it failed}.

    Batch sizes run from the smallest up, so that a side's peak memory belongs to the current batch.
    seconds: time of one side for one batch size in one round.
    """
    found: dict[tuple[str, int], Turns] = {}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_Worker(command)) for name, command in sides.items()}
        for batch_size in sorted(batches):
            times: dict[str, list[float]] = {name: [] for name in sides}
            memory: dict[str, float] = {}
            for _ in range(rounds):
                for name, worker in workers.items():
                    if name not in failed:
                        try:
                            answer = worker.ask({"batch": batch_size, "seconds": seconds})
                            times[name] += answer["times"]
                            memory[name] = answer["memory_mb"]
                        except _Died as error:
                            failed[name] = str(error)
                    on_turn()
            for name in sides:
                if name not in failed:
                    found[name, batch_size] = Turns(summarise(times[name], batch_size), memory[name])
    return found, failed


class _Died(Exception):
    """A side's process ended; the message is its last line on stderr."""


class _Worker:
    """The process of one side."""

    def __init__(self, command: Sequence[str]):
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.ready = False

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()
        self.errors.close()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question; raises _Died if the process ended instead."""
        if not self.ready:
            self._read()
            self.ready = True
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._give_up()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # skips lines that libraries print
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._give_up()

    def _give_up(self) -> NoReturn:
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        raise _Died(said[-1] if said else f"it ended with status {self.process.returncode}")
