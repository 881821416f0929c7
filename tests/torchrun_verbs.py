"""What torchrun starts in test_torchrun.py: command lines one after the other, and a signal at a step.

    torchrun --nproc-per-node=2 -m tests.torchrun_verbs '[["train", "images", "--out", "run"]]'

"tiny-study", DATA and OUT stand for the study of tests/study. $SIGNALLED is "rank step name": that process
sends itself the signal after that step, in the first attempt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from deitkit import distributed
from deitkit.cli import main
from deitkit.training import trainer


def signal_after(rank: int, step: int, name: str) -> None:
    trainer._CHECKPOINT_SECONDS = 0.0  # one after every step
    take = trainer.Trainer.update

    def step_and_signal(self: trainer.Trainer, *rest: object) -> trainer.StepLosses:
        found = take(self, *rest)  # type: ignore[arg-type]
        if distributed.rank() == rank and self.state.step == step and not distributed.restarted():
            os.kill(os.getpid(), getattr(signal, name))
        return found

    trainer.Trainer.update = step_and_signal  # type: ignore[method-assign]


def tiny_study(data: Path, out: Path) -> None:
    from deitkit.study.plan import StudyJob
    from deitkit.study.runner import run_study
    from tests.study.studies import TINY

    found = run_study(StudyJob(study=TINY, preset="quick", data=data, out=out, seeds=(0, 1)))
    assert found.finding


if __name__ == "__main__":
    if "SIGNALLED" in os.environ:
        rank, step, name = os.environ["SIGNALLED"].split()
        signal_after(int(rank), int(step), name)
    for arguments in json.loads(sys.argv[1]):
        try:
            if arguments[0] == "tiny-study":
                tiny_study(*map(Path, arguments[1:]))
            else:
                main(arguments)
        except SystemExit as end:
            if end.code:
                raise
