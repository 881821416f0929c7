"""`deitkit check`: what a folder of images hides, before a model is trained on it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import log
from ..config import Config, DataConfig, TeacherConfig, dotted
from ..data.cache import Decoder, decode_threads, open_pixels, some_unreadable
from ..data.dataset import Split, refuse_multilabel
from ..data.image_file import UnreadableImage, opened
from ..data.image_set import ImageSet
from ..data.near_duplicates import find_duplicates, thumbnails_of
from ..data.splits import load_splits
from ..data.survey import FEW, Survey, survey
from ..errors import DataError
from ..inference.device import resolve_device
from ..io import create_folder, write_json, write_text
from ..run_schema import DuplicateCounts
from ..teachers.fit import open_backbone
from ..teachers.spec import check_spec
from .evaluate import views_of
from .label_check import Outlier, WrongLabel, find_outliers, find_wrong_labels, require_cleanlab

_BATCH = 64


@dataclass(frozen=True, repr=False)
class DataCheck:
    """What was found. Indices are those of `survey.images`.

    how: how the images are split. sizes: (width, height) of each image whose header can be read. modes:
    images per mode of Pillow, such as RGB. unreadable: (path, reason). wrong_labels, outliers: None if
    they were not looked for.
    """

    data: Path
    how: str
    survey: Survey
    sizes: tuple[tuple[int, int], ...]
    modes: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    wrong_labels: tuple[WrongLabel, ...] | None = None
    outliers: tuple[Outlier, ...] | None = None

    def __repr__(self) -> str:
        images = self.survey.images
        found = (*self.problems, *self.remarks) or ("No problem found.",)
        return "\n".join([f"DataCheck: {len(images)} images of {len(images.classes)} classes", *found])

    @cached_property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Images of each class in each split."""
        images, split = self.survey.images, self.survey.split
        names = dict.fromkeys(split.tolist())
        of = {name: images.subset(np.flatnonzero(split == name)).counts() for name in names}
        return {c: {name: int(of[name][k]) for name in names} for k, c in enumerate(images.classes)}

    @property
    def few(self) -> tuple[str, ...]:
        """The classes with too few images for a score that says much."""
        return tuple(name for name, of in self.class_counts.items() if sum(of.values()) < FEW)

    @property
    def problems(self) -> list[str]:
        """A sentence on each thing that makes a measurement on these images say less than it seems to."""
        found, counts = [], self.survey.counts()
        if len(self.survey.leaking):
            leaking = counts.leaking_val + counts.leaking_test
            look = "looks" if leaking == 1 else "look"
            found.append(f"{_count(leaking, 'image')} outside training {look} the same as a training image.")
        if self.unreadable:
            files = _count(len(self.unreadable), "file")
            found.append(f"{files} cannot be read: {some_unreadable(self.unreadable)}.")
        if self.few:
            found.append(f"Fewer than {FEW} images: {', '.join(self.few)}.")
        return found

    @property
    def remarks(self) -> list[str]:
        """A sentence on each other thing that is worth a look."""
        found, counts = [], self.survey.counts()
        if counts.groups:
            found.append(
                f"{counts.images} images in {_count(counts.groups, 'group')} look the same, "
                f"{counts.exact} of them byte by byte; groups with several labels: {counts.conflicting}."
            )
        if self.wrong_labels:
            found.append(f"Labels that are likely wrong: {len(self.wrong_labels)}.")
        if self.outliers:
            found.append(f"Images that look like no others: {len(self.outliers)}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The content of `check.json`, and of `deitkit check --json`; images by path."""
        images = self.survey.images
        sizes = np.array(self.sizes).reshape(-1, 2)
        quantiles = {
            side: dict(zip(("min", "median", "max"), _quantiles(sizes[:, k]), strict=True))
            for k, side in enumerate(("width", "height"))
            if len(sizes)
        }
        return {
            "data": str(self.data),
            "images": len(images),
            "task": images.task,
            "how": self.how,
            "classes": self.class_counts,
            "sizes": quantiles,
            "modes": self.modes,
            "unreadable": [{"path": path, "reason": reason} for path, reason in self.unreadable],
            "duplicates": _counted(self.survey.counts())
            | {"groups_of_paths": [[images.paths[i] for i in g] for g in self.survey.duplicates.near]},
            "leaking": [images.paths[i] for i in self.survey.leaking],
            "wrong_labels": None if self.wrong_labels is None else self.wrong_label_rows(),
            "outliers": None if self.outliers is None else self.outlier_rows(),
            "problems": self.problems,
            "remarks": self.remarks,
        }

    def wrong_label_rows(self) -> list[dict[str, Any]]:
        """Rows of `wrong-labels.csv`, which `train --relabel` takes."""
        images = self.survey.images
        return [
            {
                "path": images.paths[w.index],
                "label": images.classes[w.suggested],
                "given": images.label_text(w.index),
                "probability": round(w.probability, 4),
                "probability_of_given": round(w.probability_of_label, 4),
            }
            for w in self.wrong_labels or ()
        ]

    def outlier_rows(self) -> list[dict[str, Any]]:
        """Rows of `outliers.csv`, which `train --exclude` takes."""
        images = self.survey.images
        return [
            {
                "path": images.paths[o.index],
                "label": images.label_text(o.index),
                "distance": round(o.distance, 4),
                "typical": round(o.typical, 4),
            }
            for o in self.outliers or ()
        ]

    def duplicate_rows(self) -> list[dict[str, Any]]:
        """Rows of `duplicates.csv`, which `train --exclude` takes: all but one image of each group.

        The one that stays is in training, if one is.
        """
        found, images, split = [], self.survey.images, self.survey.split
        copies = {i: group for group in self.survey.duplicates.exact for i in group}
        for group in self.survey.duplicates.near:
            kept = min(group, key=lambda i: (split[i] != "train", i))
            found += [
                {
                    "path": images.paths[i],
                    "label": images.label_text(i),
                    "split": str(split[i]),
                    "same_as": images.paths[kept],
                    "exact": kept in copies.get(i, ()),
                }
                for i in group
                if i != kept
            ]
        return found


def _counted(counts: DuplicateCounts) -> dict[str, int]:
    """What is known without a student; the paths are listed beside it."""
    return {key: value for key, value in dataclasses.asdict(counts).items() if isinstance(value, int)}


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _quantiles(values: Any) -> list[int]:
    return [int(value) for value in np.quantile(values, (0.0, 0.5, 1.0))]


def check_data(data: str | Path, *, labels: bool = False, device: str = "auto", **settings: Any) -> DataCheck:
    """Looks at the images in `data`, and with a teacher's eyes at their labels.

    labels: Find likely wrong labels and outliers too; needs cleanlab and takes the time of a teacher's pass
    over the images. settings: as for `deitkit.train`; the sections `data` and `teacher` count. Raises a
    DeitkitError for anything the caller can fix.
    """
    config, folder = Config().override(dotted(settings)), Path(data)
    config.check()
    if labels:
        check_spec(config.teacher.spec)
        require_cleanlab()
    with log.activity("looking at the images"):
        splits = load_splits(folder, config.data)
    images = splits.everything
    if labels:
        refuse_multilabel(images, "deitkit check --labels")
    thumbnails, unreadable = thumbnails_of(images, config.data)
    if len(unreadable) == len(images):
        raise DataError(f"no image in {folder} can be read; check that they are images")
    found = survey(splits, splits.duplicates or find_duplicates(images, thumbnails))
    sizes, modes = _headers(images, config.data)
    check = DataCheck(
        data=folder,
        how=splits.how,
        survey=found,
        sizes=sizes,
        modes=modes,
        unreadable=tuple((images.paths[i], reason) for i, reason in unreadable),
    )
    if not labels:
        return check
    readable = np.setdiff1d(np.arange(len(images)), [i for i, _ in unreadable])
    return _with_labels(check, readable, config, resolve_device(device))


def _headers(images: ImageSet, config: DataConfig) -> tuple[tuple[tuple[int, int], ...], dict[str, int]]:
    """Sizes and modes of the images whose headers can be read."""

    def header(i: int) -> tuple[tuple[int, int], str] | None:
        try:
            with opened(images.file(i), config.max_pixels) as image:
                return image.size, image.mode
        except UnreadableImage:
            return None

    with ThreadPoolExecutor(decode_threads(config)) as pool:
        found = [each for each in pool.map(header, range(len(images))) if each is not None]
    modes = Counter(mode for _, mode in found)
    return tuple(size for size, _ in found), dict(modes.most_common())


def _with_labels(check: DataCheck, readable: Any, config: Config, device: torch.device) -> DataCheck:
    """`check` with wrong labels and outliers among the `readable` images."""
    images = check.survey.images.subset(readable)
    groups = check.survey.duplicates.group_of(len(check.survey.images))[readable]
    features = features_of(images, config.teacher, config.data, device)
    labels = torch.from_numpy(images.labels)
    with log.activity("comparing labels"):
        wrong = find_wrong_labels(features, labels, len(images.classes), groups)
        outliers = find_outliers(features, groups)
    return dataclasses.replace(
        check,
        wrong_labels=tuple(dataclasses.replace(w, index=int(readable[w.index])) for w in wrong),
        outliers=tuple(dataclasses.replace(o, index=int(readable[o.index])) for o in outliers),
    )


def features_of(images: ImageSet, teacher: TeacherConfig, config: DataConfig, device: torch.device) -> Tensor:
    """(N, F) pooled features of whole images, as the first member of the teacher sees them."""
    with log.activity("opening the teacher"):
        member = open_backbone(teacher, student_size=None, device=device)
    view = member.card.preprocessing
    decoder = Decoder(view.image_size, "center_crop", view.crop, config.max_pixels)
    with log.progress_bar("decoding", len(images)) as advance:
        store, _ = open_pixels(images, decoder, config, advance)
    features = []
    with log.progress_bar("computing features", len(images)) as advance:
        for views, _ in views_of(Split(images, store), device, _BATCH):
            features.append(member.features(views)[0].float().cpu())
            advance(len(views))
    return torch.cat(features)


def write_lists(out: Path, check: DataCheck) -> list[Path]:
    """Writes `check.json` and a CSV file of each list; returns their paths."""
    create_folder(out)
    write_json(out / "check.json", check.to_dict())
    lists = {"duplicates.csv": check.duplicate_rows()}
    if check.wrong_labels is not None:
        lists |= {"wrong-labels.csv": check.wrong_label_rows(), "outliers.csv": check.outlier_rows()}
    for name, rows in lists.items():
        write_text(out / name, _as_csv(rows))
    return [out / "check.json", *(out / name for name in lists)]


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["path", "label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
