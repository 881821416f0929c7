"""`deitkit teacher fit`: a teacher fitted to a folder's classes, kept for any number of students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import recipes
from ..config import dotted
from ..data.dataset import find_splits, open_data
from ..data.splits import refuse_out_among_classes
from ..inference.device import resolve_device
from ..io import refuse_occupied
from ..teachers.prepare import fit_to_data
from ..teachers.saved import save_teacher
from ..teachers.spec import check_spec
from . import results
from .student import choose_student


def fit_folder(
    spec: str, data: str | Path, out: str | Path, *, recipe: str = "small-data", **settings: Any
) -> dict[str, Any]:
    """Fits the teacher `spec` to the classes of `data`, and writes it into the folder `out`.

    The views are those that the recipe's student would see. settings as for `deitkit.train`. Returns how
    it does on the validation images. Raises DeitkitError for anything the caller can mend.
    """
    data, out = Path(data), Path(out)
    changes = dotted(settings)
    config = recipes.get(recipe).override({"teacher.spec": spec, **changes})
    check_spec(config.teacher.spec)
    refuse_occupied(out)
    refuse_out_among_classes(data, out)
    device = resolve_device(config.train.device)
    splits = find_splits(data, config)
    config, _ = choose_student(config, splits, device)
    opened = open_data(splits, config)
    teacher = fit_to_data(config, opened, device)
    facts, _ = results.measure_teacher(teacher, opened.val, device)
    results.say_teacher(facts, opened.val)
    save_teacher(out, teacher)
    return facts
