"""WebDataset shards: tar files in which the files of a sample follow each other and share a name.

    000017.jpg  000017.cls                 the class: a number or a name
    000018.jpg  000018.json                {"label": ..., "labels": [...], "split": ..., "path": ...}
    cat/19.jpg                             without either, the folder in the shard is the class

A name ends at the first dot of its last part (github.com/webdataset/webdataset). A shard is read once to
note where each image lies; the note is cached, and from then on an image is read by its offset. Links,
special files, absolute names and compressed shards are refused.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ... import log
from ...errors import DataError
from ...io import read_json, write_text
from ..folder import SUFFIXES as IMAGE_SUFFIXES
from ..image_file import system_devices
from ..image_listing import LABEL_COLUMNS, Labels, Listing, split_named
from ..source import DataSource, local_files, register, shown, splits_of_names
from ..stored import Container, StoredImages

SUFFIX = ".tar"
_VERSION = 1  # of the notes
_MOST_HEADER = 1 << 20  # bytes of one header, with the long names that belong to it
_MOST_TEXT = 1 << 20  # bytes of a label
_MOST_NAME = 1000


@register
class WebDatasetShards(DataSource):
    name = "webdataset"

    def recognises(self, data: Path, entries: Collection[str]) -> bool:
        if data.name.lower().endswith(SUFFIX) and not os.path.isdir(data):
            return True
        tars = [name for name in entries if name.lower().endswith(SUFFIX)]
        return bool(tars) and not any(os.path.isdir(data / name) for name in entries)

    def list(self, data: Path, group: str | None) -> Listing:
        files = local_files(data, (SUFFIX,))
        with log.progress_bar("indexing shards", len(files), "shards") as advance:
            known: dict[Labels, Labels] = {}
            shards = [_compact(_indexed(file, group, advance), known) for file in files]
        return _listing(data, files, shards, group)


@dataclass
class _Shard:
    """The images of one shard, in its order. ranks: places in the order before packing; -1 if unknown."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] | NDArray[np.int64] = field(default_factory=list)
    sizes: list[int] | NDArray[np.int64] = field(default_factory=list)
    labels: list[Sequence[str]] = field(default_factory=list)
    several: list[bool] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    ranks: list[int] | NDArray[np.int64] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # of the JSON's column that was asked for
    others: dict[str, int] = field(default_factory=dict)  # members that are not read, by suffix


def _listing(data: Path, files: list[Path], shards: list[_Shard], group: str | None) -> Listing:
    root = data if os.path.isdir(data) else data.parent
    starts = np.cumsum([0, *(len(shard.names) for shard in shards)])
    total = int(starts[-1])
    if total == 0:
        raise DataError(f"{shown(data)} holds no images; give shards with images and their labels")
    _report_others(data, shards)
    of = np.repeat(np.arange(len(files), dtype=np.int32), np.diff(starts))

    def gathered(name: str) -> list[Any]:
        return [value for shard in shards for value in getattr(shard, name)]

    paths = gathered("paths")
    if not all(paths):  # without names of their own, they have those of the shard
        paths = [
            path or f"{file.name.removesuffix(SUFFIX)}/{name}"
            for file, shard in zip(files, shards, strict=True)
            for path, name in zip(shard.paths, shard.names, strict=True)
        ]
    labels = gathered("labels")
    several = any(shard_several for shard in shards for shard_several in shard.several)
    splits: list[str] | None = gathered("splits")
    assert splits is not None
    if not all(splits):
        if any(splits):
            place = splits.index("")
            raise DataError(
                f"{files[of[place]]} has no split for {paths[place]!r}, and other images have one; add it"
            )
        by_name = splits_of_names(files)
        splits = None if by_name is None else [by_name[k] for k in of]
    groups = None
    if group is not None:
        groups = gathered("groups")
        if not any(groups):
            raise DataError(
                f"{shown(data)} has no {group!r} in the JSON of its samples; give one that it has"
            )
    ranks = np.concatenate([shard.ranks for shard in shards])
    order = np.argsort(ranks, kind="stable") if (ranks >= 0).all() else np.arange(total)

    def line(i: int) -> str:
        file = files[bisect.bisect_right(starts, order[i]) - 1]
        return f"{paths[order[i]]} in {file}"

    def ordered(values: list[Any]) -> list[Any]:
        return [values[k] for k in order]

    stored = StoredImages(
        tuple(Container(file, read_member) for file in files),
        of,
        np.concatenate([shard.offsets for shard in shards]),
        np.concatenate([shard.sizes for shard in shards]),
    )
    return Listing(
        where=shown(data),
        root=root,
        paths=ordered(paths),
        labels=ordered(labels),
        several=several,
        label_name="labels" if several else "label",
        splits=None if splits is None else ordered(splits),
        groups=None if groups is None else ordered(groups),
        stored=stored.subset(order),
        line=line,
    )


def _compact(shard: _Shard, known: dict[Labels, Labels]) -> _Shard:
    """The shard in less memory. known: the labels of all shards, one tuple for all images that have them."""
    offsets, sizes, ranks = (np.array(v, np.int64) for v in (shard.offsets, shard.sizes, shard.ranks))
    labels: list[Sequence[str]] = [known.setdefault(found, found) for found in map(tuple, shard.labels)]
    return replace(shard, offsets=offsets, sizes=sizes, ranks=ranks, labels=labels)


def _report_others(data: Path, shards: list[_Shard]) -> None:
    counts: dict[str, int] = {}
    for shard in shards:
        for suffix, count in shard.others.items():
            counts[suffix] = counts.get(suffix, 0) + count
    if counts:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items())[:8])
        log.info(f"{shown(data)}: files of samples that are not read: {kinds}")


def read_member(path: Path, offset: int, size: int) -> bytes:
    """The bytes at `offset` of a shard."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        found = bytearray()
        while len(found) < size and (block := file.read(size - len(found))):
            found += block
    if len(found) < size:
        raise ValueError("its shard has been cut short")
    return bytes(found)


# The index of a shard


def _indexed(file: Path, group: str | None, advance: Callable[[int], None]) -> _Shard:
    from ..cache import default_cache_dir

    found = file.stat()
    if found.st_dev in system_devices():
        raise DataError(f"{file} is not a regular file; give shards that are")
    key = f"{_VERSION} {group} {file.resolve()} {found.st_size} {found.st_mtime_ns}"
    note = default_cache_dir() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    shard = _read_note(note)
    if shard is None:
        shard = _read_shard(file, group)
        note.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(vars(shard), separators=(",", ":"))
        write_text(note, json.dumps({"check": zlib.crc32(content.encode()), "shard": content}))
    advance(1)
    return shard


def _read_note(note: Path) -> _Shard | None:
    try:
        saved = read_json(note)
        content = saved["shard"]
        if zlib.crc32(content.encode()) != saved["check"]:
            return None
        return _Shard(**json.loads(content))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class _ShortReads:
    """A file of which only so much is read at once: a header says how long its long name is."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError("a header of too many bytes")
        return self._file.read(size)


def _read_shard(file: Path, group: str | None) -> _Shard:
    """Raises DataError for a shard that is damaged, or holds what is refused."""
    shard = _Shard()
    try:
        with open(file, "rb") as opened:
            samples: set[str] = set()
            sample = _Sample("")
            for member in _members(file, opened):
                key, suffix = _name_of(file, member)
                if key != sample.key:
                    sample.add_to(shard, file, group)
                    if key in samples:
                        raise DataError(
                            f"{file} has two samples named {key!r}; files of a sample must follow each other"
                        )
                    samples.add(key)
                    sample = _Sample(key)
                sample.take(file, member, suffix, opened)
            sample.add_to(shard, file, group)
    except (OSError, tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{file} cannot be read as a tar file ({reason}); replace it by a whole one"
        ) from None
    return shard


def _members(file: Path, opened: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The regular files of a shard. Raises DataError for anything else, and for a shard that is cut short."""
    if opened.read(512)[257:262] != b"ustar":
        raise DataError(
            f"{file} is not a tar file, or a compressed one; unpack it, for images are read by offset"
        )
    opened.seek(0)
    with tarfile.open(fileobj=_ShortReads(opened), mode="r:") as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members = []  # else it remembers a million of them
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                kind = "a link" if member.islnk() or member.issym() else "a special file"
                raise DataError(f"{file} holds {kind}, {member.name[:100]!r}; pack the files themselves")
            if member.size < 0:
                raise tarfile.ReadError("a file of negative size")
            yield member
        # A damaged header looks like the end to tarfile.
        opened.seek(tar.offset)
        rest = opened.read(512)
    if len(rest) < 512 or rest.strip(b"\0"):
        raise tarfile.ReadError("cut short or damaged")


def _name_of(file: Path, member: tarfile.TarInfo) -> tuple[str, str]:
    """A sample's key and the suffix, with its dot and in lower case."""
    name = member.name.removeprefix("./")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or len(name) > _MOST_NAME:
        raise DataError(f"{file} holds a file named {name[:100]!r}; give files names inside the shard")
    stem, dot, suffix = parts[-1].partition(".")
    return "/".join([*parts[:-1], stem]), f"{dot}{suffix}".lower()


@dataclass
class _Sample:
    """The files of one sample that have been read so far."""

    key: str
    image: tarfile.TarInfo | None = None
    suffix: str = ""
    json: dict[str, Any] = field(default_factory=dict)
    cls: str | None = None
    seen: set[str] = field(default_factory=set)

    def take(self, file: Path, member: tarfile.TarInfo, suffix: str, opened: BinaryIO) -> None:
        where = f"the sample {self.key!r} of {file}"
        if suffix in self.seen:
            raise DataError(f"{where} has two files {suffix!r}; give each another name")
        self.seen.add(suffix)
        if suffix in IMAGE_SUFFIXES:
            if self.image is not None:
                raise DataError(f"{where} has two images, {self.suffix} and {suffix}; keep one of them")
            self.image, self.suffix = member, suffix
        elif suffix in (".cls", ".json"):
            text = self._text(where, member, opened)
            if suffix == ".cls":
                self.cls = text.strip()
            else:
                self._take_json(where, text)

    def _text(self, where: str, member: tarfile.TarInfo, opened: BinaryIO) -> str:
        if member.size > _MOST_TEXT:
            raise DataError(f"{where} has a label of {member.size:,} bytes; check what it is")
        opened.seek(member.offset_data)
        try:
            return opened.read(member.size).decode()
        except UnicodeDecodeError:
            raise DataError(f"{where} has a label that is not UTF-8; write it as text") from None

    def _take_json(self, where: str, text: str) -> None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise DataError(f"{where} has a .json that is no JSON object; correct it")
        self.json = {name.casefold(): value for name, value in found.items()}

    def add_to(self, shard: _Shard, file: Path, group: str | None) -> None:
        """Notes the sample, if it has an image."""
        for suffix in self.seen - {self.suffix, ".cls", ".json"}:
            kind = suffix or "without a suffix"
            shard.others[kind] = shard.others.get(kind, 0) + 1
        if self.image is None:
            if self.seen & {".cls", ".json"}:
                shard.others["labels without an image"] = shard.others.get("labels without an image", 0) + 1
            return
        where = f"the sample {self.key!r} of {file}"
        labels, several = self._labels(where)
        path = self.json.get("path", "")
        if path and not _is_relative(path):
            raise DataError(f"{where} has the path {str(path)[:100]!r}; give a relative one")
        rank = self.json.get("index")
        shard.names.append(self.key + self.suffix)
        assert (
            isinstance(shard.offsets, list)
            and isinstance(shard.sizes, list)
            and isinstance(shard.ranks, list)
        )
        shard.offsets.append(self.image.offset_data)
        shard.sizes.append(self.image.size)
        shard.labels.append(labels)
        shard.several.append(several)
        shard.splits.append(split_named(str(self.json["split"]), where) if "split" in self.json else "")
        shard.paths.append(path)
        shard.ranks.append(rank if type(rank) is int and 0 <= rank < 2**62 else -1)
        cell = self.json.get((group or "").casefold(), "")
        shard.groups.append(str(cell)[:_MOST_NAME] if type(cell) in (str, int) else "")

    def _labels(self, where: str) -> tuple[list[str], bool]:
        """The labels, and whether a sample may have several."""
        named = [name for name in LABEL_COLUMNS if self.json.get(name) is not None]
        found: Any = self.json[named[0]] if named else self.cls
        if found is None:
            folder = self.key.rpartition("/")[0].rpartition("/")[2]
            return ([folder] if folder else []), False
        values = found if isinstance(found, list) else [found]
        if any(type(value) not in (str, int) or not str(value).strip() for value in values):
            raise DataError(f"{where} has the label {str(found)[:100]!r}; give a name or a number")
        return list(dict.fromkeys(str(value).strip() for value in values)), isinstance(found, list)


def _is_relative(path: object) -> bool:
    return (
        isinstance(path, str)
        and len(path) <= _MOST_NAME
        and not os.path.isabs(path)
        and not path.startswith(("/", "\\"))
        and ".." not in path.replace("\\", "/").split("/")
    )
