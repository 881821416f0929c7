"""Measures several sides fairly: each in a process of its own, the sides taking turns.

A side is a command that calls `serve`; `take_turns` starts them all and asks one after the other, so
that a machine which slows down slows all of them, and no side's memory or threads count for another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from .latency import peak_memory_mb, summarise, time_calls


def serve(create: Callable[[], Callable[[int], Callable[[], object]]], device: str = "cpu") -> None:
    """Answers `take_turns` over stdin and stdout until there are no more questions.

    create: makes the side ready, and gives a function from batch size to one pass of such a batch.
    Memory, that of `device`, is told from before `create` on, so that libraries loaded by then do not count.
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


def take_turns(
    sides: Mapping[str, Sequence[str]],
    batches: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    on_turn: Callable[[], None] = lambda: None,
) -> tuple[dict[tuple[str, int], dict[str, float]], dict[str, str]]:
    """Measures commands that `serve`, in rounds: {(side, batch): summary}, and {side: why it failed}.

    Batch sizes run from the smallest up, so that a side's peak memory belongs to the batch at hand.
    `seconds` is what one side gets for one batch in one round.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
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
                    row = summarise(times[name], batch_size)
                    found[name, batch_size] = row | {"memory_mb": memory[name]}
    return found, failed


class _Died(Exception):
    """A side's process ended; the message is the last thing it said."""


class _Worker:
    """A side's process."""

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
        """The answer to one question; raises _Died where the process ended instead."""
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
            if line.startswith("{"):  # a library's own lines are passed over
                return json.loads(line)
        self._give_up()
        raise AssertionError

    def _give_up(self) -> None:
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        raise _Died(said[-1] if said else f"it ended with status {self.process.returncode}")
