"""The studies, one a file. `get(name)` finds one; a misspelt name is refused with the nearest one."""

from __future__ import annotations

import difflib

from ...errors import DeitkitError
from ..description import Study
from . import ablation, data, distillation, epochs, losses, resolution, teachers, throughput, transfer

_MODULES = (distillation, teachers, epochs, data, ablation, resolution, transfer, throughput, losses)
STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in _MODULES}


def get(name: str) -> Study:
    """The study of that name."""
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1, cutoff=0.0)[0]
        raise DeitkitError(
            f"there is no study {name!r}; did you mean {near!r}? There are: {', '.join(STUDIES)}"
        )
    return STUDIES[name]
