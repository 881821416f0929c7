"""`deitkit study`: measures a finding of the paper again, on a folder of images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SettingError
from . import options as flags
from .interrupts import resumable
from .options import settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..study.plan import PlannedRun


def study(
    name: Annotated[str, typer.Argument(help="Name of a study; list lists them.")],
    data: Annotated[
        Path | None, typer.Argument(help="Folder with one sub-folder per class, or with train/ and val/.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; the same command resumes.")
    ] = None,
    preset: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    target: Annotated[Path | None, typer.Option(help="Second data set, for transfer.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2.")] = "0,1,2",
    shard: Annotated[str, typer.Option(help="Share of the runs to train here, such as 1/4.")] = "1/1",
    set_: flags.Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print arms, commands and cost.")] = False,
) -> None:
    """Measure a finding of the paper over seeds, and decide whether it holds on this data."""
    from ..study import catalogue

    if name == "list":
        for described in catalogue.STUDIES.values():
            print(f"{described.name}: {described.title} ({described.source})")
        return
    chosen = catalogue.get(name)
    if data is None or out is None:
        raise SettingError(f"the study {name!r} needs images and a folder; give DATA and --out DIR")
    from ..study.plan import StudyJob, plan_runs
    from ..study.runner import run_study, share_of

    job = StudyJob(
        study=chosen,
        preset=preset,
        data=data,
        out=out,
        target=target,
        seeds=parse_seeds(seeds),
        settings=settings_of({}, set_),
    )
    part = parse_shard(shard)
    if dry_run:
        _print_plan(share_of(plan_runs(job), *part))
        return
    with resumable(resume=True):  # the same command resumes a study
        outcome = run_study(job, shard=part)
    print(outcome.finding)
    print(f"table and figure: {outcome.folder / 'summary.md'}")


def parse_seeds(text: str) -> list[int]:
    """Parses different seeds: `0,1,2`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) != len(parts):
        raise SettingError(f"--seeds {text!r} are no seeds; give different integers, such as 0,1,2")
    return [int(part) for part in parts]


def parse_shard(text: str) -> tuple[int, int]:
    """Parses a shard: `1/4` is (1, 4)."""
    index, slash, count = text.partition("/")
    if not (slash and index.strip().isdecimal() and count.strip().isdecimal()):
        raise SettingError(f"--shard {text!r} is no shard; give one such as 1/4")
    return int(index), int(count)


def _print_plan(runs: Sequence[PlannedRun]) -> None:
    from ..study.plan import command_of

    seconds: dict[str, float] = {}
    for run in runs:
        seconds[run.arm.name] = seconds.get(run.arm.name, 0.0) + run.seconds
    seen: set[str] = set()
    for run in runs:
        if run.arm.name in seen:
            continue
        seen.add(run.arm.name)
        seeds = [str(other.seed) for other in runs if other.arm.name == run.arm.name]
        minutes = seconds[run.arm.name] / 60
        print(f"{run.arm.name}: seeds {','.join(seeds)}, {run.config.train.epochs} epochs, {minutes:.1f} min")
        command = command_of(run)
        print(f"  {shlex.join(command)}" if command else "  a convnet from scratch, by the study only")
    print(f"{len(runs)} runs, about {sum(seconds.values()) / 60:.0f} minutes")
