"""Finds images and classes in folders. One line of the log counts the files that are not read."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import log
from ..errors import DataError
from .image_file import HEIF_SUFFIXES, system_devices
from .image_set import ImageSet

_JPEG, _PNM = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), (".pbm", ".pgm", ".ppm", ".pnm")
SUFFIXES = frozenset(
    (*_JPEG, ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", *_PNM, *HEIF_SUFFIXES)
)  # compared in lower case

_MAX_DEPTH = 100  # levels of folders below the one that is searched
_MAX_PATH_BYTES = 3800  # Linux refuses paths of 4096 bytes, and files in the folder need some of them
_MAX_ENTRIES = 20_000_000

Identity = tuple[int, int]  # device and inode of a folder, whichever path or link leads to it


class OtherFiles:
    """Files and folders that a search passes over, counted by suffix, or by why they are passed over."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._example = ""

    def add(self, path: str, kind: str | None = None) -> None:
        """Counts the entry at `path`. kind: by default its suffix."""
        if kind is None:
            name = os.path.basename(path)
            kind = os.path.splitext(name)[1].lower() or "without a suffix"
            kind = "hidden" if name.startswith(".") else kind
        self._example = self._example or path
        self._counts[kind] += 1

    def __add__(self, other: OtherFiles) -> OtherFiles:
        both = OtherFiles()
        both._counts, both._example = self._counts + other._counts, self._example or other._example
        return both

    def __str__(self) -> str:
        """For example "12 .txt, 3 hidden, 1 .cr2"; empty if nothing was passed over."""
        kinds = self._counts.most_common()
        shown = [f"{count:,} {kind}" for kind, count in kinds[:8]]
        if kinds[8:]:
            shown.append(f"{sum(count for _, count in kinds[8:]):,} of other kinds")
        return ", ".join(shown)

    def report(self, folder: Path | str) -> None:
        """Logs one line if anything was passed over."""
        if self._counts:
            total = self._counts.total()
            files = "file is" if total == 1 else "files are"
            log.info(f"{folder}: {total:,} {files} not read: {self} (such as {self._example})")


def scan(folder: Path, root: Path, at_least: int = 2) -> ImageSet:
    """All images under `folder`, one sub-folder per class, sorted by name; paths relative to `root`.

    Links are followed, and each folder is searched once. Raises DataError if there are no images, or fewer
    than `at_least` classes.
    """
    images, others = scan_quietly(folder, root, at_least)
    others.report(folder)
    depth = len(folder.relative_to(root).parts) + 1  # of a class folder
    deeper = [path for path in images.paths if path.count("/") > depth]
    if deeper:
        log.info(
            f"{folder}: {len(deeper):,} images lie in folders within the class folders "
            f"(such as {deeper[0]}); the outer folder is the class"
        )
    return images


def scan_quietly(folder: Path, root: Path, at_least: int = 2) -> tuple[ImageSet, OtherFiles]:
    """As `scan`, with the files that are not read for the caller to report."""
    folders = sub_folders(folder)
    seen = _identities(folder, folders)
    others = _loose_files(folder)
    classes: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for name, inside in folders.items():
        found, passed_over = search(str(inside), seen)
        others += passed_over
        if not found:
            empty.append(name)
            continue
        labels += [len(classes)] * len(found)
        classes.append(name)
        under = os.path.relpath(inside, root)  # once per class: a million calls take long
        paths += [(under + path[len(str(inside)) :]).replace(os.sep, "/") for path in sorted(found)]
    _refuse_classes(folder, classes, empty, others, at_least)
    return ImageSet(root, tuple(paths), np.array(labels, np.int64), tuple(classes)), others


def _refuse_classes(
    folder: Path, classes: list[str], empty: list[str], others: OtherFiles, at_least: int
) -> None:
    """Raises DataError for class folders that cannot be trained on. empty: those without images."""
    if not classes:
        if any(_is_image(e.name) for e in _entries(folder) if e.is_file()):
            raise DataError(f"{folder} holds images but no class folders; make one sub-folder per class")
        what = "no class folders"
        if empty:
            what = f"no images (its folders hold only other files: {empty[0]!r})"
        raise DataError(f"{folder} holds {what}; give a folder with one sub-folder of images per class")
    if empty:
        not_read = f" (not read in {folder}: {others})" if str(others) else ""
        raise DataError(
            f"the folder {empty[0]!r} in {folder} holds no images{not_read}; "
            "add images of that class or remove it"
        )
    if len(classes) < at_least:
        raise DataError(f"{folder} has only one class, {classes[0]!r}; a classifier needs two or more")
    by_case: dict[str, str] = {}
    for name in classes:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"the classes {other!r} and {name!r} in {folder} differ only by case; rename or merge them"
            )


def scan_as(folder: Path, classes: tuple[str, ...]) -> ImageSet:
    """All images under `folder` with labels that index `classes`; some of the classes are enough.

    Raises DataError for a class folder that is not among `classes`.
    """
    images = scan(folder, folder, at_least=1)
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        raise DataError(
            f"{folder} has the class {unknown[0]!r}, which the run does not know; "
            f"it knows {', '.join(classes[:8])}"
        )
    places = np.array([classes.index(name) for name in images.classes])
    return replace(images, labels=places[images.labels], classes=classes)


def sub_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that are not hidden, sorted by name. Raises DataError if it cannot be read."""
    entries = sorted(_entries(folder), key=lambda e: e.name)
    return {e.name: folder / e.name for e in entries if not e.name.startswith(".") and _is_folder(e)}


def images_under(folder: str) -> list[str]:
    """Paths of all images at any depth of `folder`. Logs what is not read."""
    found, others = search(folder)
    others.report(folder)
    return found


def search(
    folder: str, seen: set[Identity] | None = None, ignored: str | None = None
) -> tuple[list[str], OtherFiles]:
    """Images at any depth of `folder`, and what else is there.

    seen: folders that are not entered again; those that are entered are added. ignored: a file's name that is
    not counted.
    """
    seen = {_identity(folder)} if seen is None else seen
    found: list[str] = []
    others = OtherFiles()
    pending = [(folder, 0)]
    entries = 0
    while pending:
        inside, depth = pending.pop()
        for entry in _entries(inside):
            entries += 1
            if entry.name == ignored:
                continue
            if entry.name.startswith("."):
                others.add(entry.path)
            elif _is_folder(entry):
                why_not = "folders too deep" if depth == _MAX_DEPTH else _enter(entry.path, seen)
                if why_not is None:
                    pending.append((entry.path, depth + 1))
                else:
                    others.add(entry.path, why_not)
            elif _is_image(entry.name):
                found.append(entry.path)
            else:
                others.add(entry.path)
        if entries > _MAX_ENTRIES:
            raise DataError(f"{folder} holds more than {_MAX_ENTRIES:,} files; give a smaller folder")
    return found, others


def _enter(folder: str, seen: set[Identity]) -> str | None:
    """Adds `folder` to `seen`; or why it is not entered."""
    if len(os.fsencode(folder)) > _MAX_PATH_BYTES:
        return "folders too deep"
    identity = _identity(folder)
    if identity in seen:
        return "folders reached twice by links"
    if identity[0] in system_devices():
        return "folders of the system"
    seen.add(identity)
    return None


def _identities(folder: Path, folders: dict[str, Path]) -> set[Identity]:
    """Identities of a folder and its class folders, so that a link to one of them is not followed.

    Raises DataError if two classes are the same folder.
    """
    by_identity: dict[Identity, str] = {}
    for name, inside in folders.items():
        other = by_identity.setdefault(_identity(inside), name)
        if other != name:
            raise DataError(
                f"the classes {other!r} and {name!r} in {folder} are the same folder; remove one of the links"
            )
    return {_identity(folder), *by_identity}


def _identity(folder: str | Path) -> Identity:
    try:
        found = os.stat(folder)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}; give the folder that holds your images") from None
    except OSError as error:
        raise _no_access(folder, error) from None
    return found.st_dev, found.st_ino


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}; give the folder that holds your classes") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give a folder with one sub-folder per class") from None
    except OSError as error:
        raise _no_access(folder, error) from None


def _no_access(folder: Path | str, error: OSError) -> DataError:
    return DataError(f"the folder {folder} cannot be read ({error.strerror}); check its rights")


def _loose_files(folder: Path) -> OtherFiles:
    """Files beside the class folders, images among them."""
    others = OtherFiles()
    for entry in _entries(folder):
        if entry.name.startswith(".") or not _is_folder(entry):
            kind = os.path.splitext(entry.name)[1].lower()
            others.add(entry.path, f"{kind} outside the class folders" if _is_image(entry.name) else None)
    return others


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be entered
        return False
