"""Parquet files, and data sets saved by Hugging Face's `datasets`, with images or their paths.

The image is a column of bytes, or of {bytes, path} as `datasets` writes them; without one, a column of paths
makes the table a manifest. Labels are text, numbers, or lists of these; numbers get the names that `datasets`
notes in the schema. Other columns, all optional: `split`, `path` (a stable name of each image), `size` (of
its bytes), `index` (its place in the order before packing).

An image is read by its row. Parquet gives a whole row group at once, so groups of a few hundred images are
slow to read in random order; `deitkit pack --to parquet` writes small ones.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import log
from ...errors import DataError
from ..image_file import MAX_FILE_BYTES
from ..image_listing import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLITS,
    Labels,
    Listing,
    list_rows,
    one_of,
    split_named,
)
from ..source import DataSource, importing, local_files, register, shown, splits_of_names
from ..stored import UNKNOWN_SIZE, Container, StoredImages

SUFFIX = ".parquet"
IMAGE_COLUMNS = ("image", "img", "bytes", "jpg", "jpeg", "png", "webp", "picture", "photo")
_MOST_GROUP = 2 << 30  # bytes of a row group
_HELD = 256 << 20  # bytes of row groups that are kept for the next image


@register
class ArrowTables(DataSource):
    name = "arrow"

    def recognises(self, data: Path, entries: Collection[str]) -> bool:
        if not os.path.isdir(data):
            return data.name.lower().endswith(SUFFIX)
        return _is_saved(entries) or _parquet_folder(data, entries) is not None

    def list(self, data: Path, group: str | None) -> Listing:
        if os.path.isdir(data):
            entries = [path.name for path in data.iterdir()]
            if _is_saved(entries):
                return list_tables(data, *_saved(data, entries), group=group)
        files = local_files(
            (_parquet_folder(data, entries) or data) if os.path.isdir(data) else data, (SUFFIX,)
        )
        return list_tables(data, files, splits_of_names(files), group=group)


def _parquet_folder(data: Path, entries: Collection[str]) -> Path | None:
    """The folder with the Parquet files of `data`: itself, or `data/` in it, as on the Hugging Face Hub."""
    folders = [name for name in entries if os.path.isdir(data / name) and not name.startswith(".")]
    if not folders and any(name.lower().endswith(SUFFIX) for name in entries):
        return data
    if folders == ["data"] and any(p.name.lower().endswith(SUFFIX) for p in (data / "data").iterdir()):
        return data / "data"
    return None


def _is_saved(entries: Collection[str]) -> bool:
    """Whether `datasets` wrote a folder with `save_to_disk`: one split, or several."""
    return "dataset_dict.json" in entries or {"state.json", "dataset_info.json"} <= set(entries)


def _saved(data: Path, entries: Collection[str]) -> tuple[list[Path], list[str] | None]:
    """The Arrow files of a saved folder, and the split of each."""
    if "dataset_dict.json" not in entries:
        return sorted(data.glob("*.arrow")), None
    files, splits = list[Path](), list[str]()
    for name in sorted(entries):
        found = sorted((data / name).glob("*.arrow")) if (data / name / "state.json").is_file() else []
        files += found
        splits += [split_of_saved(name, data)] * len(found) if found else []
    return files, splits


def split_of_saved(name: str, data: Path) -> str:
    """The split that `datasets` calls `name`. Raises DataError for another."""
    split = SPLITS.get(name.lower())
    if split is None:
        raise DataError(f"{shown(data)} has a split {name!r}; rename it to train, validation or test")
    return split


def list_tables(
    data: Path, files: Sequence[Path], splits: Sequence[str] | None, *, group: str | None
) -> Listing:
    """The images of Arrow or Parquet files, all with the same columns. splits: of each file."""
    if not files:
        raise DataError(f"{shown(data)} holds no {SUFFIX} files; give some")
    root = data if os.path.isdir(data) else data.parent
    tables: list[_Rows] = []
    with importing("pyarrow", data), log.progress_bar("reading tables", len(files), "files") as advance:
        for file in files:
            with _reading(file):
                opened = _opened(file, _version(file))
                if opened.image is None:
                    if len(files) > 1:
                        raise DataError(
                            f"{file} has no column of images; one file of paths is read, not several"
                        )
                    return _manifest(file, opened, group)
                split = splits[len(tables)] if splits is not None else None
                tables.append(_read_columns(file, root, opened, split, group))
            advance(1)
    kept = [table for table in tables if any(table.labels)] or tables
    if len(kept) < len(tables):
        log.info(f"{shown(data)}: {len(tables) - len(kept)} files without labels are left out")
    return _joined(data, root, kept)


@dataclass
class _Rows:
    """The columns of one file."""

    file: Path
    paths: list[str]
    labels: list[Labels]
    several: bool
    label_name: str
    splits: list[str] | None
    groups: list[str] | None
    sizes: NDArray[np.int64]
    ranks: NDArray[np.int64] | None


def _joined(data: Path, root: Path, tables: Sequence[_Rows]) -> Listing:
    starts = np.cumsum([0, *(len(table.paths) for table in tables)])
    total = int(starts[-1])
    if total == 0:
        raise DataError(f"{shown(data)} has no rows; give one for each image")
    with_split = [table for table in tables if table.splits is not None]
    if with_split and len(with_split) < len(tables):
        raise DataError(
            f"only some files of {shown(data)} have a split, such as {with_split[0].file}; add it to all"
        )
    order = np.arange(total)
    if all(table.ranks is not None for table in tables):
        order = np.argsort(
            np.concatenate([table.ranks for table in tables if table.ranks is not None]), kind="stable"
        )
    stored = StoredImages(
        tuple(Container(table.file, read_row) for table in tables),
        np.repeat(np.arange(len(tables), dtype=np.int32), np.diff(starts)),
        np.concatenate([np.arange(len(table.paths)) for table in tables]),
        np.concatenate([table.sizes for table in tables]),
    )

    def ordered(name: str) -> list[Any]:
        values = [value for table in tables for value in getattr(table, name)]
        return [values[k] for k in order]

    def line(i: int) -> str:
        k = int(np.searchsorted(starts, order[i], "right")) - 1
        return f"row {order[i] - starts[k]} of {tables[k].file}"

    return Listing(
        where=shown(data),
        root=root,
        paths=ordered("paths"),
        labels=ordered("labels"),
        several=any(table.several for table in tables),
        label_name=tables[0].label_name,
        splits=ordered("splits") if with_split else None,
        groups=ordered("groups") if tables[0].groups is not None else None,
        stored=stored.subset(order),
        line=line,
    )


# One file


def _version(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raises DataError where pyarrow cannot read a file; its exceptions are of many kinds."""
    try:
        yield
    except (DataError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{file} cannot be read ({reason}); replace it by a whole file") from None


@functools.lru_cache(maxsize=256)
def _opened(file: Path, version: tuple[int, int]) -> _Parquet | _Arrow:
    """The opened file; another `version` is another file."""
    return (_Parquet if file.name.lower().endswith(SUFFIX) else _Arrow)(file)


class _Parquet:
    """A Parquet file that is read by row."""

    def __init__(self, file: Path):
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(file)
        metadata = self._file.metadata
        self.schema, self.rows = self._file.schema_arrow, metadata.num_rows
        self.image = _image_column(file, self.schema)
        counts = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
        largest = max((metadata.row_group(k).total_byte_size for k in range(len(counts))), default=0)
        if largest > _MOST_GROUP:
            raise DataError(f"{file} has a row group of {largest >> 20:,} MiB; write it with smaller ones")
        self._starts = np.cumsum([0, *counts])
        self._lock = threading.Lock()

    def column(self, name: str) -> Any:
        return self._file.read(columns=[name], use_threads=False).column(0)

    def sizes(self) -> NDArray[np.int64]:
        return np.full(self.rows, UNKNOWN_SIZE, np.int64)

    def bytes_of(self, file: Path, row: int) -> Any:
        group = int(np.searchsorted(self._starts, row, "right")) - 1
        if not 0 <= row < self.rows:
            raise ValueError("its table has fewer rows now")
        with self._lock:  # of threads that want the same group, one reads it
            column = _groups.get(file, group)
            if column is None:
                column = self._file.read_row_group(group, columns=[self.image], use_threads=False).column(0)
                _groups.keep(file, group, column)
        return column[row - int(self._starts[group])]


class _Arrow:
    """A file of Arrow's stream format, mapped into memory."""

    def __init__(self, file: Path):
        import pyarrow as pa

        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as reader:
            self._table = reader.read_all()
        self._table.validate(full=True)  # offsets that lead outside of a buffer would end the process
        self.schema, self.rows = self._table.schema, self._table.num_rows
        self.image = _image_column(file, self.schema)

    def column(self, name: str) -> Any:
        return self._table.column(name)

    def sizes(self) -> NDArray[np.int64]:
        import pyarrow.compute as pc
        import pyarrow.types as types

        column = self._table.column(self.image)
        if types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        return np.asarray(pc.fill_null(pc.binary_length(column), UNKNOWN_SIZE).to_numpy(), np.int64)

    def bytes_of(self, file: Path, row: int) -> Any:
        if not 0 <= row < self.rows:
            raise ValueError("its table has fewer rows now")
        return self._table.column(self.image)[row]


class _Groups:
    """The row groups that were read last, of all files, up to `_HELD` bytes."""

    def __init__(self) -> None:
        self._lock, self._found, self._held = threading.Lock(), OrderedDict[tuple[Path, int], Any](), 0

    def get(self, file: Path, group: int) -> Any | None:
        with self._lock:
            column = self._found.get((file, group))
            if column is not None:
                self._found.move_to_end((file, group))
            return column

    def keep(self, file: Path, group: int, column: Any) -> None:
        with self._lock:
            self._found[file, group] = column
            self._held += column.nbytes
            while self._held > _HELD and len(self._found) > 1:
                _, oldest = self._found.popitem(last=False)
                self._held -= oldest.nbytes


_groups = _Groups()


def _after_fork() -> None:
    """A thread that held a lock, of pyarrow too, is not in the new process."""
    global _groups
    _groups = _Groups()
    _opened.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def read_row(path: Path, row: int, size: int) -> bytes:
    """The bytes of an image in a row; of {bytes, path} without bytes, those of the file at that path."""
    try:
        found = _opened(path, _version(path)).bytes_of(path, row).as_py()
    except (OSError, ValueError):
        raise
    except Exception as error:  # pyarrow's
        raise ValueError(f"broken: {' '.join(str(error).split())[:200]}") from None
    if isinstance(found, dict):
        found = found.get("bytes") or _bytes_at(found.get("path"))
    if not isinstance(found, bytes):
        raise ValueError("its row holds no image")
    if size != UNKNOWN_SIZE and len(found) != size:
        raise ValueError("its size is not that of its row")
    return found


def _bytes_at(path: Any) -> bytes | None:
    """The file that `datasets` has in its own cache. Nothing is downloaded."""
    file = Path(path) if isinstance(path, str) else None
    if file is None or not file.is_absolute() or not file.is_file():
        return None
    if file.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("too large")
    return file.read_bytes()


def _image_column(file: Path, schema: Any) -> str | None:
    """The column with the bytes of images; None if there is none."""
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = []
    for entry in schema:
        if types.is_struct(entry.type):
            names = [entry.type.field(k).name for k in range(entry.type.num_fields)]
            if "bytes" in names and is_bytes(entry.type.field("bytes").type):
                found.append(entry.name)
        elif is_bytes(entry.type) and entry.name.casefold() in IMAGE_COLUMNS:
            found.append(entry.name)
    if len(found) > 1:
        raise DataError(
            f"{file} has images in the columns {' and '.join(map(repr, found))}; keep one of them"
        )
    return str(found[0]) if found else None


def _read_columns(
    file: Path, root: Path, opened: _Parquet | _Arrow, split: str | None, group: str | None
) -> _Rows:
    names = [name for name in opened.schema.names if name != opened.image]
    if len(set(names)) < len(names):
        raise DataError(f"{file} has two columns of the same name; keep one of them")
    folded = [name.casefold() for name in names]

    def place(wanted: tuple[str, ...]) -> str | None:
        at = one_of(wanted, folded, file, optional=True)
        return None if at is None else names[at]

    label = place(LABEL_COLUMNS) or _only_class_label(opened.schema)
    labels: list[Labels] = [()] * opened.rows
    several = False
    if label is not None:
        labels, several = _labels(file, opened.column(label), _class_names(opened.schema).get(label))
    split_column, group_column = place(("split",)), place((group.casefold(),)) if group is not None else None
    if group is not None and group_column is None:
        raise DataError(f"{file} has no column {group!r}; give one that it has")
    splits = [split] * opened.rows if split is not None else None
    if split_column is not None:
        cells = _texts(file, split_column, opened.column(split_column))
        known = {cell: split_named(cell, f"{file}") for cell in set(cells)}
        splits = [known[cell] for cell in cells]
    path_column = place(PATH_COLUMNS)
    named = _texts(file, path_column, opened.column(path_column)) if path_column is not None else []
    unsafe = next((p for p in named if p.startswith(("/", "\\")) or ".." in p.split("/")), None)
    if unsafe is not None:
        raise DataError(f"{file} has the path {unsafe[:100]!r}; give relative ones, or bytes alone")
    inside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    stem = inside.with_suffix("").as_posix()
    return _Rows(
        file,
        paths=named if all(named) and named else [f"{stem}/{row:08d}" for row in range(opened.rows)],
        labels=labels,
        several=several,
        label_name=label or "label",
        splits=splits,
        groups=_texts(file, group_column, opened.column(group_column)) if group_column is not None else None,
        sizes=_integers(file, "size", opened, names) if "size" in names else opened.sizes(),
        ranks=_integers(file, "index", opened, names) if "index" in names else None,
    )


def _integers(file: Path, name: str, opened: _Parquet | _Arrow, names: Sequence[str]) -> NDArray[np.int64]:
    import pyarrow.types as types

    column = opened.column(name)
    if not types.is_integer(column.type) or column.null_count:
        raise DataError(f"{file} has a column {name!r} that is not of whole numbers; rename or remove it")
    return np.asarray(column.to_numpy(), np.int64)


def _texts(file: Path, name: str, column: Any) -> list[str]:
    """A column of text or whole numbers as text, empty for null."""
    import pyarrow.types as types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)):
        raise DataError(f"{file} has a column {name!r} of {kind}; give text")
    encoded = column if types.is_dictionary(column.type) else column.dictionary_encode()
    found: list[str] = []
    for chunk in encoded.chunks:  # one text for all rows that have it
        texts = ["" if value is None else str(value) for value in chunk.dictionary.to_pylist()]
        found += ["" if code is None else texts[code] for code in chunk.indices.to_pylist()]
    return found


def _labels(file: Path, column: Any, names: list[str] | None) -> tuple[list[Labels], bool]:
    """The labels of each row, and whether a row may have several."""
    import pyarrow.types as types

    several = types.is_list(column.type) or types.is_large_list(column.type)
    kind = column.type.value_type if several or types.is_dictionary(column.type) else column.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)):
        raise DataError(f"{file} has labels of the type {column.type}; give text, numbers, or lists of these")

    def text(value: Any) -> str:
        if value is None or (names is not None and value == -1):  # which `datasets` gives for none
            return ""
        if names is None or isinstance(value, str):
            return str(value).strip()
        if not 0 <= value < len(names):
            raise DataError(f"{file} has the label {value}, and names for {len(names)}; correct them")
        return str(names[value])

    if several:
        found = [tuple(filter(None, map(text, value or ()))) for value in column.to_pylist()]
        known: dict[Labels, Labels] = {}
        return [known.setdefault(row, tuple(dict.fromkeys(row))) for row in found], True
    values = column.to_pylist()
    of = {value: (text(value),) if text(value) else () for value in set(values)}
    return [of[value] for value in values], False


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` notes about the columns; empty if it is not there or damaged."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return noted if isinstance(noted, dict) else {}
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}


def _class_names(schema: Any) -> dict[str, list[str]]:
    found = {}
    for name, feature in _features(schema).items():
        if isinstance(feature, list) and feature:
            feature = feature[0]
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None
        names = inner.get("names") if isinstance(inner, dict) else None
        if isinstance(names, list) and all(isinstance(each, str) and each for each in names):
            found[name] = names
    return found


def _only_class_label(schema: Any) -> str | None:
    names = [name for name in _class_names(schema) if name in schema.names]
    return names[0] if len(names) == 1 else None


def _manifest(file: Path, opened: _Parquet | _Arrow, group: str | None) -> Listing:
    """A table of paths."""
    import pyarrow.types as types

    names, class_names = opened.schema.names, _class_names(opened.schema)
    columns = []
    for name in names:
        column = opened.column(name)
        if name in class_names or types.is_list(column.type):
            cells = [";".join(row) for row in _labels(file, column, class_names.get(name))[0]]
        elif name.casefold() in {*PATH_COLUMNS, *LABEL_COLUMNS, "split", (group or "").casefold()}:
            cells = _texts(file, name, column)
        else:
            cells = [""] * opened.rows
        columns.append(cells)
    rows = ((row + 1, cells) for row, cells in enumerate(zip(*columns, strict=True)))
    listing, ignored = list_rows(file, names, rows, group)
    if ignored:
        log.info(f"{file}: columns that are not read: {', '.join(ignored)}")
    return listing
