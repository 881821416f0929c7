"""Options that several verbs share, and the settings that they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from .. import log
from ..config import RENAMED
from ..errors import SettingError

Student = Annotated[
    str | None,
    typer.Option(help="nano, nano-hybrid, tiny, small or base; chosen by device and images by default."),
]
ImageSize = Annotated[
    str | None,
    typer.Option(help="The student's input in pixels, N or HxW; chosen by device and images by default."),
]
PatchSize = Annotated[
    str | None, typer.Option(help="Patch size in pixels, N or HxW; chosen by image size by default.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
Budget = Annotated[str | None, typer.Option(help="Time for the whole job, such as 10m.")]
Init = Annotated[
    str | None,
    typer.Option(help="Initial weights: auto, none, a run, a file, timm:NAME, hf:NAME or deitkit:nano."),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per step.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best available by default.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Threads that prepare batches ahead.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of all randomness.")]
MaxBroken = Annotated[
    float | None,
    typer.Option(help="Share of images that may be unreadable and are skipped; 0.05 by default."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value; repeat for more. deitkit settings lists them."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that an hf: model comes with.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Keep images together in the split: auto (near-duplicates), folder, a column of the table, or "
        "a regular expression with one group, such as 'patient(\\d+)'."
    ),
]
Relabel = Annotated[
    str | None, typer.Option(help="CSV file of path and label, as deitkit check writes: other labels.")
]
Exclude = Annotated[
    str | None, typer.Option(help="CSV file with a column path, as deitkit check writes: images left out.")
]
Log = Annotated[
    str | None,
    typer.Option("--log", help="Trackers of the curves: tensorboard, mlflow, wandb, or several with commas."),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Which model of a run: student, teacher, baseline, recommended, or one such as teacher-224.",
    ),
]
TeacherCode = Annotated[
    str | None, typer.Option(help="python:MODULE:FUNCTION that a fitted teacher may run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def settings_of(named: dict[str, Any], items: Sequence[str] | None) -> dict[str, Any]:
    """`{"section.key": value}` of the flags that were given and of each `--set section.key=value`."""
    settings = {key: value for key, value in named.items() if value is not None}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"--set {item!r} has no value; give it as section.key=value")
        settings[_current_name(key.strip())] = value.strip()
    return settings


def _current_name(key: str) -> str:
    """The name of a setting today; warns about one of version 0.1."""
    if key in RENAMED:
        log.warning(f"the setting {key} is now called {RENAMED[key]}")
    return RENAMED.get(key, key)


def renamed_flag(old: str, old_value: Any, new: str, value: Any) -> Any:
    """The value of the flag `new`, which its hidden old name sets as well, with a warning."""
    if not old_value:
        return value
    log.warning(f"{old} is now called {new}")
    return value or old_value


def parse_length(epochs: int | None, budget: str | None) -> dict[str, Any]:
    """`--epochs` or `--budget` as settings; raises SettingError if both are given."""
    if epochs is not None and budget is not None:
        raise SettingError("--epochs and --budget both set the length of training; give one of them")
    return {"train.epochs": epochs, "train.budget_s": parse_budget(budget) if budget else None}


def parse_budget(text: str) -> float:
    """Seconds in `90s`, `10m` or `1.5h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise SettingError(f"invalid duration {text!r} for --budget; give one such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]
