"""Reads labels from a table: a CSV file with one row per image, or another source of `sources/`.

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
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from .. import log
from ..errors import DataError
from ..tasks import SEPARATOR, Task
from .image_file import system_devices
from .image_listing import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    Columns,
    Files,
    Listing,
    list_rows,
    one_of,
    refuse_repeated,
)
from .image_set import NO_LABEL, ImageSet
from .source import find_source

NAME = "labels.csv"  # preferred over other tables in a folder
SUFFIXES = (".csv", ".tsv")

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


def find_table(data: Path) -> Path | None:
    """The table that labels the images of `data`, or None; `data` itself if that is another source.

    `data` may be the table itself. In a folder it is `labels.csv`, or else the only CSV file, if that has the
    columns of a table.
    """
    if _is_table_file(data):
        return data
    if not os.path.isdir(data):
        return data if find_source(data) is not None else None
    if os.path.lexists(data / NAME):
        return data / NAME
    try:
        entries = [e for e in os.scandir(data) if not e.name.startswith(".")]
    except OSError:  # whoever reads the folder says what is wrong with it
        return None
    tables = [Path(e.path) for e in entries if e.name.lower().endswith(SUFFIXES) and e.is_file()]
    if len(tables) == 1 and _labels_images(tables[0], any(e.is_dir() for e in entries)):
        return tables[0]
    return data if find_source(data) is not None else None


def _is_table_file(data: Path) -> bool:
    return data.suffix.lower() in SUFFIXES and not os.path.isdir(data)


def is_table(data: Path) -> bool:
    """Whether a table labels the images of `data`."""
    return find_table(data) is not None


def is_source(data: Path) -> bool:
    """Whether a source of `sources/` reads `data`, rather than a folder or a CSV file."""
    return find_table(data) == data and not _is_table_file(data)


def image_root(data: Path) -> Path:
    """The folder that image paths are relative to: `data`, or the folder of a table that is a file."""
    is_file = data.suffix and not os.path.isdir(data) and find_table(data) is not None
    return data.parent if is_file else data


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
    if file not in (data, data / NAME):
        log.info(f"labels are read from {file}")
    source = None if _is_table_file(file) else find_source(data)
    listing = source.list(data, group) if source is not None else _read_csv(file, group)
    refuse_repeated(listing)
    return _as_table(listing, classes, task)


def read_unlabeled(data: Path) -> ImageSet:
    """All images of a source of `sources/`, whatever their labels, as NO_LABEL. Raises DataError."""
    source = find_source(data)
    if source is None:
        raise DataError(f"{data} is no source of images; give a folder, shards or a table")
    listing = source.list(data, None)
    refuse_repeated(listing)
    labels = np.full(len(listing.paths), NO_LABEL, np.int64)
    return ImageSet(listing.root, tuple(listing.paths), labels, (), listing.stored)


def _as_table(listing: Listing, classes: tuple[str, ...] | None, task: Task | None) -> Table:
    file, found = listing.where, listing.labels
    task = task or ("multilabel" if listing.several else "multiclass")
    if task == "multiclass":
        _refuse_several(listing)
    names = sorted(set(itertools.chain.from_iterable(set(found))))
    if not names:
        raise DataError(f"no image in {file} has a label; fill in the column {listing.label_name!r}")
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
        if len(found) * len(known) > _MAX_CELLS:
            raise DataError(f"{file} has {len(known)} labels for {len(found)} images; check its columns")
        labels = np.zeros((len(found), len(known)), bool)
        for i, row_labels in enumerate(found):
            labels[i, [place[name] for name in row_labels]] = True
    images = ImageSet(listing.root, tuple(listing.paths), labels, known, listing.stored)
    splits, groups = listing.splits, listing.groups
    return Table(images, None if splits is None else tuple(splits), None if groups is None else tuple(groups))


def _refuse_several(listing: Listing) -> None:
    """Raises DataError for an image without exactly one label."""
    for i, labels in enumerate(listing.labels):
        if len(labels) > 1:
            remedy = "name the column 'labels' if images may have several"
            if listing.label_name == "labels":  # of a run that knows one class per image
                remedy = "give each image one"
            raise DataError(f"{listing.line(i)} has several labels, {SEPARATOR.join(labels)!r}; {remedy}")
        if not labels:
            raise DataError(
                f"{listing.line(i)} has no label in {listing.label_name!r}; fill it in or remove the line"
            )


def _refuse_alike(names: Sequence[str], file: str) -> None:
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
    names = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS}
    try:
        with _opened(file) as (delimiter, lines):
            reader = csv.reader(lines, delimiter=delimiter)
            header = [name.strip().casefold() for name in next(reader, [])]
            places = [place for name in wanted if (place := one_of(names[name], header, file)) is not None]
            rows = [(reader.line_num, cells + [""] * len(header)) for cells in reader if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None
    return [(line, [cells[place].strip() for place in places]) for line, cells in rows]


def _unreadable(file: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{file} cannot be read: there is no such file; give the path of a CSV file")
    return DataError(f"{file} cannot be read ({error}); save it as a CSV in UTF-8")


def _read_csv(file: Path, group: str | None) -> Listing:
    """The listing of a CSV file; each row names another file, which is there."""
    try:
        with _opened(file) as (delimiter, lines):
            reader = csv.reader(lines, delimiter=delimiter)
            header = next(reader, [])
            rows = ((reader.line_num, cells) for cells in reader if any(cells))
            listing, ignored = list_rows(file, header, rows, group)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None
    if ignored:
        log.info(f"{file}: columns that are not read: {', '.join(ignored)}")
    return listing


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
            columns = Columns.of(next(reader, []), file)
            if has_folders:
                columns.row(next(reader, []), f"line 2 of {file}", Files(file.parent))
    except (DataError, OSError, UnicodeDecodeError, csv.Error):
        return False
    return True
