"""Runs whose teacher would answer the very same views: it answers once, and all of them read that."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..soft_labels.manifest import view_settings
from ..soft_labels.student_config import epochs_read

if TYPE_CHECKING:
    from .plan import PlannedRun

# With every class kept, stored labels are the teacher's at any temperature; of more classes than these they
# would outgrow the images.
_MOST_CLASSES = 100


@dataclass(frozen=True)
class SharedLabels:
    """Where a teacher's answers for several runs are kept, and what of them."""

    folder: Path
    epochs: int  # the longest run's
    top_k: int | None  # None: hard labels


def share_labels(runs: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """The runs, those that can share answers with another one told where they are kept.

    Such runs differ in nothing that decides a view or its answer (docs/soft-labels.md), need no feature maps,
    and lose nothing by reading: all of them take hard labels, or there are few enough classes to keep
    them all.
    """
    groups = defaultdict(list)
    for run in runs:
        if _can_read(run):
            deciding = json.dumps(view_settings(run.config.to_dict()), sort_keys=True)
            groups[run.data, deciding].append(run)
    shared: dict[Path, SharedLabels] = {}
    for group in groups.values():
        first = group[0]
        top_k = first.classes if first.classes <= _MOST_CLASSES else None
        hard = all(run.config.distillation.mode == "hard" for run in group)
        if len(group) == 1 or not (hard or top_k):
            continue
        folder = out / "labels" / first.arm.name / f"seed-{first.seed}"
        labels = SharedLabels(folder, max(epochs_read(run.config) for run in group), None if hard else top_k)
        shared |= {run.folder: labels for run in group}
    return [replace(run, labels=shared.get(run.folder)) for run in runs]


def _can_read(run: PlannedRun) -> bool:
    of_its_own = run.arm.convnet or run.arm.taught_by
    live_only = run.config.distillation.feature_weight > 0 or run.config.train.start_size is not None
    return run.config.has_live_teacher and not (of_its_own or live_only)
