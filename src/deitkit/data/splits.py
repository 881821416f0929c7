"""Training, validation and test images of a folder or table: as given, or held out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..io import write_json
from ..tasks import Task
from .folder import OtherFiles, scan, scan_quietly, search, sub_folders
from .image_set import ImageSet
from .table import find_table, is_table, read_table

_FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_TRIES = 100  # random splits of overlapping labels, until each label is on both sides


@dataclass(frozen=True)
class Splits:
    """The splits of a data set. `how` is a phrase on where they come from."""

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    how: str
    unlabeled: ImageSet | None = None

    def write(self, path: Path) -> None:
        """Lists the files of every split as JSON."""
        splits = {"train": self.train, "val": self.val, "test": self.test, "unlabeled": self.unlabeled}
        listed = {name: list(images.paths) for name, images in splits.items() if images is not None}
        write_json(path, {"how": self.how, **listed})


def load_splits(
    data: Path, *, split: str, val_fraction: float, seed: int, task: Task | None = None
) -> Splits:
    """The splits of a table, of a folder with train/, val/ and test/, or of a folder per class.

    Args:
        split: How validation images are held out if the data has none: "stratified" draws them from each
        class;
            "blocks" keeps neighbours in name order together, for series of near-identical shots.
        task: What the labels of a table are read as; None to decide by the table.

    Raises DataError if the data cannot be trained on.
    """
    table_file = find_table(data)
    if table_file is not None:
        table = read_table(data, task=task)
        if data.is_dir():
            _unlisted(data, table_file, table.images).report(data)
        if table.splits is not None:
            given = {name: table.split(name) for name in ("train", "val", "test")}
            splits = _given(given, f"the column 'split' of {table_file}")
        else:
            splits = _held_out(table.images, table_file, split, val_fraction, seed)
        if splits.train.task == "multiclass" and len(splits.train.classes) < 2:
            [name] = splits.train.classes
            raise DataError(f"{table_file} has only one class, {name!r}; a classifier needs two or more")
        return splits
    folders = _split_folders(data)
    if not _has_splits(data, folders):
        return _held_out(scan(data, data), data, split, val_fraction, seed)
    return _load_split_folders(data, folders, split, val_fraction, seed)


def _load_split_folders(
    data: Path, folders: dict[str, Path], split: str, val_fraction: float, seed: int
) -> Splits:
    train, val, test = (folders.get(name) for name in ("train", "val", "test"))
    assert train is not None
    others = OtherFiles()

    def scanned(folder: Path) -> ImageSet:
        nonlocal others
        images, passed_over = scan_quietly(folder, data)
        others += passed_over
        return images

    tested = scanned(test) if test is not None and sub_folders(test) else None
    # As contests give them: images to be named, in one folder.
    left_out = ""
    if test is not None and tested is None:
        left_out = f"; {test.name}/ has no class folders and is left out"
    if val is not None:
        given = {"train": scanned(train), "val": scanned(val), "test": tested}
        splits = _given(given, f"{train.name}/ and {val.name}/")
    else:
        splits = _held_out(scanned(train), train, split, val_fraction, seed)
        if test is not None and tested is not None:
            _refuse_other_classes(splits.train, tested, f"{train.name}/ and {test.name}/")
            how = f"{train.name}/ {splits.how}; {test.name}/ as given"
            splits = replace(splits, test=tested, how=how)
    others.report(data)
    return replace(splits, how=splits.how + left_out)


def _unlisted(folder: Path, table_file: Path, images: ImageSet) -> OtherFiles:
    """What `folder` holds beside a table and the images in it."""
    found, others = search(str(folder), ignored=table_file.name)
    listed = {os.path.normpath(images.full_path(i)) for i in range(len(images))}
    for path in found:
        if os.path.normpath(path) not in listed:
            others.add(path, f"images not in {table_file.name}")
    return others


def eval_folder(data: Path) -> Path:
    """The folder to evaluate on: val/ of `data`, else test/, else train/, else `data` itself."""
    folders = _split_folders(data)
    for name in ("val", "test"):
        if name in folders and sub_folders(folders[name]):  # a class may have a split's name
            return folders[name]
    return folders["train"] if _has_splits(data, folders) else data


def eval_images(data: Path) -> ImageSet:
    """The images to evaluate on, with the classes of the data: a table's, or those of `eval_folder`."""
    if is_table(data):
        return read_table(data).images
    return scan(eval_folder(data), data, at_least=1)


def refuse_out_among_classes(data: Path, out: Path) -> None:
    """Raises DataError if `out` would be taken for a class of `data`, or its files for images of one."""
    if not out.resolve().is_relative_to(data.resolve()) or not data.is_dir() or is_table(data):
        return
    folders = _split_folders(data)
    in_a_split = any(out.resolve().is_relative_to(folder.resolve()) for folder in folders.values())
    if in_a_split or not _has_splits(data, folders, beside_others=True):
        raise DataError(
            f"--out {out} lies inside {data}, where it would be taken for a class; "
            "choose a folder outside of it"
        )


def _split_folders(data: Path) -> dict[str, Path]:
    """The folders in `data` named after a split, in any case; of several for one, one with sub-folders."""
    folders = {name.lower(): path for name, path in sub_folders(data).items()}
    found = {
        split: [folders[name] for name in names if name in folders] for split, names in _FOLDER_NAMES.items()
    }
    return {
        split: max(candidates, key=lambda path: bool(sub_folders(path)))
        for split, candidates in found.items()
        if candidates
    }


def _has_splits(data: Path, folders: dict[str, Path], beside_others: bool = False) -> bool:
    """Whether `folders` are splits: a class may have a split's name.

    beside_others: whether they still are once `data` holds another folder.
    """
    train, test = folders.get("train"), folders.get("test")
    if train is None or "val" in folders:
        return train is not None
    if not sub_folders(train):
        return False
    if test is not None and sub_folders(test):
        return True
    return not beside_others and set(sub_folders(data).values()) <= {train, test}


def _given(splits: dict[str, ImageSet | None], where: str) -> Splits:
    """The splits that the data has; each must have the same classes."""
    train, val, test = splits["train"], splits["val"], splits["test"]
    if train is None or val is None:
        raise DataError(
            f"{where} gives no images to {'train on' if train is None else 'validate on'}; "
            "mark some, or leave the splitting to deitkit"
        )
    for images in (val, test):
        if images is not None:
            _refuse_other_classes(train, images, where)
    return Splits(train, val, test, f"{where} as given")


def _refuse_other_classes(train: ImageSet, images: ImageSet, where: str) -> None:
    differing = sorted(set(_shown(train)) ^ set(_shown(images)))
    if differing:
        raise DataError(
            f"the classes of the splits differ in {', '.join(map(repr, differing[:5]))} "
            f"({where}, in {train.root}); give every split images of the same classes"
        )


def _shown(images: ImageSet) -> list[str]:
    return [images.classes[k] for k in np.flatnonzero(images.counts())]


def _held_out(images: ImageSet, where: Path, split: str, val_fraction: float, seed: int) -> Splits:
    """Holds out a share of the images."""
    if not 0 < val_fraction < 1:
        raise DataError(
            f"data.val_fraction is {val_fraction:g}, and {where} has no validation images; "
            "hold out more than 0 and less than 1"
        )
    few = [images.classes[k] for k in np.flatnonzero(images.counts() < 2)]
    if few:
        raise DataError(
            f"class {few[0]!r} in {where} has one image, but training and validation need one each; "
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
    rng = np.random.RandomState(seed)  # its stream never changes: every NumPy gives the same split
    for k in range(len(images.classes)):
        members = images.members(k)
        held[rng.permutation(members)[: _held_count(len(members), val_fraction)]] = True
    return held


def _iteratively_stratified(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Iterative stratification of overlapping labels, each on both sides.

    Sechidis et al., "On the stratification of multi-label data", ECML 2011: the label with the fewest images
    left comes first, since frequent labels can be balanced later.
    """
    rng = np.random.RandomState(seed)  # its stream never changes: every NumPy gives the same split
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
    """Consecutive images in name order, whatever their labels."""
    held = np.zeros(len(images), bool)
    held[_consecutive(images, np.arange(len(images)), val_fraction, seed)] = True
    if len(_on_one_side(images, held)):
        raise _unsplittable(images, held, "give --set data.split=stratified, or another data.split_seed")
    return held


def _on_one_side(images: ImageSet, held: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The classes that are missing in training or in validation."""
    validated = images.labels[held].sum(0)
    return np.flatnonzero((validated == 0) | (validated == images.counts()))


def _unsplittable(images: ImageSet, held: NDArray[np.bool_], remedy: str) -> DataError:
    name = images.classes[_on_one_side(images, held)[0]]
    return DataError(f"the label {name!r} in {images.root} is in training or in validation only; {remedy}")


def _blocks(images: ImageSet, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Consecutive images of each class, at the same place in all; seed 0 holds out the last."""
    held = np.zeros(len(images), bool)
    for k in range(len(images.classes)):
        held[_consecutive(images, images.members(k), val_fraction, seed)] = True
    return held


def _consecutive(
    images: ImageSet, members: Sequence[int] | NDArray[np.int64], val_fraction: float, seed: int
) -> list[int]:
    """A share of `members` that are consecutive in name order; seed 0 takes the last."""
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
