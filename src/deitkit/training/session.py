"""The set-up that every job shares: settings resolved, run folder claimed, images decoded, teacher ready.

    session = open_session(config, partial(find_splits, data), out=out, resume=resume)
    teacher = session.open_teacher(out)

`train`, `pretrain`, `label`, `teacher fit` and the studies' convnets all start here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from .. import log
from ..config import AugmentConfig, Config, DataConfig, ResolvedConfig, flatten
from ..data.dataset import Dataset, open_dataset
from ..data.loader import TrainingViews
from ..data.splits import Splits
from ..errors import ResumeError, RunFolderError, SettingError
from ..inference.device import resolve_device
from ..io import refuse_occupied, write_json
from ..run_folder import TEACHER_FOLDER, read_config, read_info
from ..soft_labels.locks import Claims
from ..teachers.prepare import fit_to_dataset
from ..teachers.saved import kept_teacher
from ..teachers.spec import check_spec
from ..teachers.teacher import Teacher
from .resolve import create_student, resolve, resolve_initial_weights

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

    @cached_property
    def dataset(self) -> Dataset:
        return open_dataset(self.splits, self.config.student.image_size, self.config.data)

    @property
    def seconds(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self.started

    def views(self, dataset: Dataset | None = None, augment: AugmentConfig | None = None) -> TrainingViews:
        """The training views of `dataset`, by default the session's, with the configured augmentation."""
        dataset = self.dataset if dataset is None else dataset
        augment = self.config.augment if augment is None else augment
        return dataset.views(augment, self.config.student.image_size, self.device)

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
        """A teacher fitted to the dataset, on views as the student will see them."""
        return fit_to_dataset(
            self.config.teacher,
            self.dataset,
            augment=self.config.augment,
            image_size=self.config.student.image_size,
            seed=self.config.train.seed,
            device=self.device,
        )


def open_session(
    config: Config,
    find: Callable[[DataConfig], Splits],
    *,
    out: Path | None = None,
    resume: bool = False,
) -> Session:
    """Resolves `config` for the images that `find` finds; claims the run folder `out`, if there is one.

    Everything that can be refused is refused here, before images are decoded. Raises a DeitkitError.
    """
    started = time.monotonic()
    config.check()
    if config.has_live_teacher:
        check_spec(config.teacher.spec)
    device = resolve_device(config.train.device)
    splits = find(config.data)
    resolved = resolve(config, splits, device)
    claims = None
    if out is not None:
        saved = saved_config(out, resume)
        resolved = resolve_initial_weights(resolved, saved)
        _, changes = create_student(resolved, len(splits.train.classes))  # raises if weights do not fit
        claims = _claim(out, resolved, saved, resume)
        log.info(f"{len(splits.train)} training and {len(splits.val)} validation images ({splits.how})")
        log.info(resolved.reasons)
        for change in changes:
            log.info(f"initial weights: {change}")
    return Session(resolved, splits, device, started, claims)


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
        if different:
            key = different[0]
            raise ResumeError(
                f"cannot resume {out}: {key} was {theirs[key]} and is now {mine[key]}; give the run's own "
                "settings, or choose another --out"
            )
    if not settings.exists():
        refuse_occupied(out, without="run", own={_LOCK})
    out.mkdir(parents=True, exist_ok=True)
    claims = Claims(out / _LOCK).__enter__()  # closed with the session
    if not claims.take(0, required=False) or saved_config(out, resume) != saved:
        raise RunFolderError(f"another process works in {out}; wait until it ends, or choose another --out")
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
