"""The manifest of stored soft labels: everything that determines the views and the teacher's outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import RENAMED, Config, ResolvedConfig, flatten
from ..data.sampler import SAMPLER_POWERS
from ..data.table import is_table
from ..errors import DeitkitError, RunFolderError
from ..io import parse_json, read_json, write_json
from ..settings import AUTO
from .codec import SoftLabelFormat

FILE = "manifest.json"
_VERSION = 1  # of the layout of the folder and the encoding
# Names of version 0.1, which the file keeps: shards are bound to its fingerprint.
_FILE_KEYS = {"data_fingerprint": "data", "format": "labels"}
_MOST_VIEWS = 1 << 27  # per epoch; a larger number in a file is a mistake, and would fill the memory

# Neither a view nor the teacher's output depends on these settings. All others in their sections count.
_FREE = {
    "data.eval_crop",
    "data.max_broken",
    "data.cache_gb",
    "data.workers",
    "teacher.backend",
    "teacher.soft_labels",
}
_FIXED = ("student.image_size", "train.batch_size", "train.seed")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Written once, before the first soft labels. Every shard carries its fingerprint.

    settings: the resolved settings, as `Config.to_dict` gave them when the folder was made.
    data_fingerprint: `ImageSet.fingerprint(times=False)` of the training images. images: their number,
    including unlabelled ones. unlabeled: the number of these, which come last. shard_batches: planned batches
    per shard. teacher: its name and its results on the validation images. teacher_sha256: of the folder that
    the teacher is saved in. versions: of the libraries that make views.
    """

    settings: dict[str, Any]
    data_fingerprint: str
    images: int
    unlabeled: int
    classes: tuple[str, ...]
    format: SoftLabelFormat
    shard_batches: int
    teacher: dict[str, Any]
    teacher_sha256: str
    versions: dict[str, str]
    version: int = _VERSION

    @cached_property
    def config(self) -> ResolvedConfig:
        return ResolvedConfig.read(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """As the file has it."""
        plain = dataclasses.asdict(self) | {"format": self.format.to_dict()}
        named = {_FILE_KEYS.get(key, key): value for key, value in plain.items()}
        content: dict[str, Any] = json.loads(json.dumps(named))
        return content

    def fingerprint(self) -> str:
        """A hash of everything but the teacher's results, since its speed varies."""
        known = {k: v for k, v in self.to_dict().items() if k != "teacher"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, self.to_dict())

    def refuse_other_data(
        self, folder: Path, fingerprint: str, images: int, classes: tuple[str, ...]
    ) -> None:
        """Raises RunFolderError if the training images are not those of the soft labels."""
        for what, stored, found in (
            ("classes", list(self.classes), list(classes)),
            ("training images", self.images, images),
            ("names or sizes of the training images", self.data_fingerprint, fingerprint),
        ):
            if stored != found:
                raise RunFolderError(
                    f"{folder} has soft labels of other data: the {what} were {_short(stored)} "
                    f"and are now {_short(found)}; give the same data, or run deitkit label on this one"
                )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of soft labels. Raises RunFolderError if it is missing or damaged."""
    if folder.is_file() or is_table(folder):
        raise RunFolderError(
            f"{folder} has no soft labels, which --soft-labels takes; a labels.csv is found by "
            "itself in the folder of images"
        )
    path = folder / FILE
    if not path.exists():
        raise RunFolderError(
            f"{folder} has no soft labels (there is no {FILE}); make them with: "
            f"deitkit label DATA --epochs N --out {folder}"
        )
    try:
        return _from_file(read_json(path))
    except (OSError, ValueError, DeitkitError) as error:
        [problem, *_] = str(error).splitlines() or [type(error).__name__]
        raise RunFolderError(
            f"the manifest {path} cannot be read ({problem}); run deitkit label into a new folder"
        ) from None


def _from_file(saved: Any) -> Manifest:
    """The inverse of `Manifest.to_dict`. Raises ValueError or DeitkitError if an entry is wrong."""
    attributes = {key: name for name, key in _FILE_KEYS.items()}
    if isinstance(saved, dict):
        if saved.get("version") != _VERSION:
            raise ValueError(f"its version is {saved.get('version')}, and this deitkit reads {_VERSION}")
        saved = {attributes.get(key, key): value for key, value in saved.items()}
    manifest: Manifest = parse_json(Manifest, saved)
    try:
        Config.from_dict(manifest.settings).check()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"settings: {type(error).__name__}: {error}") from None
    for entry, right in _rules(manifest).items():
        if not right:
            raise ValueError(f"{entry} is out of range")
    return manifest


def _rules(manifest: Manifest) -> dict[str, bool]:
    """What has to hold for each entry, by its name in the file."""
    kept, num_classes, config = manifest.format, len(manifest.classes), manifest.config
    top_k = kept.k is not None and kept.temperature is not None
    return {
        "classes": 0 < num_classes == len(set(manifest.classes)),
        "images": 0 < manifest.images * config.data.repeats <= _MOST_VIEWS,
        "unlabeled": 0 <= manifest.unlabeled < manifest.images,
        "labels": kept.kind == "hard"
        or (top_k and 1 <= (kept.k or 0) <= num_classes and 0 < (kept.temperature or 0) < 1e6),
        "shard_batches": manifest.shard_batches >= 1,
    }


def fixed_settings(manifest: Manifest) -> dict[str, Any]:
    """The settings that the soft labels depend on, as "section.key", under today's names."""
    return view_settings(manifest.config.to_dict())


def view_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `Config.to_dict` that determine views and teacher outputs, as "section.key"."""
    return {
        key: value
        for key, value in flatten(dict(settings)).items()
        if key in _FIXED or (key.startswith(("data.", "augment.", "teacher.")) and key not in _FREE)
    }


def refuse_other_settings(folder: Path, manifest: Manifest, changes: Mapping[str, Any]) -> None:
    """Raises RunFolderError, naming the setting, if one of `changes` contradicts the soft labels."""
    _refuse_other_sampler(folder, manifest, changes)
    fixed = fixed_settings(manifest)
    wanted = flatten(Config().override(dict(changes)).to_dict())
    # No batch is larger than an epoch, so the same command may be given again with a larger batch size.
    views = (manifest.images - manifest.unlabeled) * manifest.config.data.repeats
    wanted["train.batch_size"] = min(wanted["train.batch_size"], max(2, views))
    for key in (RENAMED.get(key, key) for key in changes):
        moved = key == "data.unlabeled"  # the folder may have moved; its images are compared instead
        automatic = key == "student.image_size" and wanted[key] == AUTO
        if key in fixed and not moved and not automatic and wanted[key] != fixed[key]:
            raise RunFolderError(
                f"the soft labels in {folder} were made with {key} {fixed[key]}, and {wanted[key]} is asked "
                "for; leave it out, or run deitkit label into another folder"
            )


def _refuse_other_sampler(folder: Path, manifest: Manifest, changes: Mapping[str, Any]) -> None:
    """Raises RunFolderError if `changes` asks for classes sampled otherwise than for the soft labels.

    What else `train.balance` may be changes no view.
    """
    stored, wanted = manifest.config.train.balance, changes.get("train.balance", AUTO)
    if wanted != AUTO and wanted != stored and {stored, wanted} & set(SAMPLER_POWERS):
        raise RunFolderError(
            f"the soft labels in {folder} were made with train.balance {stored}, and {wanted} draws other "
            "images; leave it out, or run deitkit label into another folder"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
