"""Reads `labels.csv`: several labels an image, beside the images in one folder."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean
from .image_set import ImageSet

NAME = "labels.csv"
_COLUMNS = ("path", "labels", "split")
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Table:
    """The images of a `labels.csv` in its order, with labels (n, K); `parts` where it has a split column."""

    images: ImageSet
    parts: tuple[str, ...] | None  # "train", "val" or "test" for each image

    def part(self, name: str) -> ImageSet | None:
        """The images of one part, None where there are none of it."""
        chosen = np.flatnonzero(np.array(self.parts) == name)
        return self.images.subset(chosen) if len(chosen) else None


def is_table(folder: Path) -> bool:
    """Whether the folder's images have their labels in a table."""
    return os.path.isfile(folder / NAME)  # also where the folder may not be entered


def read_table(folder: Path, classes: tuple[str, ...] | None = None) -> Table:
    """The table of `folder`, its paths relative to it.

    Columns: `path`; `labels`, apart by ; or |, an empty cell for an image that shows none of them; and
    if there is to be no choice about it `split`, one of train, val, test. classes: in the order of the
    labels, None for those of the table, sorted. Raises DeitkitError for a table that cannot be used.
    """
    file = folder / NAME
    rows = _read_rows(file)
    labels = [frozenset(filter(None, map(str.strip, re.split("[;|]", row["labels"])))) for _, row in rows]
    found = sorted(set().union(*labels))
    if not found:
        raise DataError(f"no image in {file} has a label; give some, apart by ; in the column 'labels'")
    _refuse_alike(found, file)
    if classes is not None:
        unknown = [name for name in found if name not in classes]
        if unknown:
            raise DataError(
                f"{file} has the label {unknown[0]!r}, which the run does not know; "
                f"it knows {', '.join(classes[:8])}"
            )
    names = tuple(found) if classes is None else classes
    place = {name: k for k, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), bool)
    for i, row_labels in enumerate(labels):
        table[i, [place[name] for name in row_labels]] = True
    parts = tuple(_part_of(row["split"], line, file) for line, row in rows) if "split" in rows[0][1] else None
    return Table(ImageSet(folder, tuple(row["path"] for _, row in rows), table, names), parts)


def _read_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows with their line numbers, cells stripped; every file there and named once."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, restval="")
            _check_columns([name.strip() for name in reader.fieldnames or ()], file)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read ({error}); save it as a CSV in UTF-8") from None
    if not rows:
        raise DataError(f"{file} has no rows; give one for each image")
    lines: dict[str, int] = {}
    out = []
    for line, cells in rows:
        if None in cells:
            raise DataError(
                f"line {line} of {file} has more cells than the header; put labels apart by ; and not by ,"
            )
        row = {name.strip(): cell.strip() for name, cell in cells.items()}
        path = row["path"] = row["path"].replace("\\", "/").removeprefix("./")
        if not path:
            raise DataError(f"line {line} of {file} names no image; fill in its 'path' or remove the line")
        if path in lines:
            raise DataError(
                f"{path} stands in lines {lines[path]} and {line} of {file}; give each image one line"
            )
        if not (file.parent / path).is_file():
            raise DataError(
                f"line {line} of {file} names {path}, and {file.parent} holds no such file; "
                "correct the path or remove the line"
            )
        lines[path] = line
        out.append((line, row))
    return out


def _check_columns(columns: list[str], file: Path) -> None:
    for name in columns:
        if name not in _COLUMNS:
            meant = did_you_mean(name, _COLUMNS) or "; rename it or take it out"
            raise DataError(
                f"{file} has the column {name!r}, and a table has path, labels and perhaps split{meant} "
                f"(where sub-folders are the classes, take {NAME} out of the folder)"
            )
    for name in _COLUMNS[:2]:
        if columns.count(name) != 1:
            what = "has no" if name not in columns else "has more than one"
            raise DataError(f"{file} {what} column {name!r}; its first line must be path,labels")


def _refuse_alike(names: list[str], file: Path) -> None:
    by_case: dict[str, str] = {}
    for name in names:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"the labels {other!r} and {name!r} in {file} differ only by case; rename or merge them"
            )


def _part_of(text: str, line: int, file: Path) -> str:
    if text.lower() not in _PARTS:
        raise DataError(
            f"line {line} of {file} has the split {text!r}; give train, val or test in every line, "
            "or take the column out"
        )
    return _PARTS[text.lower()]
