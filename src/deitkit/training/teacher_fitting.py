"""`deitkit teacher fit`: a teacher fitted to a folder's classes, kept for any number of students."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Unpack

from .. import distributed, recipes
from ..config import dotted
from ..data.dataset import find_splits
from ..data.splits import refuse_out_among_classes
from ..io import refuse_occupied
from ..keywords import Keywords
from ..run_folder import TEACHER_CARD, model_to_json
from ..teachers.saved import WEIGHTS, save_teacher
from ..teachers.spec import check_spec
from . import results
from .session import Session, open_session


def fit_folder(
    spec: str, data: str | Path, out: str | Path, *, recipe: str = "small-data", **settings: Unpack[Keywords]
) -> dict[str, Any]:
    """Fits the teacher `spec` to the classes of `data` and writes it into the folder `out`.

    It is fitted on the views that the recipe's student would see. settings: as for `deitkit.train`. Returns
    its metrics on the validation images. Raises a DeitkitError for anything the caller can fix.

    Under torchrun the main process does it, since it takes minutes, and the others wait.
    """
    data, out = Path(data), Path(out)
    config = recipes.get(recipe).override({"teacher.spec": spec, **dotted(settings)})
    check_spec(config.teacher.spec)
    # A process that was stopped before it wrote the card may have left the weights.
    refuse_occupied(out, own=() if (out / TEACHER_CARD).exists() else {WEIGHTS})
    refuse_out_among_classes(data, out)
    session = open_session(config, partial(find_splits, data))
    session.dataset  # noqa: B018 - decoded before the others wait
    return distributed.from_main(lambda: _fit_and_save(session, out))


def _fit_and_save(session: Session, out: Path) -> dict[str, Any]:
    teacher = session.fit_teacher()
    measured, _ = results.measure_teacher(teacher, session.dataset.val, session.device)
    results.log_teacher(measured.result, session.dataset.val)
    save_teacher(out, teacher)
    return model_to_json(measured.result)
