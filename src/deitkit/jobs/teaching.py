"""Makes the teacher ready for a folder of images: fitted on the student's own views, or read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import console, recipes
from ..config import Config, dotted
from ..data.loader import TrainingViews
from ..data.plan import Batch, plan_epoch
from ..data.splits import refuse_out_among_classes
from ..files import refuse_occupied
from ..inference.device import settle_device
from ..teachers.fit import Lesson, fit_teacher
from ..teachers.saved import kept_teacher, save_teacher
from ..teachers.spec import check_spec
from ..teachers.teacher import Teacher
from . import results
from .opening import Data, find_splits, open_data
from .student import choose_student


def prepare_teacher(out: Path, config: Config, data: Data, device: torch.device) -> Teacher | None:
    """The fitted teacher, from `out` where it lies there already; None where none answers live."""
    if not config.taught_live:
        return None
    return kept_teacher(out / "teacher", config.teacher, device, lambda: fit_to_data(config, data, device))


def fit_to_data(config: Config, data: Data, device: torch.device) -> Teacher:
    """The teacher with heads for the data's classes, fitted on views as the student will see them."""
    assert config.student.image_size is not None
    # Seen by the probe: the student's own views, without mixing, so that every view has one label.
    augment = replace(config.augment, mixup=0.0, cutmix=0.0, erasing=0.0)
    maker = training_views(replace(config, augment=augment), data, device)
    plain = training_views(replace(config, augment=results.PLAIN), data, device)
    n = len(data.train.images)

    def batches(v: int) -> Iterator[Tensor]:
        maker_v = plain if v == 0 else maker
        [keys] = [
            b.keys[b.indices.argsort()] for b in plan_epoch(n, batch_size=n, repeats=1, seed=7, epoch=v)
        ]
        order = torch.arange(n).numpy()
        for first in range(0, n, 64):
            advance(min(64, n - first))
            yield maker_v.make(Batch(order[first : first + 64], keys[first : first + 64])).images

    def training(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in plan_epoch(n, batch_size=32, repeats=1, seed=config.train.seed, epoch=epoch):
            made = maker.make(batch)
            yield made.images, made.targets

    lesson = Lesson(batches, data.train.labels, data.classes, training, config.train.seed)
    with console.bar("fitting the teacher", config.teacher.probe_views * n) as advance:
        return fit_teacher(config.teacher, lesson, student_size=config.student.image_size, device=device)


def training_views(config: Config, data: Data, device: torch.device) -> TrainingViews:
    """The views of the training images, as the settings ask."""
    assert config.student.image_size is not None
    return TrainingViews(
        data.pool.store,
        data.pool.images.labels,
        len(data.classes),
        config.augment,
        config.student.image_size,
        device,
    )


def fit_folder(
    spec: str, data: str | Path, out: str | Path, *, recipe: str = "small-data", **settings: Any
) -> dict[str, Any]:
    """`deitkit teacher fit`: the teacher fitted to the classes of `data`, in the folder `out`.

    The views are those that the recipe's student would see. settings as for `deitkit.train`. Returns how
    it does on the validation images. Raises DeitkitError for anything the caller can mend.
    """
    data, out = Path(data), Path(out)
    changes = dotted(settings)
    config = recipes.get(recipe).override({"teacher.spec": spec, **changes})
    check_spec(config.teacher.spec)
    refuse_occupied(out)
    refuse_out_among_classes(data, out)
    device = settle_device(config.train.device)
    splits = find_splits(data, config)
    config, _ = choose_student(config, splits, device)
    with console.bar("decoding", len(splits.train) + len(splits.val)) as advance:
        opened = open_data(splits, config, advance)
    teacher = fit_to_data(config, opened, device)
    facts, _ = results.measure_teacher(teacher, opened.val, device)
    results.say_teacher(facts, opened.val)
    save_teacher(out, teacher)
    return facts
