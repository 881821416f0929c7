"""What `DATA` may be beside a folder and a CSV file: sources, their registry, and files that lie elsewhere.

A source lists its images once: a stable name of each, its labels, split and group, and where its bytes lie.
From there on they are an `ImageSet` like any other, read by index, so that views, stored labels, resuming and
every verb work without code for a source.
"""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeVar

from .. import log
from ..errors import DataError, DependencyError
from ..io import written_aside
from .image_listing import SPLITS, Listing

PACK = "pack.json"  # of `deitkit pack`, in the folder of its shards
FINISHED = "pack.finished.jsonl"  # while it is at work
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", re.DOTALL)  # two letters, for C: is a drive
_MOST_FILES = 1_000_000  # of a pattern
_CHUNK = 1 << 22


class DataSource(ABC):
    """A kind of data. To add one, write a module in `sources/` with a subclass decorated by `register`.

    The module must load a library that is not among deitkit's own only when it lists or reads images, inside
    `importing`.
    """

    name: ClassVar[str]

    @abstractmethod
    def recognises(self, data: Path, entries: Collection[str]) -> bool:
        """Whether `data` is of this kind, by its name alone, or by the names of a folder's `entries`."""

    @abstractmethod
    def list(self, data: Path, group: str | None) -> Listing:
        """The images of `data`. group: a column for `Listing.groups`. Raises DataError, DependencyError."""


SOURCES: dict[str, DataSource] = {}
Source = TypeVar("Source", bound=type[DataSource])


def register(source: Source) -> Source:
    """Class decorator: makes the source known under its name."""
    SOURCES[source.name] = source()
    return source


def find_source(data: Path) -> DataSource | None:
    """The source that reads `data`; None for a folder of class folders, and for anything unknown."""
    from .sources import SOURCES as sources

    entries: list[str] = []
    if os.path.isdir(data):
        try:
            entries = [name for name in os.listdir(data) if not name.startswith(".")]
        except OSError:  # whoever reads the folder says what is wrong with it
            return None
    return next((source for source in sources.values() if source.recognises(data, entries)), None)


@contextmanager
def importing(package: str, data: Path) -> Iterator[None]:
    """Around the import of an optional package. Raises DependencyError with the extra that brings it."""
    try:
        yield
    except ImportError:
        raise DependencyError(f'{shown(data)} needs {package}; pip install "deitkit[data]"') from None


# Locations


def url_of(data: Path) -> str | None:
    """`data` as a URL, if it is one. A `Path` keeps one of the two slashes, so that it can be told."""
    found = _SCHEME.fullmatch(data.as_posix())
    if found is None or os.path.exists(data):
        return None
    scheme = found[1].lower()
    return f"file:///{found[2]}" if scheme == "file" else f"{scheme}://{found[2]}"


def is_remote(data: Path) -> bool:
    """Whether reading `data` reaches a network: a URL, or hf:NAME."""
    return url_of(data) is not None or data.as_posix().startswith("hf:")


def shown(data: Path) -> str:
    """`data` as the user wrote it."""
    return url_of(data) or str(data)


def location(data: Path) -> str:
    """What a run keeps to find `data` again: an absolute path, or what names it wherever one is."""
    return shown(data) if is_remote(data) else str(data.resolve())


def is_here(data: Path) -> bool:
    """Whether `data` is on this machine, as far as its name and the file system tell."""
    return not is_remote(data) and all(os.path.exists(path) for path in expand_pattern(data)[:1])


def expand_pattern(data: Path) -> list[Path]:
    """The files of a pattern: `{000..012}` counts, `{a,b}` lists; without one, `data` itself.

    Raises DataError for a pattern of too many files.
    """
    pending, done = [str(data)], list[str]()
    while pending:
        text = pending.pop()
        braces = re.search(r"\{([^{}]*)\}", text)
        if braces is None:
            done.append(text)
            continue
        pieces = _alternatives(braces[1])
        if len(pieces) + len(pending) + len(done) > _MOST_FILES:
            raise DataError(f"{shown(data)} names more than {_MOST_FILES:,} files; give fewer")
        pending += [text[: braces.start()] + piece + text[braces.end() :] for piece in reversed(pieces)]
    return [Path(text) for text in done]


def _alternatives(inside: str) -> Sequence[str]:
    counted = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if counted is None:
        return inside.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < _MOST_FILES:
        raise DataError(
            f"{{{inside}}} counts from {counted[1]} to {counted[2]}; count up, and to fewer files"
        )
    return [str(number).zfill(len(counted[1])) for number in range(first, last + 1)]


def local_files(data: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder with one of the `suffixes`, or those of a pattern, on this machine.

    Files of a URL are downloaded into the cache first, whole: only then can an image be read by its index.
    Raises DataError for one that is missing.
    """
    if os.path.isdir(data):
        if os.path.exists(data / FINISHED):
            raise DataError(f"the pack in {data} is not finished; run its deitkit pack again")
        return sorted(
            path for path in data.iterdir() if path.name.lower().endswith(suffixes) and path.is_file()
        )
    files = expand_pattern(data)
    if url_of(data) is not None:
        return _downloaded(files)
    for file in files:
        if not file.is_file():
            missing = f"there is no file {file}" if not file.exists() else f"{file} is not a regular file"
            raise DataError(f"{missing}; give {'/'.join(suffixes)} files that exist")
    return files


def _downloaded(files: Sequence[Path]) -> list[Path]:
    found = []
    with log.progress_bar("downloading", len(files), "files") as advance:
        for file in files:
            found.append(_fetched(file))
            advance(1)
    return found


def _fetched(file: Path) -> Path:
    """The file of a URL in the cache; one that has changed since is downloaded again."""
    with importing("fsspec", file):
        import fsspec
    from .cache import default_cache_dir

    folder, url = default_cache_dir() / "downloads", shown(file)
    try:
        system, found = fsspec.core.url_to_fs(url)
        path = str(found)
        version = hashlib.sha256(f"{url}\0{system.ukey(path)}".encode()).hexdigest()[:24]
        target = folder / version / path.rpartition("/")[2][-100:]
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(target) as side, system.open(path, "rb") as source, open(side, "wb") as copy:
            while block := source.read(_CHUNK):
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
        return target
    except ImportError as error:
        raise DependencyError(f"{url} needs another package ({error}); install it with pip") from None
    except Exception as error:  # each file system has exceptions of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{url} cannot be downloaded ({reason}); check its address and your rights") from None


def split_of_name(name: str) -> str | None:
    """The split that a file's name begins with or holds as a word, such as `imagenet-val-0003.tar`."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def splits_of_names(files: Sequence[Path]) -> list[str] | None:
    """The split of each file by its name; None unless all have one, and they differ."""
    found = [split_of_name(file.name) for file in files]
    return [str(split) for split in found] if None not in found and len(set(found)) > 1 else None
