"""Finds images and classes in a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .image_set import NO_LABEL, ImageSet

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
)  # compared in lower case


def scan(folder: Path, root: Path, at_least: int = 2) -> ImageSet:
    """All images under `folder`, one sub-folder a class, sorted by name; paths relative to `root`.

    Raises DeitkitError for a folder without images and for fewer than `at_least` classes.
    """
    classes: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for name, inside in sub_folders(folder).items():
        found = sorted(images_under(str(inside)))
        if not found:
            empty.append(name)
            continue
        labels += [len(classes)] * len(found)
        classes.append(name)
        under = os.path.relpath(inside, root)  # once a class: a million calls take long
        paths += [(under + path[len(str(inside)) :]).replace(os.sep, "/") for path in found]
    if not classes:
        loose = any(_is_image(e.name) for e in _entries(folder) if e.is_file())
        if loose:
            raise DataError(f"{folder} holds images but no class folders; make one sub-folder per class")
        what = (
            f"no images (its folders hold only other files: {empty[0]!r})" if empty else "nothing to train on"
        )
        raise DataError(f"{folder} holds {what}; give a folder with one sub-folder of images per class")
    if empty:
        raise DataError(
            f"the folder {empty[0]!r} in {folder} holds no images; add images of that class or remove it"
        )
    if len(classes) < at_least:
        raise DataError(f"{folder} has only one class, {classes[0]!r}; a classifier needs two or more")
    by_case: dict[str, str] = {}
    for name in classes:
        if name.casefold() in by_case:
            raise DataError(
                f"the classes {by_case[name.casefold()]!r} and {name!r} in {folder} differ only by case; "
                "rename or merge them"
            )
        by_case[name.casefold()] = name
    return ImageSet(root, tuple(paths), np.array(labels, np.int64), tuple(classes))


def scan_as(folder: Path, classes: tuple[str, ...]) -> ImageSet:
    """All images under `folder`, with labels that index `classes`; it may hold a part of them only.

    Raises DeitkitError for a class folder that is not among `classes`.
    """
    images = scan(folder, folder, at_least=1)
    unknown = [name for name in images.classes if name not in classes]
    if unknown:
        raise DataError(
            f"{folder} has the class {unknown[0]!r}, which the run does not know; "
            f"it knows {', '.join(classes[:8])}"
        )
    places = np.array([classes.index(name) for name in images.classes])
    return ImageSet(folder, images.paths, places[images.labels], classes)


def sub_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder`, sorted by name; raises DeitkitError where it cannot be read."""
    return {e.name: folder / e.name for e in sorted(_entries(folder), key=lambda e: e.name) if _is_folder(e)}


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}; give the folder that holds your classes") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give a folder with one sub-folder per class") from None
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read ({error.strerror}); check its rights") from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be entered
        return False


def images_under(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
    """Images at any depth; a link back to one of the folders `above` is not followed again."""
    found: list[str] = []
    entries = _entries(folder)
    stat = os.stat(folder)
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return found
    for entry in entries:
        if _is_folder(entry):
            found += images_under(entry.path, above | {here})
        elif _is_image(entry.name):
            found.append(entry.path)
    return found


def find_unlabeled(folder: Path, held_out: Iterable[ImageSet]) -> tuple[ImageSet, list[str]]:
    """All images at any depth of `folder`, labelled NO_LABEL; and those left out, as held-out images are.

    A file with the very content of a validation or test image would teach what is measured. Raises
    DeitkitError where nothing is left.
    """
    found = [Path(path) for path in sorted(images_under(str(folder)))]
    held = [path for images in held_out for path in _files(images)]
    sizes = {path.stat().st_size for path in held}
    contents = {_content(path) for path in held}
    copies = {p for p in found if p.is_file() and p.stat().st_size in sizes and _content(p) in contents}
    kept = [str(path.resolve()) for path in found if path not in copies]
    if not kept:
        raise DataError(
            f"{folder} holds no images that are not held out already; give a folder with other images"
        )
    labels = np.full(len(kept), NO_LABEL, np.int64)
    return ImageSet(folder, tuple(kept), labels, ()), sorted(map(str, copies))


def _files(images: ImageSet) -> Iterator[Path]:
    return (path for path in map(images.full_path, range(len(images))) if path.is_file())


def _content(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
