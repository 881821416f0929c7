"""Reads labels from a table: a CSV file with one row per image.

The first line names the columns, in any order and case:

    path | file | filename | image      path of the image, relative to the CSV file
    label | class | category | labels   the image's class; in `labels` also none, or several, as in cat;dog
    split                               optional: train, val or test

The task is multilabel if a cell of `labels` is empty or holds a separator, ; or |. Else it is multiclass:
each image has one class. Columns are separated by commas, semicolons or tabs. Other columns are ignored.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from .. import log
from ..errors import DataError, did_you_mean
from ..tasks import Task
from .image_file import system_devices
from .image_set import ImageSet

NAME = "labels.csv"  # preferred over other tables in a folder
SUFFIXES = (".csv", ".tsv")
_PATH_COLUMNS = ("path", "file", "filename", "image")
_LABEL_COLUMNS = ("label", "class", "category", "labels")
_SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"dev": "val", "test": "test", "testing": "test"},
}

_MAX_BYTES = 1 * 2**30
_MAX_LINE = 2**20  # characters
_MAX_CELLS = 2_000_000_000  # rows times classes of a multilabel table: a byte each


@dataclass(frozen=True)
class Table:
    """The images of a table in the order of its rows; `splits` if it has that column."""

    images: ImageSet
    splits: tuple[str, ...] | None  # "train", "val" or "test" for each image
    groups: tuple[str, ...] | None = None  # cells of the column that was asked for

    def split(self, name: str) -> ImageSet | None:
        """The images of one split, or None if there are none."""
        chosen = np.flatnonzero(np.array(self.splits) == name)
        return self.images.subset(chosen) if len(chosen) else None


@dataclass(frozen=True)
class _Row:
    line: int  # in the file, from 1
    path: str
    label: str
    split: str | None
    group: str = ""


def find_table(data: Path) -> Path | None:
    """The table that labels the images of `data`, or None.

    `data` may be the table itself. In a folder it is `labels.csv`, or else the only CSV file, if that has the
    columns of a table.
    """
    if _is_table_file(data):
        return data
    if os.path.lexists(data / NAME):
        return data / NAME
    try:
        entries = [e for e in os.scandir(data) if not e.name.startswith(".")]
    except OSError:  # whoever reads the folder says what is wrong with it
        return None
    tables = [Path(e.path) for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
    if len(tables) != 1:
        return None
    return tables[0] if _labels_images(tables[0], any(e.is_dir() for e in entries)) else None


def _is_table_file(data: Path) -> bool:
    return data.suffix.lower() in SUFFIXES and not data.is_dir()


def is_table(data: Path) -> bool:
    """Whether a table labels the images of `data`."""
    return find_table(data) is not None


def image_root(data: Path) -> Path:
    """The folder that image paths are relative to: `data`, or the folder of a table."""
    return data.parent if _is_table_file(data) else data


def read_table(
    data: Path, classes: tuple[str, ...] | None = None, task: Task | None = None, group: str | None = None
) -> Table:
    """The images that a table labels.

    Args:
        data: The table, or a folder with one.
        classes: What labels index; None for those of the table, sorted.
        task: What the labels are read as; None to decide by the table.
        group: A column to read as `Table.groups`.

    Raises DataError for a table that cannot be used.
    """
    file = find_table(data)
    if file is None:
        raise DataError(f"{data} has no {NAME}; add one")
    if file != data and file.name != NAME:
        log.info(f"labels are read from {file}")
    label_column, rows = _read_rows(file, group)
    found = [split_labels(row.label) for row in rows]
    task = task or _task_of(label_column, rows)
    if task == "multiclass":
        _refuse_several(file, label_column, rows, found)
    names = sorted(set().union(*found))
    if not names:
        raise DataError(f"no image in {file} has a label; fill in the column {label_column!r}")
    _refuse_alike(names, file)
    if classes is not None:
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(
                f"{file} has the label {unknown[0]!r}, which the run does not know; "
                f"it knows {', '.join(classes[:8])}"
            )
    known = tuple(names) if classes is None else classes
    place = {name: k for k, name in enumerate(known)}
    if task == "multiclass":
        labels = np.array([place[label] for [label] in found], np.int64)
    else:
        if len(rows) * len(known) > _MAX_CELLS:
            raise DataError(f"{file} has {len(known)} labels for {len(rows)} images; check its columns")
        labels = np.zeros((len(rows), len(known)), bool)
        for i, row_labels in enumerate(found):
            labels[i, [place[name] for name in row_labels]] = True
    images = ImageSet(file.parent, tuple(row.path for row in rows), labels, known)
    splits = [row.split for row in rows if row.split is not None]
    groups = tuple(row.group for row in rows) if group is not None else None
    return Table(images, tuple(splits) if splits else None, groups)


def _task_of(label_column: str, rows: list[_Row]) -> Task:
    several = label_column == "labels" and any(not row.label or re.search("[;|]", row.label) for row in rows)
    return "multilabel" if several else "multiclass"


def split_labels(cell: str) -> tuple[str, ...]:
    """The labels in a cell, each once."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, re.split("[;|]", cell)))))


def _refuse_several(file: Path, label_column: str, rows: list[_Row], found: list[tuple[str, ...]]) -> None:
    """Raises DataError for an image without exactly one label."""
    for row, labels in zip(rows, found, strict=True):
        if len(labels) > 1:
            remedy = "name the column 'labels' if images may have several"
            if label_column == "labels":  # of a run that knows one class per image
                remedy = "give each image one"
            raise DataError(f"line {row.line} of {file} has several labels, {row.label!r}; {remedy}")
        if not labels:
            raise DataError(
                f"line {row.line} of {file} has no label in {label_column!r}; fill it in or remove the line"
            )


def _refuse_alike(names: list[str], file: Path) -> None:
    by_case: dict[str, str] = {}
    for name in names:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"the labels {other!r} and {name!r} in {file} differ only by case; rename or merge them"
            )


def read_columns(file: Path, wanted: Sequence[str]) -> list[tuple[int, list[str]]]:
    """(line, cells of the `wanted` columns, "path" or "label") of each row of a CSV file of corrections.

    Raises DataError if the file cannot be read or lacks a column.
    """
    names = {"path": _PATH_COLUMNS, "label": _LABEL_COLUMNS}
    try:
        with _opened(file) as (delimiter, lines):
            reader = csv.reader(lines, delimiter=delimiter)
            header = [name.strip().casefold() for name in next(reader, [])]
            places = [place for name in wanted if (place := _one_of(names[name], header, file)) is not None]
            rows = [(reader.line_num, cells + [""] * len(header)) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None
    return [(line, [cells[place].strip() for place in places]) for line, cells in rows]


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read ({error}); save it as a CSV in UTF-8")


def _read_rows(file: Path, group: str | None) -> tuple[str, list[_Row]]:
    """The name of the label column, and the rows; each names another file, which is there."""
    try:
        with _opened(file) as (delimiter, lines):
            reader = csv.reader(lines, delimiter=delimiter)
            columns = _Columns.of(next(reader, []), file, group)
            rows = [columns.row(cells, reader.line_num, file) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None
    if not rows:
        raise DataError(f"{file} has no rows; give one for each image")
    if columns.ignored:
        log.info(f"{file}: columns that are not read: {', '.join(columns.ignored)}")
    first: dict[str, int] = {}
    for row in rows:
        if first.setdefault(row.path, row.line) != row.line:
            raise DataError(
                f"{row.path} is in lines {first[row.path]} and {row.line} of {file}; give each image one line"
            )
    return columns.label_name, rows


@dataclass(frozen=True)
class _Columns:
    """Where the columns of a table are."""

    path: int
    label: int
    split: int | None
    count: int
    label_name: str
    ignored: tuple[str, ...]
    group: int | None = None

    @staticmethod
    def of(header: list[str], file: Path, group: str | None = None) -> _Columns:
        """Finds the columns, `group` too. Raises DataError if one is missing or could be either of two."""
        names = [name.strip().casefold() for name in header]
        path = _one_of(_PATH_COLUMNS, names, file)
        label = _one_of(_LABEL_COLUMNS, names, file)
        split = _one_of(("split",), names, file, optional=True)
        grouped = (group.casefold(),) if group is not None else ()
        groups = _one_of(grouped, names, file) if grouped else None
        known = (*_PATH_COLUMNS, *_LABEL_COLUMNS, "split", *grouped)
        ignored = tuple(name for name in names if name and name not in known)
        for name in ignored:
            meant = did_you_mean(name, known)
            if meant:  # ignoring it would lose labels or a split
                raise DataError(f"{file} has the column {name!r}{meant}")
        assert path is not None and label is not None
        return _Columns(path, label, split, len(names), names[label], ignored, groups)

    def row(self, cells: list[str], line: int, file: Path) -> _Row:
        """The row of these cells. Raises DataError if it cannot be used."""
        if len(cells) > self.count:
            raise DataError(
                f"line {line} of {file} has more cells than the header; separate labels by ; "
                "or put the cell in quotes"
            )
        cells = [cell.strip() for cell in cells] + [""] * (self.count - len(cells))
        path = cells[self.path].replace("\\", "/").removeprefix("./")
        if not path:
            raise DataError(f"line {line} of {file} names no image; fill in its path or remove the line")
        if not (file.parent / path).is_file():
            shown = path if path.isprintable() else repr(path)  # a quoted cell may hold line breaks
            raise DataError(
                f"line {line} of {file} names {shown}, and {file.parent} holds no such file; "
                "correct the path or remove the line"
            )
        split = None
        if self.split is not None:
            split = _SPLITS.get(cells[self.split].lower())
            if split is None:
                raise DataError(
                    f"line {line} of {file} has the split {cells[self.split]!r}; give train, val or test in "
                    "every line, or take the column out"
                )
        group = "" if self.group is None else cells[self.group]
        return _Row(line, path, cells[self.label], split, group)


def _one_of(wanted: tuple[str, ...], names: list[str], file: Path, optional: bool = False) -> int | None:
    """The index of the only column that has one of the `wanted` names."""
    found = [i for i, name in enumerate(names) if name in wanted]
    if len(found) > 1:
        raise DataError(
            f"{file} has the columns {' and '.join(repr(names[i]) for i in found)}; keep one of them"
        )
    if not found and not optional:
        meant = next(filter(None, (did_you_mean(name, wanted) for name in names if name)), "")
        raise DataError(
            f"{file} has no column {wanted[0]!r}{meant}; its first line must name columns, such as "
            f"path,label, and has {', '.join(map(repr, names))}"
        )
    return found[0] if found else None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[str, Iterator[str]]]:
    """The delimiter of a table and its lines, the header first."""
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_dev in system_devices():
        raise DataError(f"{file} is not a regular file; replace it by a CSV file")
    if found.st_size > _MAX_BYTES:
        raise DataError(f"{file} is too large for a table ({found.st_size:,} bytes); check what it is")
    with open(file, "rb") as opened:
        encoding = "utf-16" if opened.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with open(file, newline="", encoding=encoding) as opened_text:
        lines = _lines(opened_text, file)
        header = next(lines, "")
        # The only one that is in most headers; a file of one column has none of them.
        delimiter = max(",;\t", key=header.count)
        yield delimiter, itertools.chain([header], lines)


def _lines(opened: TextIO, file: Path) -> Iterator[str]:
    while line := opened.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise DataError(
                f"{file} has a line of over {_MAX_LINE:,} characters; check that it is a CSV file"
            )
        yield line


def _labels_images(file: Path, has_folders: bool) -> bool:
    """Whether a CSV file beside images labels them.

    It must have the columns of a table. Among folders, which may be the classes, its first row must also name
    a file that is there.
    """
    try:
        with _opened(file) as (delimiter, lines):
            reader = csv.reader(lines, delimiter=delimiter)
            columns = _Columns.of(next(reader, []), file)
            if has_folders:
                columns.row(next(reader, []), 2, file)
    except (DataError, OSError, UnicodeDecodeError, csv.Error):
        return False
    return True
