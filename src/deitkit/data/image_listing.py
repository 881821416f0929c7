"""What a table or another source says of its images: a listing, and how rows of cells become one."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, did_you_mean
from .stored import StoredImages

PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class", "category", "labels")
SPLITS = {
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"dev": "val", "test": "test", "testing": "test"},
}
_LOOKED_UP = 100  # files of a folder that are looked up one by one; for more, the folder is listed

Labels = tuple[str, ...]  # of one image


@dataclass(frozen=True)
class Listing:
    """The images of a source in its own order, of N images.

    where: the source, in messages. root: what `paths` are relative to, if images are files. labels: of each
    image. several: whether an image may have several labels, or none; then the task is multilabel.
    label_name: of the column. splits: "train", "val" or "test" of each. groups: cells of the column that was
    asked for. stored: where images lie that are no files of their own. line: names row i in messages.
    """

    where: str
    root: Path
    paths: Sequence[str]
    labels: Sequence[Labels]
    several: bool
    label_name: str = "label"
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    stored: StoredImages | None = None
    line: Callable[[int], str] = str


def split_labels(cell: str) -> Labels:
    """The labels in a cell, each once."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, re.split("[;|]", cell)))))


def split_named(text: str, where: str) -> str:
    """ "train", "val" or "test" for a cell of a column `split`. Raises DataError for anything else."""
    split = SPLITS.get(text.strip().lower())
    if split is None:
        raise DataError(
            f"{where} has the split {text[:100]!r}; give train, val or test in every line, "
            "or take the column out"
        )
    return split


@dataclass(frozen=True)
class Columns:
    """Where the columns of a table are."""

    path: int
    label: int
    split: int | None
    count: int
    label_name: str
    ignored: tuple[str, ...]
    group: int | None = None

    @staticmethod
    def of(header: Sequence[str], file: Path, group: str | None = None) -> Columns:
        """Finds the columns, `group` too. Raises DataError if one is missing or could be either of two."""
        names = [name.strip().casefold() for name in header]
        path = one_of(PATH_COLUMNS, names, file)
        label = one_of(LABEL_COLUMNS, names, file)
        split = one_of(("split",), names, file, optional=True)
        grouped = (group.casefold(),) if group is not None else ()
        groups = one_of(grouped, names, file) if grouped else None
        known = (*PATH_COLUMNS, *LABEL_COLUMNS, "split", *grouped)
        ignored = tuple(name for name in names if name and name not in known)
        for name in ignored:
            meant = did_you_mean(name, known)
            if meant:  # ignoring it would lose labels or a split
                raise DataError(f"{file} has the column {name!r}{meant}")
        assert path is not None and label is not None
        return Columns(path, label, split, len(names), names[label], ignored, groups)

    def row(self, cells: Sequence[str], where: str, files: Files) -> tuple[str, str, str | None, str]:
        """Path, label, split and group of a row. Raises DataError if it cannot be used."""
        if len(cells) > self.count:
            raise DataError(
                f"{where} has more cells than the header; separate labels by ; or put the cell in quotes"
            )
        cells = [cell.strip() for cell in cells] + [""] * (self.count - len(cells))
        path = cells[self.path].replace("\\", "/").removeprefix("./")
        if not path:
            raise DataError(f"{where} names no image; fill in its path or remove the line")
        if not files.has(path):
            shown = path if path.isprintable() else repr(path)  # a quoted cell may hold line breaks
            raise DataError(
                f"{where} names {shown}, and {files.root} holds no such file; "
                "correct the path or remove the line"
            )
        split = None if self.split is None else split_named(cells[self.split], where)
        return path, cells[self.label], split, "" if self.group is None else cells[self.group]


class Files:
    """Which files there are below a folder. A million look-ups take seconds."""

    def __init__(self, root: Path):
        self.root = root
        self._looked_up: Counter[str] = Counter()
        self._listed: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._listed:
            self._looked_up[folder] += 1
            if self._looked_up[folder] <= _LOOKED_UP:
                return self._is_file(path)
            self._listed[folder] = self._names(folder)
        return name in self._listed[folder] or self._is_file(path)  # which may ignore case

    def _is_file(self, path: str) -> bool:
        try:
            return (self.root / path).is_file()
        except (OSError, ValueError):
            return False

    def _names(self, folder: str) -> set[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except OSError:
            return set()


def list_rows(
    file: Path, header: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]], group: str | None = None
) -> tuple[Listing, tuple[str, ...]]:
    """The listing of a table's rows, and the columns that are ignored.

    rows: line in the file and cells of each. group: a column. Raises DataError for rows that cannot be used.
    """
    columns, files = Columns.of(header, file, group), Files(file.parent)
    lines = array("q")
    paths: list[str] = []
    labels: list[Labels] = []
    splits: list[str] = []
    groups: list[str] = []
    known: dict[str, Labels] = {}  # one tuple for all images of a class
    for line, cells in rows:
        path, cell, split, group_cell = columns.row(cells, f"line {line} of {file}", files)
        lines.append(line)
        paths.append(path)
        labels.append(known[cell] if cell in known else known.setdefault(cell, split_labels(cell)))
        if split is not None:
            splits.append(split)
        if group is not None:
            groups.append(group_cell)
    if not paths:
        raise DataError(f"{file} has no rows; give one for each image")
    listing = Listing(
        where=str(file),
        root=file.parent,
        paths=paths,
        labels=labels,
        several=columns.label_name == "labels" and any(not cell or re.search("[;|]", cell) for cell in known),
        label_name=columns.label_name,
        splits=splits if columns.split is not None else None,
        groups=groups if group is not None else None,
        line=lambda i: f"line {lines[i]} of {file}",
    )
    return listing, columns.ignored


def refuse_repeated(listing: Listing) -> None:
    """Raises DataError if two rows name the same image."""
    if len(set(listing.paths)) == len(listing.paths):
        return
    first: dict[str, int] = {}
    for i, path in enumerate(listing.paths):
        if first.setdefault(path, i) != i:
            one, other = listing.line(first[path]), listing.line(i)
            file = f" of {listing.where}"
            if one.startswith("line ") and one.endswith(file):  # "lines 2 and 7 of labels.csv"
                one = one.replace("line ", "lines ", 1).removesuffix(file)
                other = other.removeprefix("line ")
            raise DataError(f"{path} is in {one} and {other}; give each image one line")


def one_of(wanted: tuple[str, ...], names: Sequence[str], file: Path, optional: bool = False) -> int | None:
    """The index of the only column that has one of the `wanted` names."""
    found = [i for i, name in enumerate(names) if name in wanted]
    if len(found) > 1:
        raise DataError(
            f"{file} has the columns {' and '.join(repr(names[i]) for i in found)}; keep one of them"
        )
    if not found and not optional:
        meant = next(filter(None, (did_you_mean(name, wanted) for name in names if name)), "")
        raise DataError(
            f"{file} has no column {wanted[0]!r}{meant}; its first line has to name one "
            f"{', '.join(wanted[:-1])} or {wanted[-1]}, and has {', '.join(map(repr, names)) or 'nothing'}"
        )
    return found[0] if found else None
