"""The studies: one module per study, which defines `STUDY`."""

from __future__ import annotations

import importlib
import pkgutil

from ...errors import SettingError, did_you_mean
from ..description import Study

_modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in _modules}


def get(name: str) -> Study:
    """The study `name`. Raises SettingError for an unknown one, with the nearest name."""
    if name not in STUDIES:
        known = f"{', '.join(STUDIES)}{did_you_mean(name, STUDIES)}"
        raise SettingError(f"there is no study {name!r}, only {known}")
    return STUDIES[name]
