"""The teacher at other image sizes: models that may be deployed instead of the student.

A plain student's teacher sees the student's small views. The same network with a head fitted at 224 pixels is
often far more accurate, and at 96 pixels about as fast as the student. Each head is fitted on the centre crop
that the network was trained for, exactly as the model sees images when it is deployed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from torch import Tensor

from .. import log
from ..config import BackendName
from ..errors import DependencyError, WeightsError
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
_SHARE_OF_BUDGET, _SECONDS = 0.3, 900.0
_OVERHEAD = 3.0  # seconds per size, for decoding and the conversion to a backend


def measure_teacher_sizes(
    session: Session, out: Path, teacher: results.Measured | None
) -> dict[str, results.Measured]:
    """The teacher fitted and measured at each size of `teacher.deploy_sizes`, by name.

    teacher: the student's teacher, whose speed tells what a size will take; one that takes too long is left
    out, and on a busy machine more of them. They are kept in `out`, where a resumed run finds them.
    """
    if teacher is None:
        return {}
    found: dict[str, results.Measured] = {}
    dropped = []
    left, started = _seconds(session), time.monotonic()
    slowdown = 1.0  # of this machine at this moment, against the estimate
    for size, crop in _sizes(session, teacher.result):
        name, now = f"teacher-{size}", time.monotonic()
        folder = out / CANDIDATES_FOLDER / name
        estimate = 0.0 if holds_teacher(folder) else _estimate(session, teacher.result, size)
        if now - started + slowdown * estimate > left:
            dropped.append(f"{size} px")
            continue
        found[name] = _fit_and_measure(session, folder, teacher.result.backend, size, crop)
        if estimate:
            slowdown = max(1.0, (time.monotonic() - now) / estimate)
    if dropped:
        log.info(f"the teacher is not fitted at {', '.join(dropped)}, for lack of time")
    found = {name: found[name] for name in sorted(found, key=lambda name: int(name[8:]))}
    if found:
        score = SCORES[session.dataset.task]
        scores = (f"{name[8:]} px {each.result.scores[score.key]:.1f} %" for name, each in found.items())
        log.info(f"the teacher at its own sizes, {score.name} on validation: {', '.join(scores)}")
    return found


def _seconds(session: Session) -> float:
    """What all sizes may take."""
    return _SECONDS if session.budget is None else session.budget.left * _SHARE_OF_BUDGET


def _estimate(session: Session, teacher: ModelResult, size: int) -> float:
    """Seconds that a size will take, on a machine that does nothing else."""
    data = session.dataset
    passes = _num_views(session) * len(data.train.images) + len(data.val.images)
    assert teacher.image_size is not None, "a live teacher has a size"
    return _OVERHEAD + passes / teacher.images_per_s * size**2 / math.prod(teacher.image_size)


def _num_views(session: Session) -> int:
    """The views of each training image: itself and, if the student may flip images, its mirror image."""
    return 2 if session.config.augment.flip > 0 else 1


def _sizes(session: Session, teacher: ModelResult) -> list[tuple[int, float]]:
    """(size, crop) to fit the teacher at, most telling first; none for an ensemble, or a fixed size.

    Without the size at which it was measured, if that is the size of larger views than the student's.
    """
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
    found = dict.fromkeys((max(view.image_size), view.crop) for view in views)
    known = session.config.view_size if session.has_larger_views else None
    return [(size, crop) for size, crop in found if not (size, size) == known == teacher.image_size]


def _fit_and_measure(
    session: Session, folder: Path, backend: str, size: int, crop: float
) -> results.Measured:
    """The teacher at `size` pixels, from `folder` if it is kept there, on validation.

    backend: the fastest one at the student's size.
    """
    val = session.decoded(session.dataset.val, (size, size), crop)
    test = session.dataset.test and session.decoded(session.dataset.test, (size, size), crop)

    def fit() -> Teacher:
        try:
            return _fit(session, backend, size, crop)
        except DependencyError:  # it disagrees at this size
            return _fit(session, session.config.teacher.backend, size, crop)

    teacher = kept_teacher(folder, session.config.teacher, session.device, fit)
    with log.activity(f"evaluating the teacher at {size} px"):
        measured, logits = results.evaluate_teacher(teacher, val, session.device, test)
    write_validation(folder, val.images, DeiTOutput(logits, None, embedding=measured.embedding))
    result = replace(measured.result, image_size=(size, size))
    return replace(measured, result=result, embedding=None)  # what it told is written


def _fit(session: Session, backend: str, size: int, crop: float) -> Teacher:
    """A head on the views of each training image."""
    train, config = session.decoded(session.dataset.train, (size, size), crop), session.config
    num_views = _num_views(session)
    with log.progress_bar(f"fitting the teacher at {size} px", num_views * len(train.images)) as advance:

        def views(v: int) -> Iterator[Tensor]:
            for batch, _ in views_of(train, session.device):
                yield batch.flip(-1) if v == 1 else batch
                advance(len(batch))

        fit = config.teacher.fit if config.teacher.fit in ("auto", "head") else "probe"
        teacher = fit_teacher(
            replace(
                config.teacher,
                image_size=size,
                fit=fit,
                probe_views=num_views,
                backend=cast(BackendName, backend),
            ),
            FitData(views, train.labels, session.dataset.classes, None, config.train.seed),
            student_size=(size, size),
            device=session.device,
        )
        return session.adjusted(teacher)
