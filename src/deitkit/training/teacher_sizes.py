"""The teacher at other image sizes: models that may be deployed instead of the student.

The student's teacher sees the student's small views. The same network with a head fitted at 224 pixels is
often far more accurate, and at 96 pixels about as fast as the student. Each head is fitted on the centre crop
that the network was trained for, exactly as the model sees images when it is deployed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import log
from ..data.cache import Decoder, open_pixels
from ..data.dataset import Split
from ..errors import DataError, WeightsError
from ..evaluation.evaluate import views_of
from ..models import DeiTOutput
from ..preprocessing import InputSize
from ..run_folder import CANDIDATES_FOLDER, holds_teacher
from ..run_schema import ModelResult
from ..settings import AUTO
from ..tasks import SCORES
from ..teachers.fit import FitData, fit_teacher
from ..teachers.saved import kept_teacher
from ..teachers.spec import FITTED, open_member, parse
from ..teachers.teacher import Teacher
from . import results
from .run_files import write_validation
from .session import Session

_SIZES = (224, 128, 96, 160)  # those that tell most come first, if there is no time for all
_MOST_IMAGES = 20_000  # with more training images, fitting at all sizes takes longer than it tells
# What the sizes may take: a share of what the budget has left, or so many seconds without a budget.
_SHARE_OF_BUDGET, _SECONDS = 0.4, 900.0
_OVERHEAD = 3.0  # seconds per size, for decoding and the choice of a backend


def measure_teacher_sizes(
    session: Session, out: Path, teacher: results.Measured | None
) -> dict[str, results.Measured]:
    """The teacher fitted and measured at each size of `teacher.deploy_sizes`, by name.

    teacher: the student's teacher, whose speed tells what a size will take; one that takes too long is left
    out. They are kept in `out`, where a resumed run finds them.
    """
    if teacher is None:
        return {}
    found: dict[str, results.Measured] = {}
    for size, crop in _affordable(session, out, teacher.result):
        name = f"teacher-{size}"
        found[name] = _fit_and_measure(session, out / CANDIDATES_FOLDER / name, size, crop)
    if found:
        score = SCORES[session.dataset.task]
        scores = (f"{name[8:]} px {each.result.scores[score.key]:.1f} %" for name, each in found.items())
        log.info(f"the teacher at its own sizes, {score.name} on validation: {', '.join(scores)}")
    return found


def _affordable(session: Session, out: Path, teacher: ModelResult) -> list[tuple[int, float]]:
    """(size, crop) that there is time for, smallest first."""
    left = _SECONDS if session.budget is None else session.budget.left * _SHARE_OF_BUDGET
    data, kept, dropped = session.dataset, [], []
    passes = _num_views(session) * len(data.train.images) + len(data.val.images)
    for size, crop in _sizes(session):
        assert teacher.image_size is not None, "a live teacher has a size"
        there = holds_teacher(out / CANDIDATES_FOLDER / f"teacher-{size}")
        pixels = size**2 / math.prod(teacher.image_size)
        seconds = 0.0 if there else _OVERHEAD + passes / teacher.images_per_s * pixels
        if seconds > left:
            dropped.append(f"{size} px")
            continue
        left -= seconds
        kept.append((size, crop))
    if dropped:
        log.info(f"the teacher is not fitted at {', '.join(dropped)}, for lack of time")
    return sorted(kept)


def _num_views(session: Session) -> int:
    """The views of each training image: itself and, if the student may flip images, its mirror image."""
    return 2 if session.config.augment.flip > 0 else 1


def _sizes(session: Session) -> list[tuple[int, float]]:
    """(size, crop) to fit the teacher at, most telling first; none for an ensemble, or a fixed size."""
    config = session.config.teacher
    sizes = config.deploy_sizes
    if sizes is None or not session.config.has_live_teacher:
        return []
    if sizes == AUTO:
        sizes = _SIZES if len(session.dataset.train.images) <= _MOST_IMAGES else ()
    [member, *others] = parse(config.spec)
    if others or member.source == FITTED:
        return []
    trust, views = config.trust_remote_code, []
    try:
        for size in sizes:
            views.append(
                open_member(member, InputSize(size, (size, size)), trust_remote_code=trust).preprocessing
            )
    except WeightsError:  # a network of a single size, at which it teaches already
        return []
    return list(dict.fromkeys((max(view.image_size), view.crop) for view in views))


def _fit_and_measure(session: Session, folder: Path, size: int, crop: float) -> results.Measured:
    """The teacher at `size` pixels, from `folder` if it is kept there, on validation."""
    val = _split(session, session.dataset.val, size, crop)
    test = session.dataset.test and _split(session, session.dataset.test, size, crop)
    teacher = kept_teacher(folder, session.config.teacher, session.device, lambda: _fit(session, size, crop))
    with log.activity(f"evaluating the teacher at {size} px"):
        measured, logits = results.evaluate_teacher(teacher, val, session.device, test)
    write_validation(folder, val.images, DeiTOutput(logits, None, embedding=measured.embedding))
    result = replace(measured.result, image_size=(size, size))
    return replace(measured, result=result, embedding=None)  # what it told is written


def _fit(session: Session, size: int, crop: float) -> Teacher:
    """A head on the views of each training image."""
    train, config = _split(session, session.dataset.train, size, crop), session.config
    num_views = _num_views(session)
    with log.progress_bar(f"fitting the teacher at {size} px", num_views * len(train.images)) as advance:

        def views(v: int) -> Iterator[Tensor]:
            for batch, _ in views_of(train, session.device):
                yield batch.flip(-1) if v == 1 else batch
                advance(len(batch))

        fit = config.teacher.fit if config.teacher.fit in ("auto", "head") else "probe"
        teacher = fit_teacher(
            replace(config.teacher, image_size=size, fit=fit, probe_views=num_views),
            FitData(views, train.labels, session.dataset.classes, None, config.train.seed),
            student_size=(size, size),
            device=session.device,
        )
        return session.adjusted(teacher)


def _split(session: Session, split: Split, size: int, crop: float) -> Split:
    """The images of `split` as the model at `size` pixels sees them."""
    data, images = session.config.data, split.images
    decoder = Decoder((size, size), "center_crop", crop)
    with log.progress_bar(f"decoding at {size} px", len(images)) as advance:
        store, unreadable = open_pixels(images, decoder, data, advance)
    if unreadable:  # it could be read when the dataset was opened
        index, reason = unreadable[0]
        raise DataError(f"{images.file(index)} has changed and cannot be read any more ({reason})")
    return Split(images, store)
