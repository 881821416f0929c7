"""Training, validation and test images of a folder or table: as given, or held out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import log
from ..config import DataConfig
from ..errors import DataError
from ..io import write_json
from ..settings import AUTO
from ..tasks import Task
from .corrections import Corrections, read_corrections
from .folder import OtherFiles, scan, scan_quietly, search, sub_folders
from .groups import NONE, Spared, hold_out_groups, is_column, keep_on_one_side, known_groups, spared
from .image_set import ImageSet, concatenated
from .near_duplicates import Duplicates, duplicates_of
from .source import shown
from .table import find_table, is_source, is_table, read_table

_FOLDER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_TRIES = 100  # random splits of overlapping labels, until each label is on both sides


@dataclass(frozen=True)
class Splits:
    """The splits of a data set.

    how: a phrase on where they come from. held_out: whether deitkit chose the validation images. duplicates:
    among `everything`, if they were looked for. spared: what `data.group=auto` changed.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    how: str
    unlabeled: ImageSet | None = None
    held_out: bool = False
    duplicates: Duplicates | None = None
    spared: Spared | None = None

    @property
    def everything(self) -> ImageSet:
        """All labelled images: of training, then of validation, then of testing."""
        parts = [images for images in (self.train, self.val, self.test) if images is not None]
        return concatenated(parts)

    def write(self, path: Path) -> None:
        """Lists the files of every split as JSON."""
        splits = {"train": self.train, "val": self.val, "test": self.test, "unlabeled": self.unlabeled}
        listed = {name: list(images.paths) for name, images in splits.items() if images is not None}
        write_json(path, {"how": self.how, **listed})


def load_splits(data: Path, config: DataConfig, *, task: Task | None = None) -> Splits:
    """The splits of a table, of a folder with train/, val/ and test/, or of a folder per class.

    If the data has no validation images, `config` says how they are held out: "stratified" draws them from
    each class; "blocks" keeps neighbours in name order together, for series of near-identical shots;
    `config.group` keeps groups on one side. Labels are corrected first (`config.relabel`, `config.exclude`).

    task: What the labels of a table are read as; None to decide by the table.

    Raises DataError if the data cannot be trained on.
    """
    corrections = read_corrections(data, config.relabel, config.exclude)
    table_file = find_table(data)
    if table_file is not None:
        return _load_table(data, table_file, config, corrections, task)
    if is_column(config.group):
        raise DataError(
            f"data.group is {config.group!r}, and {data} has no table with such a column; give none, auto, "
            "folder, or a regular expression with one group in parentheses"
        )
    folders = _split_folders(data)
    if not _has_splits(data, folders):
        splits = _held_out(corrections.apply(scan(data, data)), data, config)
    else:
        splits = _load_split_folders(data, folders, config, corrections)
    corrections.refuse_unused(data)
    return splits


def _load_table(
    data: Path, table_file: Path, config: DataConfig, corrections: Corrections, task: Task | None
) -> Splits:
    column = config.group if is_column(config.group) else None
    table = read_table(data, task=task, group=column)
    if data.is_dir() and not is_source(data):
        _unlisted(data, table_file, table.images).report(data)
    cells = dict(zip(table.images.paths, table.groups or (), strict=False))
    if table.splits is not None:
        split = {name: table.split(name) for name in ("train", "val", "test")}
        given = {name: images and corrections.apply(images) for name, images in split.items()}
        where = (
            f"the split of {shown(table_file)}" if is_source(data) else f"the column 'split' of {table_file}"
        )
        train, val, test = given["train"], given["val"], given["test"]
        if train is not None and val is None and test is not None:
            _refuse_other_classes(train, test, where)
            splits = _held_out(train, table_file, config, cells)
            splits = replace(splits, test=test, how=f"training {splits.how}; testing as given")
        else:
            splits = _given(given, where, config, cells)
    else:
        splits = _held_out(corrections.apply(table.images), table_file, config, cells)
    if splits.train.task == "multiclass" and len(splits.train.classes) < 2:
        [name] = splits.train.classes
        raise DataError(f"{table_file} has only one class, {name!r}; a classifier needs two or more")
    corrections.refuse_unused(data)
    return splits


def _load_split_folders(
    data: Path, folders: dict[str, Path], config: DataConfig, corrections: Corrections
) -> Splits:
    train, val, test = (folders.get(name) for name in ("train", "val", "test"))
    assert train is not None
    others = OtherFiles()

    def scanned(folder: Path) -> ImageSet:
        nonlocal others
        images, passed_over = scan_quietly(folder, data)
        others += passed_over
        return corrections.apply(images)

    tested = scanned(test) if test is not None and sub_folders(test) else None
    # As contests give them: images to be named, in one folder.
    left_out = ""
    if test is not None and tested is None:
        left_out = f"; {test.name}/ has no class folders and is left out"
    if val is not None:
        given = {"train": scanned(train), "val": scanned(val), "test": tested}
        splits = _given(given, f"{train.name}/ and {val.name}/", config)
    else:
        splits = _held_out(scanned(train), train, config)
        if test is not None and tested is not None:
            _refuse_other_classes(splits.train, tested, f"{train.name}/ and {test.name}/")
            how = f"{train.name}/ {splits.how}; {test.name}/ as given"
            splits = replace(splits, test=tested, how=how, duplicates=None)  # not among the tested ones
    others.report(data)
    return replace(splits, how=splits.how + left_out)


def _unlisted(folder: Path, table_file: Path, images: ImageSet) -> OtherFiles:
    """What `folder` holds beside a table and the images in it."""
    found, others = search(str(folder), ignored=table_file.name)
    listed = {os.path.normpath(str(images.file(i))) for i in range(len(images))}
    for path in found:
        if os.path.normpath(path) not in listed:
            others.add(path, f"images not in {table_file.name}")
    return others


def given_images(
    data: Path, group: str | None = None
) -> tuple[ImageSet, Sequence[str] | None, Sequence[str] | None]:
    """All labelled images of `data`, the split of each if the data says it, and the cells of a column.

    group: the column. Raises DataError.
    """
    if is_table(data):
        table = read_table(data, group=group)
        return table.images, table.splits, table.groups
    if group is not None:
        raise DataError(f"{data} has no table with a column {group!r}; leave the column out")
    folders = _split_folders(data)
    if not _has_splits(data, folders):
        return scan(data, data), None, None
    parts = {
        name: scan(folders[name], data) for name in ("train", "val", "test") if _is_full(folders.get(name))
    }
    for images in parts.values():
        _refuse_other_classes(parts["train"], images, f"the folders of {data}")
    return concatenated(list(parts.values())), [n for n, images in parts.items() for _ in images.paths], None


def _is_full(folder: Path | None) -> bool:
    return folder is not None and bool(sub_folders(folder))


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


def _given(
    splits: dict[str, ImageSet | None], where: str, config: DataConfig, cells: Mapping[str, str] | None = None
) -> Splits:
    """The splits that the data has; each must have the same classes. Warns if they divide a group."""
    train, val, test = splits["train"], splits["val"], splits["test"]
    if train is None or val is None:
        raise DataError(
            f"{where} gives no images to {'train on' if train is None else 'validate on'}; "
            "mark some, or leave the splitting to deitkit"
        )
    for images in (val, test):
        if images is not None:
            _refuse_other_classes(train, images, where)
    found = Splits(train, val, test, f"{where} as given")
    if config.group not in (NONE, AUTO):
        everything = found.everything
        groups = known_groups(everything, config.group, cells)
        divided = np.isin(groups[len(train) :], groups[: len(train)])
        log.warning(
            f"data.group changes nothing, since {where} gives the split; {divided.sum()} of {len(divided)} "
            f"images outside training share a group ({config.group}) with training images"
        )
    return found


def _refuse_other_classes(train: ImageSet, images: ImageSet, where: str) -> None:
    differing = sorted(set(_shown(train)) ^ set(_shown(images)))
    if differing:
        raise DataError(
            f"the classes of the splits differ in {', '.join(map(repr, differing[:5]))} "
            f"({where}, in {train.root}); give every split images of the same classes"
        )


def _shown(images: ImageSet) -> list[str]:
    return [images.classes[k] for k in np.flatnonzero(images.counts())]


def _held_out(
    images: ImageSet, where: Path, config: DataConfig, cells: Mapping[str, str] | None = None
) -> Splits:
    """Holds out a share of the images. cells: of the column `config.group`, by path."""
    val_fraction, seed = config.val_fraction, config.split_seed
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
    share = f"{100 * val_fraction:.0f} % held out, seed {seed}"
    if config.group not in (NONE, AUTO):
        held = hold_out_groups(images, known_groups(images, config.group, cells), val_fraction, seed)
        return _divided(images, held, f"groups by {config.group}, {share}")
    ways: dict[tuple[str, str], Callable[[ImageSet, float, int], NDArray[np.bool_]]] = {
        ("multiclass", "stratified"): _stratified,
        ("multiclass", "blocks"): _blocks,
        ("multilabel", "stratified"): _iteratively_stratified,
        ("multilabel", "blocks"): _one_block,
    }
    held = ways[images.task, config.split](images, val_fraction, seed)
    how = f"stratified, {share}" if config.split == "stratified" else f"blocks of consecutive names, {share}"
    if config.group == AUTO:
        duplicates = duplicates_of(images, config)
        groups, drawn = duplicates.group_of(len(images)), held
        held = keep_on_one_side(drawn, groups)
        if len(_on_one_side(images, held)):
            raise _unsplittable(images, held, "give --group-by none, or add images of it")
        found = spared(images, drawn, held, groups)
        how += f"; {found.moved} moved to the side of their near-duplicates" if found.moved else ""
        order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
        return replace(_divided(images, held, how), duplicates=duplicates.reordered(order), spared=found)
    return _divided(images, held, how)


def _divided(images: ImageSet, held: NDArray[np.bool_], how: str) -> Splits:
    train, val = images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))
    return Splits(train, val, None, how, held_out=True)


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
    validated = images.subset(np.flatnonzero(held)).counts()
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
