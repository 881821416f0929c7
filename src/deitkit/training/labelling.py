"""`deitkit.label`: a teacher's outputs for the views of many epochs, stored once for many students."""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import PIL
import torch
from torch import Tensor

from .. import distributed, log, recipes
from ..config import Config, dotted, flatten
from ..data.dataset import find_splits, refuse_multilabel
from ..data.loader import prefetch
from ..data.splits import refuse_out_among_classes
from ..errors import RunFolderError, SettingError
from ..io import create_folder, refuse_occupied
from ..keywords import Keywords
from ..locks import Claims
from ..run_folder import TEACHER_FOLDER, model_to_json
from ..soft_labels.codec import SoftLabelFormat, make_codec
from ..soft_labels.manifest import FILE, Manifest, fixed_settings, read_manifest, refuse_other_settings
from ..soft_labels.replay import FIRST_VIEWS, keep_first_views, refuse_other_views
from ..soft_labels.store import SHARD_VIEWS, Place, SoftLabelStore
from ..soft_labels.student_config import refuse_smaller_views
from ..teachers.spec import allowed_code, parse, refuse_code
from ..teachers.teacher import Teacher
from . import results
from .session import Session, open_session

_TOP_K = 10
_PREPARING, _FIRST_SHARD = 0, 1  # pieces of work in the lock file


def label(
    data: str | Path,
    out: str | Path,
    *,
    epochs: int,
    recipe: str | None = None,
    top_k: int | None = None,
    hard: bool = False,
    **settings: Unpack[Keywords],
) -> SoftLabelStore:
    """Stores the teacher's soft labels for the views of the first `epochs` epochs of training on `data`.

    If `out` has soft labels already, missing epochs are added with their settings. Several processes may
    write to one folder at once, under torchrun or not: each takes the next shard. top_k: classes stored per
    view, 10 by default. hard: store only the predicted class. settings: as for `train`. Raises a
    DeitkitError for anything the caller can fix.
    """
    data, out = Path(data), Path(out)
    known = distributed.from_main(lambda: _known(out))
    config = _settings(out, known, recipe, dotted(settings))
    refuse_out_among_classes(data, out)
    session = open_session(config, partial(find_splits, data))
    refuse_multilabel(session.splits.train, "deitkit label")
    kept = _format(out, known, session, top_k, hard)
    create_folder(out)
    make = session.views().make
    with Claims(out / "lock") as claims:
        with distributed.main_first():  # the others read what it has written
            claims.take(_PREPARING, wait=True)
            store, teacher = _prepare(out, kept, session)
            claims.free(_PREPARING)
        _refuse_full_disk(store, epochs)
        _label_missing(store, epochs, claims, make, teacher.unadjusted(), session.config.data.workers)
    distributed.barrier()
    return store


def _known(out: Path) -> Manifest | None:
    """The manifest of the soft labels that are in `out`. Refuses a folder with other files."""
    if (out / FILE).exists():
        return read_manifest(out)
    # A process that was stopped before it wrote the manifest may have left these.
    refuse_occupied(out, without="soft labels", own={TEACHER_FOLDER, "lock", FIRST_VIEWS})
    return None


def _settings(out: Path, known: Manifest | None, recipe: str | None, changes: dict[str, Any]) -> Config:
    """The recipe with `changes`, or the settings of the soft labels in `out` if no recipe is named."""
    if known is None or recipe is not None:
        config = recipes.get(recipe or Config().recipe).override(changes)
    else:
        refuse_other_settings(out, known, changes)
        config = known.config.override(changes)
    teacher = config.teacher
    if teacher.spec == "none" or teacher.soft_labels is not None or config.distillation.mode == "none":
        raise SettingError("soft labels need a live teacher; give --teacher, and no distillation.mode none")
    refuse_smaller_views(config)
    if config.distillation.distill_until == 0:
        raise SettingError("distillation.distill_until is 0, so no soft label would be read; give more")
    if "teacher.spec" not in changes:  # it comes from the manifest or the recipe
        for member in parse(teacher.spec):
            refuse_code(member, allowed_code(replace(teacher, spec="none")), out / FILE)
    fitted = [Path(member.model) for member in parse(teacher.spec) if member.source == "fitted"]
    if any(folder.resolve().parent == out.resolve() for folder in fitted):
        raise SettingError(
            f"the teacher {teacher.spec} lies inside --out {out}, which keeps a teacher of its own; "
            "choose another --out"
        )
    return config


def _format(
    out: Path, known: Manifest | None, session: Session, top_k: int | None, hard: bool
) -> SoftLabelFormat:
    """What to store per view. Raises SettingError if `out` already stores something else."""
    if hard and top_k is not None:
        raise SettingError("--hard and --top-k both say what to keep; give one of them")
    asked = SoftLabelFormat("top-k", top_k or _TOP_K, session.config.distillation.temperature)
    num_classes = len(session.splits.train.classes)
    wanted = make_codec(num_classes, SoftLabelFormat("hard") if hard else asked).format
    if known is None:
        return wanted
    if (hard or top_k is not None) and wanted.name != known.format.name:
        raise SettingError(
            f"{out} has {known.format.name} soft labels, and {wanted.name} ones are asked for; "
            "leave that out, or choose another --out"
        )
    return known.format


def _prepare(out: Path, kept: SoftLabelFormat, session: Session) -> tuple[SoftLabelStore, Teacher]:
    """The store and its teacher: opened and checked if they exist, otherwise created."""
    config, data, make = session.config, session.dataset, session.views().make
    images = data.pool.images
    if (out / FILE).exists():
        manifest = read_manifest(out)
        mine = flatten(config.to_dict())
        refuse_other_settings(out, manifest, {key: mine[key] for key in fixed_settings(manifest)})
        manifest.refuse_other_data(out, data.fingerprint, len(images), data.classes)
        if _digest(out / TEACHER_FOLDER) != manifest.teacher_sha256:
            raise SettingError(
                f"the teacher in {out / TEACHER_FOLDER} is not the one that made the soft labels there; "
                "restore its files, or run deitkit label into another folder"
            )
        store = SoftLabelStore(out, manifest, data.class_shares(config.train.balance))
        refuse_other_views(store, make)
        return store, session.require_teacher(out)
    shutil.rmtree(out / TEACHER_FOLDER, ignore_errors=True)  # left by a process that was stopped
    teacher = session.require_teacher(out)
    measured, _ = results.measure_teacher(teacher, session.for_teacher(data.val), session.device)
    results.log_teacher(measured.result, data.val)
    manifest = Manifest(
        settings=config.to_dict(),
        data_fingerprint=data.fingerprint,
        images=len(images),
        unlabeled=data.num_unlabeled,
        classes=data.classes,
        format=kept,
        shard_batches=max(1, SHARD_VIEWS // config.train.batch_size),
        teacher=model_to_json(measured.result),
        teacher_sha256=_digest(out / TEACHER_FOLDER),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    )
    store = SoftLabelStore(out, manifest, data.class_shares(config.train.balance))
    keep_first_views(store, make)
    manifest.write(out)  # last, because it marks the folder as complete
    return store, teacher


def _label_missing(
    store: SoftLabelStore,
    epochs: int,
    claims: Claims,
    make: Callable[..., Any],
    teacher: Teacher,
    workers: int,
) -> None:
    """Computes and writes the shards that no other process has taken."""
    missing = [place for place in store.places(epochs) if not store.path(place).exists()]
    with log.progress_bar("labelling", sum(map(store.num_views, missing))) as advance:
        for place in missing:
            piece = _FIRST_SHARD + place[0] * store.shards + place[1]
            if not claims.take(piece):
                continue  # another process works on it
            try:
                if not store.path(place).exists():
                    _write(store, place, _rows(store, place, make, teacher, workers, advance))
            finally:
                claims.free(piece)


def _rows(
    store: SoftLabelStore,
    place: Place,
    make: Callable[..., Any],
    teacher: Teacher,
    workers: int,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """The encoded soft labels of a shard's views."""
    # In the micro-batches of training, because a teacher's rounding may depend on the batch size.
    micro = store.manifest.config.train.micro_batch_size
    rows = []
    for batch in prefetch(make, store.plan(place[0])[store.batches(place)], workers):
        rows += [store.codec.encode(teacher(images).logits) for images in batch.images.split(micro)]
        advance(len(batch.indices))
    return rows


def _write(store: SoftLabelStore, place: Place, rows: list[Tensor]) -> None:
    try:
        store.write(place, rows)
    except OSError as error:
        raise RunFolderError(
            f"cannot write soft labels to {store.folder} ({error.strerror}); the {store.epochs()} finished "
            "epochs there are safe: free some space and run the command again"
        ) from None


def _refuse_full_disk(store: SoftLabelStore, epochs: int) -> None:
    """Raises RunFolderError if the missing shards do not fit on the disk."""
    missing = [place for place in store.places(epochs) if not store.path(place).exists()]
    needed = sum(map(store.num_views, missing)) * store.codec.bytes_per_view
    free = shutil.disk_usage(store.folder).free
    if needed > free:
        raise RunFolderError(
            f"{store.folder} needs {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free; "
            "free space, store fewer epochs, or keep less with --top-k or --hard"
        )


def _digest(folder: Path) -> str:
    """A hash of the names and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".part"):
        digest.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
