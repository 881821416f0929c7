"""Training, validation and test images of a folder: as they are given, or held out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DeitkitError
from ..io import write_json
from .folder import scan, sub_folders
from .image_set import ImageSet
from .table import NAME, is_table, read_table

_PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_TRIES = 100  # random splits of overlapping labels, until each label is on both sides


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
        write_json(path, {"how": self.how, **listed})


def load_splits(data: Path, *, split: str, val_fraction: float, seed: int) -> Splits:
    """The splits of a folder: with labels.csv, with train/, val/ and test/, or with a folder a class.

    `split` decides how validation images are held out where the data does not say, also of train/ without
    val/: "stratified" draws them from each class; "blocks" keeps neighbours in name order together, for
    series of near-alike shots. Raises DeitkitError for every folder that cannot be trained on.
    """
    if is_table(data):
        table = read_table(data)
        if table.parts is not None:
            given = {name: table.part(name) for name in ("train", "val", "test")}
            return _given(given, f"the column 'split' of {data / NAME}")
        return _held_out(table.images, data / NAME, split, val_fraction, seed)
    parts = _part_folders(data)
    if not _has_parts(data, parts):
        return _held_out(scan(data, data), data, split, val_fraction, seed)
    train, val, test = (parts.get(part) for part in ("train", "val", "test"))
    assert train is not None
    tested = scan(test, data) if test is not None and sub_folders(test) else None
    # As contests give them: images to be named, in one folder.
    left_out = ""
    if test is not None and tested is None:
        left_out = f"; {test.name}/ has no folders of classes and is left out"
    if val is not None:
        given = {"train": scan(train, data), "val": scan(val, data), "test": tested}
        splits = _given(given, f"{train.name}/ and {val.name}/")
        return replace(splits, how=splits.how + left_out)
    held = _held_out(scan(train, data), train, split, val_fraction, seed)
    if test is None or tested is None:
        return replace(held, how=held.how + left_out)
    _refuse_other_classes(held.train, tested, f"{train.name}/ and {test.name}/")
    return replace(held, test=tested, how=f"{train.name}/ {held.how}; {test.name}/ as given")


def eval_folder(data: Path) -> Path:
    """What to measure on: val/ where `data` has one, else test/, else train/, else `data` itself."""
    parts = _part_folders(data)
    for part in ("val", "test"):
        if part in parts and sub_folders(parts[part]):  # a class may have a part's name
            return parts[part]
    return parts["train"] if _has_parts(data, parts) else data


def refuse_out_among_classes(data: Path, out: Path) -> None:
    """Raises DeitkitError where `out` would be taken for a class of `data`, or for images of one."""
    if not out.resolve().is_relative_to(data.resolve()) or not data.is_dir() or is_table(data):
        return
    parts = _part_folders(data)
    in_a_part = any(out.resolve().is_relative_to(part.resolve()) for part in parts.values())
    if in_a_part or not _has_parts(data, parts, beside_others=True):
        raise DataError(
            f"--out {out} lies inside {data}, where it would be taken for a class; "
            "choose a folder outside of it"
        )


def _part_folders(data: Path) -> dict[str, Path]:
    """The folders in `data` that have one of a part's names, in any case; of several, one with folders."""
    folders = {name.lower(): path for name, path in sub_folders(data).items()}
    found = {
        part: [folders[name] for name in names if name in folders] for part, names in _PART_NAMES.items()
    }
    return {
        part: max(candidates, key=lambda path: bool(sub_folders(path)))
        for part, candidates in found.items()
        if candidates
    }


def _has_parts(data: Path, parts: dict[str, Path], beside_others: bool = False) -> bool:
    """Whether `parts` are parts of a data set: a class may have a part's name.

    beside_others: whether they still are once `data` holds another folder.
    """
    train, test = parts.get("train"), parts.get("test")
    if train is None or "val" in parts:
        return train is not None
    if not sub_folders(train):
        return False
    if test is not None and sub_folders(test):
        return True
    return not beside_others and set(sub_folders(data).values()) <= {train, test}


def _given(parts: dict[str, ImageSet | None], where: str) -> Splits:
    """The parts that the data has; each must hold the same classes."""
    train, val, test = parts["train"], parts["val"], parts["test"]
    if train is None or val is None:
        raise DataError(
            f"{where} gives no images to {'train on' if train is None else 'validate on'}; "
            "mark some, or leave the splitting to deitkit"
        )
    for part in (val, test):
        if part is not None:
            _refuse_other_classes(train, part, where)
    return Splits(train, val, test, f"{where} as given")


def _refuse_other_classes(train: ImageSet, part: ImageSet, where: str) -> None:
    differing = sorted(set(_shown(train)) ^ set(_shown(part)))
    if differing:
        raise DataError(
            f"the classes of the parts differ in {', '.join(map(repr, differing[:5]))} "
            f"({where}, in {train.root}); give every part images of the same classes"
        )


def _shown(images: ImageSet) -> list[str]:
    return [images.classes[k] for k in np.flatnonzero(images.counts())]


def _held_out(images: ImageSet, where: Path, split: str, val_fraction: float, seed: int) -> Splits:
    """A share of the images, by the way of splitting that is asked for."""
    if not 0 < val_fraction < 1:
        raise DataError(
            f"data.val_fraction is {val_fraction:g}, and {where} has no validation images; "
            "hold out more than 0 and less than 1"
        )
    few = [images.classes[k] for k in np.flatnonzero(images.counts() < 2)]
    if few:
        raise DataError(
            f"class {few[0]!r} in {where} has one image, and one each is needed to train and to validate; "
            "add images or remove the class"
        )
    ways: dict[tuple[str, str], Callable[[ImageSet, float, int], NDArray[np.bool_]]] = {
        ("multiclass", "stratified"): _stratified,
        ("multiclass", "blocks"): _blocks,
        ("multilabel", "stratified"): _iteratively_stratified,
        ("multilabel", "blocks"): _one_block,
    }
    held = ways[images.task, split](images, val_fraction, seed)
    share = f"{100 * val_fraction:.0f} % held out, seed {seed}"
    how = f"stratified, {share}" if split == "stratified" else f"blocks of consecutive names, {share}"
    return Splits(images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held)), None, how)


def _held_count(n: int, val_fraction: float) -> int:
    return min(n - 1, max(1, round(n * val_fraction)))


def _stratified(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    held = np.zeros(len(images), bool)
    rng = np.random.RandomState(seed)  # a frozen stream: the same split with every NumPy
    for k in range(len(images.classes)):
        members = images.members(k)
        held[rng.permutation(members)[: _held_count(len(members), val_fraction)]] = True
    return held


def _iteratively_stratified(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Iterative stratification of overlapping labels, each on both sides.

    Sechidis et al., "On the stratification of multi-label data", ECML 2011: the label with the fewest
    images left is dealt first, since the frequent ones can be balanced later.
    """
    rng = np.random.RandomState(seed)  # a frozen stream: the same split with every NumPy
    for _ in range(_TRIES):
        held, dealt = np.zeros(len(images), bool), np.zeros(len(images), bool)
        todo = set(range(len(images.classes)))
        while todo:
            k = min(todo, key=lambda k: (int((images.labels[:, k] & ~dealt).sum()), k))
            todo.remove(k)
            wanted = _held_count(len(images.members(k)), val_fraction) - int(held[images.members(k)].sum())
            members = rng.permutation(np.flatnonzero(images.labels[:, k] & ~dealt))
            held[members[: max(0, wanted)]] = True
            dealt[members] = True
        bare = rng.permutation(np.flatnonzero(~dealt))  # without any label
        held[bare[: round(len(bare) * val_fraction)]] = True
        if not len(_on_one_side(images, held)):
            return held
    raise _unsplittable(images, held, "add images of it, or add a column 'split' with train and val")


def _one_block(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """One run of neighbours among all images, whatever their labels."""
    held = np.zeros(len(images), bool)
    held[_run_of_neighbours(images, np.arange(len(images)), val_fraction, seed)] = True
    if len(_on_one_side(images, held)):
        raise _unsplittable(images, held, "give --set data.split=stratified, or another data.split_seed")
    return held


def _on_one_side(images: ImageSet, held: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The classes that are missing in training or in validation."""
    validated = images.labels[held].sum(0)
    return np.flatnonzero((validated == 0) | (validated == images.counts()))


def _unsplittable(images: ImageSet, held: NDArray[np.bool_], remedy: str) -> DeitkitError:
    name = images.classes[_on_one_side(images, held)[0]]
    return DeitkitError(
        f"the label {name!r} in {images.root} came to lie in training or in validation only; {remedy}"
    )


def _blocks(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """One run of neighbours in each class, at the same place in all; seed 0 holds out the last."""
    held = np.zeros(len(images), bool)
    for k in range(len(images.classes)):
        held[_run_of_neighbours(images, images.members(k), val_fraction, seed)] = True
    return held


def _run_of_neighbours(
    images: ImageSet, members: Sequence[int] | NDArray[np.int64], val_fraction: float, seed: int
) -> list[int]:
    """A share of `members` that follow each other by name; seed 0 takes the last."""
    places = max(1, round(1 / val_fraction))
    place = places - 1 - seed % places
    ordered = sorted(members, key=lambda i: _natural(images.paths[i]))
    count = _held_count(len(ordered), val_fraction)
    first = min(round(place * len(ordered) / places), len(ordered) - count)
    if place == places - 1:
        first = len(ordered) - count
    return ordered[first : first + count]


def _natural(path: str) -> list[tuple[bool, int | str]]:
    """Sorts shot-9 before shot-10."""
    parts = re.split(r"(\d+)", path)  # every second part is digits
    return [(i % 2 == 1, int(part) if i % 2 else part) for i, part in enumerate(parts)]
