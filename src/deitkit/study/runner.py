"""Runs a study: skips finished runs, resumes interrupted ones, and shares runs out among processes."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import distributed, log
from ..data.source import location
from ..data.splits import refuse_out_among_classes
from ..errors import DeitkitError, RunFolderError, SettingError
from ..io import create_folder, read_json, refuse_occupied, write_json
from ..preprocessing import InputSize
from ..run_folder import CHECKPOINTS
from ..soft_labels.manifest import FILE as MANIFEST
from ..soft_labels.store import open_soft_labels
from ..teachers.spec import check_spec, open_member, parse
from ..training.labelling import label
from ..training.run import train_config
from .convnet import train_convnet
from .plan import PlannedRun, SharedSoftLabels, StudyJob, changed_settings, plan_runs
from .records import is_finished
from .summary import summarise


@dataclass(frozen=True)
class Outcome:
    """The folder of a study, and its finding."""

    folder: Path
    finding: str


def run_study(job: StudyJob, *, shard: tuple[int, int] = (1, 1)) -> Outcome:
    """Trains the runs of one shard, and summarises all finished runs.

        run_study(StudyJob(study=catalogue.get("losses"), preset="quick", data=images, out=folder))

    shard: index from 1, and number of shards; under torchrun each process takes its part of that shard.
    Arms without a teacher on this machine are left out. Raises a DeitkitError for anything the caller can
    fix, and Interrupted if a signal stopped a run after its state was saved; the same call resumes it.
    """
    index, processes = shard[0] - 1, distributed.world_size()
    mine = share_of(plan_runs(job), index * processes + distributed.rank() + 1, shard[1] * processes)
    with distributed.main_first():
        _claim_folder(job)
    with distributed.alone():  # each process trains runs of its own
        skipped = _train_all(mine, job)
    distributed.barrier()
    finding = distributed.from_main(lambda: summarise(job, skipped))
    return Outcome(job.out, finding)


def _train_all(mine: Sequence[PlannedRun], job: StudyJob) -> dict[str, str]:
    """Trains the runs that are not finished. Returns the arms that were left out, with the reason."""
    skipped: dict[str, str] = {}
    for number, run in enumerate(mine, 1):
        if is_finished(run.folder):
            continue
        reason = skipped.get(run.arm.name) or _missing(run, job)
        if reason is not None:
            if run.arm.name not in skipped:
                log.info(f"{run.arm.name} is left out: {reason}")
            skipped[run.arm.name] = reason
            continue
        log.info(f"run {number} of {len(mine)}: {run.arm.name}, seed {run.seed}")
        _train(run)
        summarise(job, skipped)
    return skipped


def _train(run: PlannedRun) -> None:
    if run.arm.convnet:
        train_convnet(run.data, run.folder, run.config)
    else:
        config = run.config
        if run.soft_labels is not None:
            _complete(run.soft_labels, run)
            config = config.override({"teacher.soft_labels": str(run.soft_labels.folder)})
        train_config(run.data, run.folder, config, resume=True)
    # A finished run is never resumed, and checkpoints are most of its size.
    shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)


def _complete(shared: SharedSoftLabels, run: PlannedRun) -> None:
    """Stores the soft labels that this run and others read, unless they are there."""
    if (shared.folder / MANIFEST).exists() and open_soft_labels(shared.folder).epochs() >= shared.epochs:
        return
    label(
        run.data,
        shared.folder,
        epochs=shared.epochs,
        recipe=run.config.recipe,
        top_k=shared.top_k,
        hard=shared.top_k is None,
        **changed_settings(run.config),
    )


def _missing(run: PlannedRun, job: StudyJob) -> str | None:
    """Why a run cannot be trained: its teacher, or a run that it needs, is missing; None if it can."""
    for needed in run.arm.needs:
        if not is_finished(job.folder(needed, run.seed)):
            return f"it needs the arm {needed!r}, which was left out"
    teacher = run.config.teacher
    return None if teacher.spec == "none" else _missing_teacher(teacher.spec, teacher.trust_remote_code)


@functools.cache
def _missing_teacher(spec: str, trust_remote_code: bool) -> str | None:
    try:
        check_spec(spec)
        for member in parse(spec):
            if member.source != "fitted":  # a fitted one is checked by check_spec
                open_member(member, InputSize(), trust_remote_code=trust_remote_code)
    except DeitkitError as error:
        return str(error)
    return None


def _claim_folder(job: StudyJob) -> None:
    """Creates the study's folder. Refuses one with another study, or with other files."""
    facts = {
        "study": job.study.name,
        "preset": job.preset,
        "data": location(job.data),
        "target": str(job.target.resolve()) if job.target else None,
        "settings": {key: str(value) for key, value in job.settings.items()},
    }
    refuse_out_among_classes(job.data, job.out)
    path = job.out / "study.json"
    if not path.exists():
        refuse_occupied(job.out, without="study")
        create_folder(job.out)
        write_json(path, facts)
        return
    try:
        saved = read_json(path)
    except ValueError as error:
        raise RunFolderError(f"{path} cannot be read: {error}; choose another --out") from None
    for key, now in facts.items():
        was = saved.get(key) if isinstance(saved, dict) else None
        if was != now:
            raise SettingError(
                f"{job.out} holds a study whose {key} was {was} and is now {now}; "
                "choose another --out, or give the study's own"
            )


def share_of(runs: Sequence[PlannedRun], index: int, count: int) -> list[PlannedRun]:
    """The runs of shard `index` (from 1) of `count`.

    Runs that depend on each other or share soft labels are in one shard. Chains of runs are assigned from the
    longest to the shortest, each to the shard with the least to do. The result depends on the plan only, so
    all processes agree.
    """
    if not 1 <= index <= count:
        raise SettingError(
            f"there is no shard {index} of {count}; give one from 1/{count} to {count}/{count}"
        )
    loads, mine = [0.0] * count, []
    for chain in sorted(_chains(runs), key=lambda chain: -sum(run.seconds for run in chain)):
        least = min(range(count), key=loads.__getitem__)
        loads[least] += sum(run.seconds for run in chain)
        if least == index - 1:
            mine += chain
    return sorted(mine, key=list(runs).index)


def _chains(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Groups of runs that need no run or soft labels of another group."""
    chains: list[tuple[set[Hashable], list[PlannedRun]]] = []
    for run in runs:
        touched: set[Hashable] = {(name, run.seed) for name in (run.arm.name, *run.arm.needs)}
        if run.soft_labels is not None:
            touched.add(run.soft_labels.folder)
        joined = [chain for chain in chains if chain[0] & touched]
        chains = [chain for chain in chains if not chain[0] & touched]
        chains.append(
            (
                touched.union(*(names for names, _ in joined)),
                [other for _, others in joined for other in others] + [run],
            )
        )
    return [chain for _, chain in chains]
