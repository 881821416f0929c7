"""The set-up that every job shares: settings resolved, run folder claimed, images decoded, teacher ready.

    session = open_session(config, partial(find_splits, data), out=out, resume=resume)
    teacher = session.open_teacher(out)

`train`, `pretrain`, `label`, `teacher fit` and the studies' convnets all start here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from .. import distributed, log
from ..config import AugmentConfig, Config, DataConfig, ResolvedConfig, flatten
from ..data.cache import Decoder, open_pixels
from ..data.dataset import Dataset, Split, open_dataset, use_share
from ..data.loader import TrainingViews
from ..data.splits import Splits
from ..data.survey import FEW
from ..distillation.class_balance import taken_off_teacher
from ..errors import DataError, ResumeError, RunFolderError, SettingError
from ..inference.device import be_deterministic, resolve_device
from ..io import create_folder, refuse_occupied, write_json
from ..locks import Claims
from ..models import Student
from ..run_folder import TEACHER_FOLDER, read_config, read_info, read_plan
from ..teachers.prepare import fit_to_dataset
from ..teachers.saved import kept_teacher
from ..teachers.spec import check_spec
from ..teachers.teacher import Teacher
from .budget import Budget, affordable_images
from .resolve import create_student, resolve, resolve_initial_weights

_NAMED_CLASSES = 12  # up to which every class is listed
_PROBE_SHARE = 0.25  # of the time left, that a probe's views may take
_LOCK = "lock"  # of a run folder


@dataclass(frozen=True)
class Session:
    """A job that is set up. `dataset` decodes the images when it is first used.

    started: when the job began, on the monotonic clock. claims: keeps other processes out of the run folder
    as long as the session lives.
    """

    config: ResolvedConfig
    splits: Splits
    device: torch.device
    started: float
    claims: Claims | None = None

    @property
    def budget(self) -> Budget | None:
        """The time that the job may take, if it is limited."""
        seconds = self.config.train.budget_s
        return Budget(seconds, self.started) if seconds is not None else None

    @cached_property
    def dataset(self) -> Dataset:
        with distributed.each_host_first():  # the others find the pixels in the cache
            student, view_size = self.config.student, self.config.view_size
            return open_dataset(self.splits, student.image_size, self.config.data, view_size=view_size)

    @property
    def has_larger_views(self) -> bool:
        """Whether training views are larger than the student's images, for the teacher's sake."""
        return self.config.view_size != self.config.student.image_size

    def for_teacher(self, split: Split) -> Split:
        """A split of the dataset as the teacher is measured on it: at the size of training views."""
        if not self.has_larger_views:
            return split
        return self.decoded(split, self.config.view_size, self.config.data.eval_crop)

    def decoded(self, split: Split, size: tuple[int, int], crop: float) -> Split:
        """The images of `split` at another size and crop."""
        decoder = Decoder(size, "center_crop", crop)
        with log.progress_bar(f"decoding at {max(size)} px", len(split.images)) as advance:
            store, unreadable = open_pixels(split.images, decoder, self.config.data, advance)
        if unreadable:  # it could be read when the dataset was opened
            index, reason = unreadable[0]
            file = split.images.file(index)
            raise DataError(f"{file} has changed and cannot be read any more ({reason})")
        return Split(split.images, store)

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self.started

    def views(self, dataset: Dataset | None = None, augment: AugmentConfig | None = None) -> TrainingViews:
        """The training views of `dataset`, by default the session's, with the configured augmentation."""
        dataset = self.dataset if dataset is None else dataset
        augment = self.config.augment if augment is None else augment
        return dataset.views(augment, self.config.view_size, self.device)

    def open_teacher(self, folder: Path) -> Teacher | None:
        """The teacher kept in `folder`, or a new one fitted and kept there; None without a live teacher."""
        if not self.config.has_live_teacher:
            return None
        return kept_teacher(folder / TEACHER_FOLDER, self.config.teacher, self.device, self.fit_teacher)

    def require_teacher(self, folder: Path) -> Teacher:
        """As `open_teacher`, for a job that cannot do without a live teacher."""
        teacher = self.open_teacher(folder)
        if teacher is None:
            raise SettingError("a live teacher is needed; give --teacher")
        return teacher

    def fit_teacher(self) -> Teacher:
        """A teacher fitted to the dataset, on views as the student will see them; adjusted as it is used."""
        teacher = fit_to_dataset(
            self.config.teacher,
            self.dataset,
            augment=self.config.augment,
            image_size=self.config.view_size,
            seed=self.config.train.seed,
            device=self.device,
            seconds=None if self.budget is None else _PROBE_SHARE * self.budget.left,
        )
        return self.adjusted(teacher)

    def adjusted(self, teacher: Teacher) -> Teacher:
        """A fitted teacher as a model of its own, after `train.balance`."""
        counts = torch.from_numpy(self.dataset.train.images.counts())
        return teacher.adjusted(taken_off_teacher(self.config.train.balance, counts))


def open_session(
    config: Config,
    find: Callable[[DataConfig], Splits],
    *,
    out: Path | None = None,
    resume: bool = False,
    choose: Callable[[Splits, torch.device], Config] | None = None,
) -> Session:
    """Resolves `config` for the images that `find` finds; claims the run folder `out`, if there is one.

    choose: the config for these images instead, which finds them in the same way.

    Everything that can be refused is refused here, before images are decoded. Raises a DeitkitError.
    """
    started = time.monotonic()
    with log.activity("looking at the images"):
        config.check()
        if config.has_live_teacher:
            check_spec(config.teacher.spec)
        device = resolve_device(config.train.device)
        if config.train.deterministic:
            be_deterministic()
        splits = distributed.from_main(lambda: find(config.data))
        if choose is not None:
            config = distributed.from_main(partial(choose, splits, device))
        resolved = resolve(config, splits, device)
    claims = None
    if out is not None:
        described = describe_images(splits)  # before a short budget takes a share of them
        saved = distributed.from_main(lambda: saved_config(out, resume))
        resolved = resolve_initial_weights(resolved, saved)
        if saved is not None and config.train.batch_size == saved.train.batch_size:
            # Its first session may have chosen it for more images than a short budget then left.
            resolved = replace(resolved, train=replace(resolved.train, batch_size=saved.train.batch_size))
        with log.activity("creating the student"):  # raises if weights do not fit
            student, changes = create_student(resolved, len(splits.train.classes) or 1)  # without labels
            if resolved.train.budget_s is not None:
                fit = partial(_fit_to_budget, resolved, splits, saved, student, device)
                resolved, splits = distributed.from_main(fit)
        if distributed.is_main():
            claims = _claim(out, resolved, saved, resume)
        for line in described:
            log.info(line)
        log.info(resolved.reasons)
        for change in changes:
            log.logger.debug(f"initial weights: {change}")
    return Session(resolved, splits, device, started, claims)


def describe_images(splits: Splits) -> list[str]:
    """What there is to train on, in words: the images of each class, and how they are split."""
    parts = [images for images in (splits.train, splits.val, splits.test) if images is not None]
    names, lines = splits.train.classes, []
    if names:
        counts = np.sum([images.counts() for images in parts], 0)
        kind = "labels" if splits.train.task == "multilabel" else "classes"
        rarest = int(counts.argmin())
        if len(names) <= _NAMED_CLASSES:
            each = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        else:
            each = f"from {counts[rarest]} images ({names[rarest]}) to {counts.max()}"
            each += f" ({names[int(counts.argmax())]})"
        lines.append(f"{len(names)} {kind}: {each}")
        if counts[rarest] < FEW:
            lines.append(
                f"{names[rarest]} has {counts[rarest]} images only: more of them would help most "
                f"(a few dozen per class)"
            )
    test = f", {len(splits.test)} to test" if splits.test is not None else ""
    return [
        *lines,
        f"{len(splits.train)} images to train on, {len(splits.val)} to validate{test} ({splits.how})",
    ]


def _fit_to_budget(
    config: ResolvedConfig, splits: Splits, saved: Config | None, student: Student, device: torch.device
) -> tuple[ResolvedConfig, Splits]:
    """Fewer images if the time budget is too short for all of them; a resumed run keeps its own share."""
    budget_s, data = config.train.budget_s, config.data
    fixed = config.teacher.soft_labels is not None or not splits.train.classes  # stored, or unlabelled
    if budget_s is None or fixed:
        return config, splits
    if saved is not None:
        shares = replace(
            data, train_fraction=saved.data.train_fraction, eval_fraction=saved.data.eval_fraction
        )
    else:
        most = affordable_images(budget_s, student, device)
        shares = replace(
            data,
            train_fraction=data.train_fraction * min(1.0, most / len(splits.train)),
            eval_fraction=data.eval_fraction * min(1.0, most / len(splits.val)),
        )
    if shares == data:
        return config, splits
    of_train = shares.train_fraction / data.train_fraction
    of_val = shares.eval_fraction / data.eval_fraction
    fewer = use_share(splits, of_train, of_val, data.split_seed)
    log.warning(
        f"the budget of {budget_s:.0f} s is short for {len(splits.train)} training images: "
        f"{len(fewer.train)} of them are used, and {len(fewer.val)} of {len(splits.val)} to validate"
    )
    return replace(config, data=shares), fewer


def saved_config(out: Path, resume: bool) -> Config | None:
    """The settings of the run in `out`; None if there is no run yet. Raises ResumeError unless `resume`."""
    settings = out / "settings.json"
    if not settings.exists() or not any((out / name).exists() for name in (TEACHER_FOLDER, "plan.json")):
        return None
    if not resume:
        raise ResumeError(f"{out} already holds a run; add --resume to continue it, or choose another --out")
    if (out / "results.json").exists() and not (out / "checkpoints").exists():
        raise ResumeError(f"the run in {out} is finished and has no checkpoints left to resume from")
    return read_config(out)


def _claim(out: Path, config: ResolvedConfig, saved: Config | None, resume: bool) -> Claims:
    """Creates the run folder and writes its settings. The folder is this process's while the result lives.

    Raises RunFolderError if it holds other files or another process works in it, ResumeError if it holds a
    run with other settings.
    """
    settings = out / "settings.json"
    if saved is not None:
        mine, theirs = flatten(config.affects_results()), flatten(saved.affects_results())
        different = [key for key in mine if mine[key] != theirs[key]]
        if not (out / "plan.json").exists() and "train.budget_s" in different:
            different.remove("train.budget_s")  # no epoch is planned yet: another budget may be given
        if different == ["train.budget_s"]:
            planned = read_plan(out).epochs
            raise ResumeError(
                f"cannot resume {out} with another budget, since {planned} epoch{'s' * (planned > 1)} are "
                "planned; --resume without --budget trains what is left of them, and a longer training needs "
                "another --out"
            )
        if different:
            key = different[0]
            raise ResumeError(
                f"cannot resume {out}: {key} was {theirs[key]} and is now {mine[key]}; give the run's own "
                "settings, or choose another --out"
            )
    if not settings.exists():
        refuse_occupied(out, without="run", own={_LOCK})
    create_folder(out)
    claims = Claims(out / _LOCK).__enter__()  # closed with the session
    if not claims.take(0, required=False) or saved_config(out, resume) != saved:
        raise RunFolderError(f"another process works in {out}; wait until it ends, or choose another --out")
    if saved is None or flatten(saved.to_dict()) != flatten(config.to_dict()):
        write_json(settings, config.to_dict())
    return claims


def refuse_other_images(out: Path, dataset: Dataset) -> None:
    """Raises ResumeError if the run in `out` was begun on other images or classes."""
    described = out / "config.json"
    data = read_info(out).data if described.exists() else None
    if data is not None and data.fingerprint != dataset.fingerprint:
        raise ResumeError(
            f"cannot resume {out}: its images or classes have changed; give the images as they were, "
            "or choose another --out"
        )
