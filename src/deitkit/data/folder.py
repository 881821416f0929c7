"""Finds images and classes in a folder, and splits them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DeitkitError

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
)  # compared in lower case


NO_LABEL = -1


@dataclass(frozen=True)
class ImageSet:
    """Labelled image files: paths relative to `root`, labels (n,) that index `classes`, or NO_LABEL."""

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def full_path(self, i: int) -> Path:
        return self.root / self.paths[i]

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        return ImageSet(self.root, tuple(self.paths[i] for i in indices), self.labels[indices], self.classes)

    def joined(self, other: ImageSet) -> ImageSet:
        """The images of both, these ones first and with these classes; the other's paths made absolute."""
        paths = tuple(str(other.full_path(i).absolute()) for i in range(len(other)))
        labels = np.concatenate([self.labels, other.labels])
        return ImageSet(self.root, self.paths + paths, labels, self.classes)

    def keep_fraction(self, fraction: float, seed: int) -> ImageSet:
        """A stratified random share of the images, at least one of each class; 1 keeps all.

        A smaller share of the same seed is a subset of a larger one, so that studies of the number of
        images add to what was there.
        """
        if fraction == 1.0:
            return self
        rng = np.random.RandomState(seed)  # a frozen stream: the same share with every NumPy
        kept = []
        for k in range(len(self.classes)):
            members = rng.permutation(np.flatnonzero(self.labels == k))
            kept.append(members[: max(1, round(len(members) * fraction))])
        return self.subset(np.sort(np.concatenate(kept)))

    def counts(self) -> NDArray[np.int64]:
        """Images of each class, (K,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def fingerprint(self, *, times: bool = True) -> str:
        """A hash of classes, paths, labels, sizes and modification times: the same pixels, in short.

        Without `times`, a copy of the folder has the same one.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for path, label in zip(self.paths, self.labels, strict=True):
            size, changed = _size_and_time(self.root / path)
            facts = f"{path}\0{label}\0{size}\0{changed if times else ''}\n"
            digest.update(facts.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Splits:
    """The parts of a data set, and in `how` a sentence on where they come from."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    how: str
    unlabeled: ImageSet | None = None

    def write(self, path: Path) -> None:
        """Lists every part's files as JSON."""
        parts = {"train": self.train, "val": self.val, "test": self.test, "unlabeled": self.unlabeled}
        listed = {name: list(part.paths) for name, part in parts.items() if part is not None}
        text = json.dumps({"how": self.how, **listed}, indent=1, ensure_ascii=False)
        # A name that is no UTF-8 holds surrogates, whose backslash form is JSON's own.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


def load_splits(data: Path, *, split: str, val_fraction: float, seed: int) -> Splits:
    """The splits of a folder with train/ and val/ (test/ optional), or with one folder a class.

    `split` decides how validation images are held out where there is no val/: "stratified" draws
    them from each class; "blocks" keeps neighbours in name order together, for series of near-alike
    shots. Raises DeitkitError for every folder that cannot be trained on.
    """
    parts = {entry.name.lower(): Path(entry.path) for entry in _entries(data) if _is_folder(entry)}
    val = next((parts[name] for name in ("val", "valid", "validation") if name in parts), None)
    if "train" in parts and val is not None:
        train_set, val_set = scan(parts["train"], data), scan(val, data)
        test_set = scan(parts["test"], data) if "test" in parts else None
        for other in filter(None, (val_set, test_set)):
            differing = sorted(set(train_set.classes) ^ set(other.classes))
            if differing:
                raise DeitkitError(
                    f"the classes of the parts of {data} differ "
                    f"in {', '.join(map(repr, differing[:5]))}; give every part the same class folders"
                )
        return Splits(train_set, val_set, test_set, f"train/ and {val.name}/ as given")
    if (
        "train" in parts
        and set(parts) <= {"train", "test"}
        and any(map(_is_folder, _entries(parts["train"])))
    ):
        raise DeitkitError(
            f"{data} has {parts['train'].name}/ but no val/; add val/ with the same class folders, "
            f"or give {parts['train']} to hold a part of it out"
        )
    if not 0 < val_fraction < 1:
        raise DeitkitError(
            f"data.val_fraction is {val_fraction:g}, and {data} has no val/; "
            "hold out more than 0 and less than 1"
        )
    images = scan(data, data)
    few = [images.classes[k] for k in np.flatnonzero(images.counts() < 2)]
    if few:
        raise DeitkitError(
            f"class {few[0]!r} in {data} has one image, and one each is needed to train and to validate; "
            "add images or remove the class"
        )
    held = (_stratified if split == "stratified" else _blocks)(images, val_fraction, seed)
    share = f"{100 * val_fraction:.0f} % held out, seed {seed}"
    how = f"stratified, {share}" if split == "stratified" else f"blocks of consecutive names, {share}"
    return Splits(images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held)), None, how)


def scan(folder: Path, root: Path, at_least: int = 2) -> ImageSet:
    """All images under `folder`, one sub-folder a class, sorted by name; paths relative to `root`.

    Raises DeitkitError for a folder without images and for fewer than `at_least` classes.
    """
    classes: list[str] = []
    paths: list[str] = []
    labels: list[int] = []
    folders = sorted((e for e in _entries(folder) if _is_folder(e)), key=lambda e: e.name)
    empty = []
    for entry in folders:
        found = sorted(images_under(entry.path))
        if not found:
            empty.append(entry.name)
            continue
        labels += [len(classes)] * len(found)
        classes.append(entry.name)
        under = os.path.relpath(entry.path, root)  # once a class: a million calls take long
        paths += [(under + path[len(entry.path) :]).replace(os.sep, "/") for path in found]
    if not classes:
        loose = any(_is_image(e.name) for e in _entries(folder) if e.is_file())
        if loose:
            raise DeitkitError(f"{folder} holds images but no class folders; make one sub-folder per class")
        what = (
            f"no images (its folders hold only other files: {empty[0]!r})" if empty else "nothing to train on"
        )
        raise DeitkitError(f"{folder} holds {what}; give a folder with one sub-folder of images per class")
    if empty:
        raise DeitkitError(
            f"the folder {empty[0]!r} in {folder} holds no images; add images of that class or remove it"
        )
    if len(classes) < at_least:
        raise DeitkitError(f"{folder} has only one class, {classes[0]!r}; a classifier needs two or more")
    by_case: dict[str, str] = {}
    for name in classes:
        if name.casefold() in by_case:
            raise DeitkitError(
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
        raise DeitkitError(
            f"{folder} has the class {unknown[0]!r}, which the run does not know; "
            f"it knows {', '.join(classes[:8])}"
        )
    places = np.array([classes.index(name) for name in images.classes])
    return ImageSet(folder, images.paths, places[images.labels], classes)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except FileNotFoundError:
        raise DeitkitError(f"there is no folder {folder}; give the folder that holds your classes") from None
    except NotADirectoryError:
        raise DeitkitError(f"{folder} is a file; give a folder with one sub-folder per class") from None
    except OSError as error:
        raise DeitkitError(
            f"the folder {folder} cannot be read ({error.strerror}); check its rights"
        ) from None


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that cannot be entered
        return False


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere: decoding will report it
        return -1, 0
    return stat.st_size, stat.st_mtime_ns


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


def _held_count(n: int, val_fraction: float) -> int:
    return min(n - 1, max(1, round(n * val_fraction)))


def _stratified(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    held = np.zeros(len(images), bool)
    rng = np.random.RandomState(seed)  # a frozen stream: the same split with every NumPy
    for k in range(len(images.classes)):
        members = np.flatnonzero(images.labels == k)
        held[rng.permutation(members)[: _held_count(len(members), val_fraction)]] = True
    return held


def _blocks(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """One run of neighbours in each class, at the same place in all; seed 0 holds out the last."""
    held = np.zeros(len(images), bool)
    places = max(1, round(1 / val_fraction))
    place = places - 1 - seed % places
    for k in range(len(images.classes)):
        members = sorted(np.flatnonzero(images.labels == k), key=lambda i: _natural(images.paths[i]))
        count = _held_count(len(members), val_fraction)
        first = min(round(place * len(members) / places), len(members) - count)
        if place == places - 1:
            first = len(members) - count
        held[members[first : first + count]] = True
    return held


def _natural(path: str) -> list[tuple[bool, int | str]]:
    """Sorts shot-9 before shot-10."""
    parts = re.split(r"(\d+)", path)  # every second part is digits
    return [(i % 2 == 1, int(part) if i % 2 else part) for i, part in enumerate(parts)]
