"""A student's settings where its teacher's answers are stored: the labels decide the views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import log, recipes
from ..config import Config
from ..errors import RunFolderError
from ..settings import AUTO
from .manifest import Manifest, fixed_settings, refuse_other_settings
from .store import SoftLabelStore


def student_settings(store: SoftLabelStore, recipe: str | None, changes: dict[str, Any]) -> Config:
    """The recipe with `changes`, and with the views and the teacher of the labels.

    recipe: None takes the labels' own; another one gives loss and schedule only. Not asked for
    otherwise, a run takes as many epochs as are stored. Raises DeitkitError, naming the setting,
    for a change that contradicts the labels or that they cannot serve.
    """
    folder, manifest = store.folder, store.manifest
    refuse_other_settings(folder, manifest, changes)
    start = recipes.get(recipe or manifest.config.recipe)
    _say_what_differs(folder, manifest, start)
    settings = fixed_settings(manifest) | {"train.epochs": store.epochs()} | changes
    if manifest.format.kind == "hard":
        settings.setdefault("distillation.mode", "hard")
    start.override(changes).check()
    wanted = start.override(settings)
    if wanted.distillation.mode == "none":
        raise RunFolderError(
            "distillation.mode none uses no labels; leave out --soft-labels or choose soft or hard"
        )
    if manifest.format.kind == "hard" and wanted.distillation.mode != "hard":
        raise RunFolderError(
            f"{folder} holds hard labels, which cannot serve distillation.mode {wanted.distillation.mode}; "
            "give --distillation hard, or label again with --top-k"
        )
    if wanted.train.epochs == AUTO:
        wanted = wanted.override({"train.epochs": store.epochs()})
    refuse_too_many_epochs(store, wanted)
    refuse_smaller_views(wanted)
    return _without_guidance(wanted, "distillation.feature_weight" in changes)


def refuse_smaller_views(config: Config) -> None:
    """Raises DeitkitError where views start smaller: labels would have to know how long a student trains."""
    if config.train.start_size is not None:
        raise RunFolderError(
            "train.start_size needs a live teacher: stored labels are of views of one size; "
            "leave it out, or train without --soft-labels"
        )


def epochs_read(config: Config) -> int:
    """Stored epochs that a run needs: those in which it reads answers, and one at least."""
    assert config.train.epochs != AUTO, "a run from soft labels has as many epochs as are stored"
    return max(1, config.distillation.distilled_epochs(max(1, config.train.epochs)))


def refuse_too_many_epochs(store: SoftLabelStore, config: Config) -> None:
    """Raises DeitkitError, saying how to append, where fewer epochs are stored than the run reads."""
    stored, epochs, read = store.epochs(), max(1, config.train.epochs), epochs_read(config)
    if read > stored:
        part = "" if read == epochs else f"the first {read} of "
        raise RunFolderError(
            f"{store.folder} holds labels for {stored} whole epochs, and {part}{epochs} are asked for; "
            f"append with: deitkit label DATA --epochs {read} --out {store.folder}"
        )


def _without_guidance(config: Config, asked: bool) -> Config:
    if config.distillation.feature_weight == 0:
        return config
    if asked:
        raise RunFolderError(
            f"distillation.feature_weight {config.distillation.feature_weight:g} needs the feature maps of a "
            "live teacher; set it to 0, or train without --soft-labels"
        )
    log.info("feature guidance is off: it needs the feature maps of a live teacher, and labels hold none")
    return config.override({"distillation.feature_weight": 0.0})


def _say_what_differs(folder: Path, manifest: Manifest, start: Config) -> None:
    """Names the settings in which the views are not those of another recipe."""
    if start.recipe == manifest.config.recipe:
        return
    fixed = start.override(fixed_settings(manifest))
    different = [k for k in start.differences(fixed) if k.startswith(("augment.", "data.repeats", "train."))]
    if different:
        log.info(f"as in {folder}, not as in recipe {start.recipe}: {', '.join(different)}")
