"""Makes a study's runs: what is finished is passed over, what was stopped goes on."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import log
from ..data.splits import refuse_out_among_classes
from ..errors import DeitkitError, SettingError
from ..io import read_json, refuse_occupied, write_json
from ..preprocessing import InputSize
from ..soft_labels.manifest import FILE as LABELS
from ..soft_labels.store import open_soft_labels
from ..teachers.spec import check_spec, open_member, parse
from ..training.labelling import label
from ..training.run import train_config
from .convnet import train_convnet
from .description import Study
from .plan import PlannedRun, changed_settings, plan_runs, run_folder
from .records import is_finished
from .shards import share_of
from .sharing import SharedLabels
from .summary import summarise


@dataclass(frozen=True)
class Outcome:
    """Where a study's files are, and the paragraph that its numbers gave."""

    folder: Path
    finding: str


def run_study(
    study: Study,
    preset: str,
    data: Path,
    out: Path,
    *,
    target: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    shard: tuple[int, int] = (1, 1),
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Makes the runs of one shard and sums up all that are finished.

    An arm whose teacher cannot be had is left out, with a sentence. Raises DeitkitError for what the
    caller can mend, and Interrupted when a signal stopped a run after its state was saved; the
    same call then goes on.
    """
    changed = dict(settings or {})
    runs = plan_runs(study, preset, data, out, target=target, seeds=seeds, settings=changed)
    mine = share_of(runs, *shard)
    _claim_folder(out, study, preset, data, target, changed)
    skipped: dict[str, str] = {}
    for number, run in enumerate(mine, 1):
        if is_finished(run.folder):
            continue
        reason = skipped.get(run.arm.name) or _missing(run, out)
        if reason is not None:
            if run.arm.name not in skipped:
                log.info(f"{run.arm.name} is left out: {reason}")
            skipped[run.arm.name] = reason
            continue
        log.info(f"run {number} of {len(mine)}: {run.arm.name}, seed {run.seed}")
        _make(run)
        summarise(study, preset, out, seeds, skipped)
    return Outcome(out, summarise(study, preset, out, seeds, skipped))


def _make(run: PlannedRun) -> None:
    if run.arm.convnet:
        train_convnet(run.data, run.folder, run.config)
    else:
        config = run.config
        if run.labels is not None:
            _complete(run.labels, run)
            config = config.override({"teacher.soft_labels": str(run.labels.folder)})
        train_config(run.data, run.folder, config, resume=True)
    # A finished run resumes no more, and checkpoints are most of its size.
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)


def _complete(labels: SharedLabels, run: PlannedRun) -> None:
    """Lets the teacher answer what this run and those that share its labels will read, once."""
    if (labels.folder / LABELS).exists() and open_soft_labels(labels.folder).epochs() >= labels.epochs:
        return
    label(
        run.data,
        labels.folder,
        epochs=labels.epochs,
        recipe=run.config.recipe,
        top_k=labels.top_k,
        hard=labels.top_k is None,
        **changed_settings(run.config),
    )


def _missing(run: PlannedRun, out: Path) -> str | None:
    """Why a run cannot be made: its teacher, or a run that it needs; None where all is there."""
    for needed in run.arm.needs:
        if not is_finished(run_folder(out, needed, run.seed)):
            return f"it needs the arm {needed!r}, which was left out"
    teacher = run.config.teacher.spec
    return None if teacher == "none" else _missing_teacher(teacher)


@functools.cache
def _missing_teacher(spec: str) -> str | None:
    try:
        check_spec(spec)
        for member in parse(spec):
            if member.source != "fitted":  # whose folder check_spec has looked at
                open_member(member, InputSize())
    except DeitkitError as error:
        return str(error)
    return None


def _claim_folder(
    out: Path, study: Study, preset: str, data: Path, target: Path | None, settings: Mapping[str, Any]
) -> None:
    """Makes the study's folder; one that holds another study, or other things, is refused."""
    facts = {
        "study": study.name,
        "preset": preset,
        "data": str(data.resolve()),
        "target": str(target.resolve()) if target else None,
        "settings": {key: str(value) for key, value in settings.items()},
    }
    refuse_out_among_classes(data, out)
    path = out / "study.json"
    if path.exists():
        saved = read_json(path)
        for key, now in facts.items():
            if saved.get(key) != now:
                raise SettingError(
                    f"{out} holds a study whose {key} was {saved.get(key)} and is now {now}; "
                    "choose another --out, or give the study's own"
                )
        return
    refuse_occupied(out, without="study")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)
