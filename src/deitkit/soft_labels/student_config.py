"""Settings of a student that learns from stored soft labels, which determine the views."""

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
    """The recipe with `changes`, and the views and teacher of the soft labels.

    recipe: None takes the recipe of the soft labels; another one provides loss and schedule only. The number
    of epochs is by default the number stored. Raises a DeitkitError, naming the setting, for a change that
    contradicts the soft labels.
    """
    folder, manifest = store.folder, store.manifest
    refuse_other_settings(folder, manifest, changes)
    start = recipes.get(recipe or manifest.config.recipe)
    _log_differences(folder, manifest, start)
    like_stored = {"train.epochs": store.epochs(), "train.balance": manifest.config.train.balance}
    asked = {key: value for key, value in changes.items() if (key, value) != ("train.balance", AUTO)}
    settings = fixed_settings(manifest) | like_stored | asked
    if manifest.format.kind == "hard":
        settings.setdefault("distillation.mode", "hard")
    start.override(changes).check()
    wanted = start.override(settings)
    if wanted.distillation.mode == "none":
        raise RunFolderError(
            "distillation.mode none uses no soft labels; leave out --soft-labels or choose soft or hard"
        )
    if manifest.format.kind == "hard" and wanted.distillation.mode != "hard":
        raise RunFolderError(
            f"{folder} has hard labels, which distillation.mode {wanted.distillation.mode} cannot use; "
            "give --distillation hard, or run deitkit label with --top-k"
        )
    if wanted.train.epochs == AUTO:
        wanted = wanted.override({"train.epochs": store.epochs()})
    refuse_too_many_epochs(store, wanted)
    refuse_smaller_views(wanted)
    return _without_features(wanted, "distillation.feature_weight" in changes)


def refuse_smaller_views(config: Config) -> None:
    """Raises RunFolderError for views that start smaller: they depend on the length of training."""
    if config.train.start_size is not None:
        raise RunFolderError(
            "train.start_size needs a live teacher, because soft labels are stored for views of one size; "
            "leave it out, or train without --soft-labels"
        )


def epochs_read(config: Config) -> int:
    """Stored epochs that a run needs: those with distillation, at least one."""
    assert config.train.epochs != AUTO, "a run from soft labels has as many epochs as are stored"
    return max(1, config.distillation.distilled_epochs(max(1, config.train.epochs)))


def refuse_too_many_epochs(store: SoftLabelStore, config: Config) -> None:
    """Raises RunFolderError, with the command that appends, if the run needs more epochs than are stored."""
    stored, epochs, read = store.epochs(), max(1, config.train.epochs), epochs_read(config)
    if read > stored:
        part = "" if read == epochs else f"the first {read} of "
        raise RunFolderError(
            f"{store.folder} has soft labels for {stored} epochs, and {part}{epochs} are needed; "
            f"append with: deitkit label DATA --epochs {read} --out {store.folder}"
        )


def _without_features(config: Config, asked: bool) -> Config:
    if config.distillation.feature_weight == 0:
        return config
    if asked:
        raise RunFolderError(
            f"distillation.feature_weight {config.distillation.feature_weight:g} needs a live "
            "teacher; set it to 0, or train without --soft-labels"
        )
    log.info("feature distillation is off: it needs a live teacher")
    return config.override({"distillation.feature_weight": 0.0})


def _log_differences(folder: Path, manifest: Manifest, start: Config) -> None:
    """Logs the settings of the views that differ from the recipe."""
    if start.recipe == manifest.config.recipe:
        return
    fixed = start.override(fixed_settings(manifest))
    of_views = ("augment.", "data.repeats", "data.views", "train.")
    different = [k for k in start.differences(fixed) if k.startswith(of_views)]
    if different:
        log.info(f"taken from {folder} instead of recipe {start.recipe}: {', '.join(different)}")
