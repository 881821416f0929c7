"""Reading a run folder; whatever is missing or cut becomes one DeitkitError that names the file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ..errors import DeitkitError


def open_run(run: str | Path) -> Path:
    """The folder of a run; raises DeitkitError where there is none."""
    folder = Path(run)
    if not folder.is_dir():
        raise DeitkitError(
            f"there is no run folder {str(run)!r}; give the folder that `deitkit train` wrote with --out"
        )
    if not (folder / "config.json").is_file():
        raise DeitkitError(
            f"{str(run)!r} is not a run folder: it has no config.json; "
            "give the folder that `deitkit train` wrote with --out"
        )
    return folder


def read_json(run: Path, name: str) -> Any:
    """The parsed JSON file `name` of a run; raises DeitkitError where it is missing or cut."""
    try:
        return json.loads(require(run, name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeitkitError(
            f"{name} in run {str(run)!r} cannot be read ({error}); copy the run again or train it anew"
        ) from None


def require(run: Path, name: str) -> Path:
    """The path of file `name`; raises DeitkitError where an unfinished run lacks it."""
    path = run / name
    if not path.is_file():
        raise DeitkitError(
            f"run {str(run)!r} has no {name}: its training has not finished; "
            "run the same `deitkit train` command again to go on"
        )
    return path


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The epochs of `metrics.jsonl`, oldest first; empty where there is no such file.

    A last line that a crash has cut is left out: the epochs before it are still right.
    """
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DeitkitError(
                f"line {number} of metrics.jsonl in run {str(run)!r} cannot be read ({error}); "
                "remove the line or train the run anew"
            ) from None
    return epochs


def read_predictions(run: Path) -> list[dict[str, str]]:
    """The rows of `predictions.csv` by column name; empty where there is no such file."""
    path = run / "predictions.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
