"""What torchrun starts in test_torchrun.py: command lines one after the other, and a signal at a step.

    torchrun --nproc-per-node=2 -m tests.torchrun_verbs '[["train", "images", "--out", "run"]]'

$SIGNALLED is "rank step name": that process sends itself the signal after that step, in the first attempt.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from deitkit import distributed
from deitkit.cli import main
from deitkit.training import trainer


def signal_after(rank: int, step: int, name: str) -> None:
    trainer._CHECKPOINT_SECONDS = 0.0  # one after every step
    take = trainer.Trainer.step

    def step_and_signal(self: trainer.Trainer, *rest: object) -> dict[str, float]:
        found = take(self, *rest)  # type: ignore[arg-type]
        if distributed.rank() == rank and self.state.step == step and not distributed.restarted():
            os.kill(os.getpid(), getattr(signal, name))
        return found

    trainer.Trainer.step = step_and_signal  # type: ignore[method-assign]


if __name__ == "__main__":
    if "SIGNALLED" in os.environ:
        rank, step, name = os.environ["SIGNALLED"].split()
        signal_after(int(rank), int(step), name)
    for arguments in json.loads(sys.argv[1]):
        try:
            main(arguments)
        except SystemExit as end:
            if end.code:
                raise
