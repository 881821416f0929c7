"""The teacher at other image sizes: models that may be deployed instead of the student.

The student's teacher sees the student's small views. The same network with a head fitted at 224 pixels is
often far more accurate, and at 96 pixels about as fast as the student. Each head is fitted on the centre crop
that the network was trained for, exactly as the model sees images when it is deployed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from .. import log
from ..data.cache import Decoder
from ..data.dataset import Split, open_pixels
from ..errors import DataError
from ..evaluation.evaluate import views_of
from ..evaluation.run_evaluation import write_predictions
from ..models import DeiTOutput
from ..preprocessing import InputSize
from ..run_folder import CANDIDATES_FOLDER, PREDICTIONS
from ..settings import AUTO
from ..tasks import SCORES
from ..teachers.fit import FitData, fit_teacher
from ..teachers.saved import kept_teacher
from ..teachers.spec import FITTED, open_member, parse
from ..teachers.teacher import Teacher
from . import results
from .session import Session

_SIZES = (96, 128, 160, 224)
_MOST_IMAGES = 20_000  # with more training images, fitting at all sizes takes longer than it tells
# What the sizes may take of a job's time: a share of its budget, or so many seconds without one.
_SHARE_OF_BUDGET, _SECONDS = 0.25, 900.0


def measure_teacher_sizes(session: Session, out: Path) -> dict[str, results.Measured]:
    """The teacher fitted and measured at each size of `teacher.deploy_sizes`, by name, such as "teacher-224".

    They are kept in `out`, where a resumed run finds them. A size that would take too long is left out.
    """
    left = _SECONDS if session.budget is None else session.budget.left * _SHARE_OF_BUDGET
    found: dict[str, results.Measured] = {}
    per_pixel = 0.0  # seconds, of the size before
    for size, crop in _sizes(session):
        name, started = f"teacher-{size}", time.monotonic()
        if per_pixel * size**2 > left:
            log.info(f"the teacher is not fitted at {size} px, for lack of time")
            continue
        found[name] = _fit_and_measure(session, out / CANDIDATES_FOLDER / name, size, crop)
        taken = time.monotonic() - started
        left, per_pixel = left - taken, taken / size**2
    if found:
        score = SCORES[session.dataset.task]
        scores = (f"{name[8:]} px {each.result.scores[score.key]:.1f} %" for name, each in found.items())
        log.info(f"the teacher at its own sizes, {score.name} on validation: {', '.join(scores)}")
    return found


def _sizes(session: Session) -> list[tuple[int, float]]:
    """(size, crop) to fit the teacher at, smallest first; none if it is an ensemble, fitted, or stored."""
    config = session.config.teacher
    sizes = config.deploy_sizes
    if sizes is None or not session.config.has_live_teacher:
        return []
    if sizes == AUTO:
        sizes = _SIZES if len(session.dataset.train.images) <= _MOST_IMAGES else ()
    [member, *others] = parse(config.spec)
    if others or member.source == FITTED:
        return []
    trust, possible = config.trust_remote_code, set()
    for size in sizes:  # some networks take a single size
        model = open_member(member, InputSize(size, (size, size)), trust_remote_code=trust)
        possible.add((max(model.preprocessing.image_size), model.preprocessing.crop))
    return sorted(possible)


def _fit_and_measure(session: Session, folder: Path, size: int, crop: float) -> results.Measured:
    """The teacher at `size` pixels, from `folder` if it is kept there, on validation."""
    val = _split(session, session.dataset.val, size, crop)
    teacher = kept_teacher(folder, session.config.teacher, session.device, lambda: _fit(session, size, crop))
    with log.activity(f"evaluating the teacher at {size} px"):
        measured, logits = results.measure_teacher(teacher, val, session.device)
    write_predictions(folder / PREDICTIONS, val.images, DeiTOutput(logits, None), None)
    return replace(measured, result=replace(measured.result, image_size=(size, size)))


def _fit(session: Session, size: int, crop: float) -> Teacher:
    """A head on the view of each training image and, if the student may flip images, its mirror image."""
    train, config = _split(session, session.dataset.train, size, crop), session.config
    num_views = 2 if config.augment.flip > 0 else 1
    with log.progress_bar(f"fitting the teacher at {size} px", num_views * len(train.images)) as advance:

        def views(v: int) -> Iterator[Tensor]:
            for batch, _ in views_of(train, session.device):
                yield batch.flip(-1) if v == 1 else batch
                advance(len(batch))

        fit = config.teacher.fit if config.teacher.fit in ("auto", "head") else "probe"
        return fit_teacher(
            replace(config.teacher, image_size=size, fit=fit, probe_views=num_views),
            FitData(views, train.labels, session.dataset.classes, None, config.train.seed),
            student_size=(size, size),
            device=session.device,
        )


def _split(session: Session, split: Split, size: int, crop: float) -> Split:
    """The images of `split` as the model at `size` pixels sees them."""
    data, images = session.config.data, split.images
    decoder = Decoder((size, size), "center_crop", crop)
    with log.progress_bar(f"decoding at {size} px", len(images)) as advance:
        store, unreadable = open_pixels(images, decoder, data, advance)
    if unreadable:  # it could be read when the dataset was opened
        index, reason = unreadable[0]
        raise DataError(f"{images.full_path(index)} has changed and cannot be read any more ({reason})")
    return Split(images, store)
