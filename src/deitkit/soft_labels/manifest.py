"""What stored labels are labels of: all that decides a view and its teacher's answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import Config, flatten
from ..data.table import is_table
from ..errors import RunFolderError
from ..io import read_json, write_json

_VERSION = 1  # of the folder's layout and the entries' encoding
FILE = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Written once, before the first label; every shard names its fingerprint."""

    settings: dict[str, Any]  # Config.to_dict() with every automatic choice made
    data: str  # ImageSet.fingerprint(times=False) of the training images
    images: int  # how many, those without a label included
    unlabeled: int  # how many of these, at the end, have no label
    classes: tuple[str, ...]
    labels: dict[str, Any]  # Codec.facts()
    shard_batches: int  # planned batches in one file
    teacher: dict[str, Any]  # what the teacher is and how it did on the validation images
    teacher_sha256: str  # of its fitted weights
    versions: dict[str, str]  # of the libraries that make views
    version: int = _VERSION

    @cached_property
    def config(self) -> Config:
        return Config.from_dict(self.settings)

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def fingerprint(self) -> str:
        """A hash of everything but how the teacher did, whose speed is never twice the same."""
        known = {k: v for k, v in self.to_dict().items() if k != "teacher"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, self.to_dict())

    def refuse_other_data(
        self, folder: Path, fingerprint: str, images: int, classes: tuple[str, ...]
    ) -> None:
        """Raises DeitkitError where the training images are not the labelled ones."""
        for what, mine, theirs in (
            ("classes", list(self.classes), list(classes)),
            ("training images", self.images, images),
            ("names or sizes of the training images", self.data, fingerprint),
        ):
            if mine != theirs:
                raise RunFolderError(
                    f"{folder} holds labels of other data: the {what} were {_short(mine)} "
                    f"and are now {_short(theirs)}; give the data that was labelled, or label this one"
                )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a label folder; raises DeitkitError where there is none that can be read."""
    if folder.is_file() or is_table(folder):
        raise RunFolderError(
            f"{folder} holds no answers of a teacher, which --soft-labels takes; a labels.csv is found by "
            "itself in the folder of images that is trained on"
        )
    if not (folder / FILE).exists():
        raise RunFolderError(
            f"{folder} holds no labels (there is no {FILE}); make them with: "
            f"deitkit label DATA --epochs N --out {folder}"
        )
    try:
        saved = read_json(folder / FILE)
        if saved["version"] != _VERSION:
            raise ValueError(f"its version is {saved['version']}, this deitkit reads {_VERSION}")
        return Manifest(**saved | {"classes": tuple(saved["classes"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"the manifest {folder / FILE} cannot be read ({error}); label again into a new folder"
        ) from None


# No view and no answer depends on these; all other settings of their sections decide them.
_FREE = {"data.eval_crop", "data.cache_gb", "data.workers", "teacher.backend", "teacher.soft_labels"}
_FIXED = ("student.image_size", "train.batch_size", "train.seed")


def fixed_settings(manifest: Manifest) -> dict[str, Any]:
    """The settings, as "section.key", that a stored label depends on."""
    return settings_of_labels(manifest.settings)


def settings_of_labels(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the views and the teacher's answers, of the settings that `Config.to_dict` gives."""
    return {
        key: value
        for key, value in flatten(settings).items()
        if key in _FIXED or (key.startswith(("data.", "augment.", "teacher.")) and key not in _FREE)
    }


def refuse_other_settings(folder: Path, manifest: Manifest, changes: dict[str, Any]) -> None:
    """Raises DeitkitError for the first of `changes` that contradicts the labels, naming it."""
    fixed = fixed_settings(manifest)
    asked = flatten(Config().override(changes).to_dict())
    # An epoch's views, which no batch exceeds: the same command may be given again.
    views = (manifest.images - manifest.unlabeled) * manifest.config.data.repeats
    asked["train.batch_size"] = min(asked["train.batch_size"], max(2, views))
    for key in changes:
        moved = key == "data.unlabeled"  # a folder may move: its images are compared
        automatic = key == "student.image_size" and asked[key] is None
        if key in fixed and not moved and not automatic and asked[key] != fixed[key]:
            raise RunFolderError(
                f"the labels in {folder} were made with {key} {fixed[key]}, and {asked[key]} is asked for; "
                "leave it out, or label again into another folder"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
