"""The studies, one a file. `get(name)` finds one; a misspelt name is refused with the nearest one."""

from __future__ import annotations

from ...errors import SettingError, did_you_mean
from ..description import Study
from . import ablation, distillation, epochs, resolution, transfer
from . import accuracy_vs_speed as throughput
from . import data_size as data
from . import distillation_losses as losses
from . import teacher_choice as teachers

_MODULES = (distillation, teachers, epochs, data, ablation, resolution, transfer, throughput, losses)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in _MODULES}


def get(name: str) -> Study:
    """The study of that name."""
    if name not in STUDIES:
        also = did_you_mean(name, STUDIES)
        raise SettingError(f"there is no study {name!r}, only {', '.join(STUDIES)}{also}")
    return STUDIES[name]
