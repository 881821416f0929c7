"""Exceptions that deitkit raises on purpose.

DeitkitError                  base class: a mistake that the user can fix
├── SettingError              unknown setting or option, value out of range, contradicting settings
├── DataError                 images, labels or folders that cannot be used
│   └── UnreadableImage       one file that is not a readable image (deitkit.data.decode)
├── WeightsError              weights or a teacher that are missing, damaged or of another model
├── RunFolderError            run, teacher or soft-label folder that is missing, damaged or in use
│   └── ResumeError           run that cannot be resumed with these settings or images
├── DependencyError           package, backend or device that this machine does not have
└── TrainingError             training that cannot go on: non-finite loss, out of memory

Interrupted                   a signal stopped training after its state was saved
ProcessLost                   another process of a job that torchrun started has ended
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeitkitError(Exception):
    """A mistake that the user can fix. The message says what, where and what to do, in one sentence.

    The command line prints the message without a traceback and exits with status 2.
    """


class SettingError(DeitkitError):
    """A setting or option that does not exist, is out of range or contradicts another."""


class DataError(DeitkitError):
    """Images, labels or folders that cannot be used."""


class WeightsError(DeitkitError):
    """Weights, or a teacher, that are missing, damaged or belong to another model."""


class RunFolderError(DeitkitError):
    """A run, teacher or soft-label folder that is missing, damaged or already in use."""


class ResumeError(RunFolderError):
    """A run that cannot be resumed with these settings or images."""


class DependencyError(DeitkitError):
    """A package, backend or device that this machine does not have."""


class TrainingError(DeitkitError):
    """Training cannot continue: the loss is not finite, or the device is out of memory."""


class Interrupted(Exception):
    """A signal stopped training after its state was saved; resume to continue."""


class ProcessLost(Exception):
    """Another process of the job has ended, for a reason that it or torchrun says."""


def on_one_line(error: Exception | str, most: int = 300) -> str:
    """What another library's exception or a file says, for a sentence: at most `most` characters."""
    said = " ".join(str(error).split())
    return said if len(said) <= most else said[: most - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` closest to `name`, or None if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` to end a sentence with, or an empty string if nothing in `known` is close."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near is not None else ""
