"""Formats of weights: what one consists of, their registry, and `export`.

To add a format, write a module in `formats/` with a subclass of `WeightsFormat` decorated by `register`.
`read`, `export`, `deitkit convert` and its help follow. The module's name is the format's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from ..errors import WeightsError
from ..io import create_folder, read_json
from ..models import DeiT
from ..preprocessing import Preprocessing
from ..run_schema import CalibrationInfo
from ..tasks import Task


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says about its model besides the tensors; None if it does not say.

    image_size, patch_size: height, width in pixels. mean, std: of the three channels, in [0, 1].
    interpolation: a name of Pillow's. crop: share of the shorter side that the centre crop keeps.
    calibration: of a run, the temperatures of its probabilities. ignores_aspect: images are resized to a
    fixed size, whatever their aspect ratio, which deitkit never does.
    """

    image_size: tuple[int, int] | None = None
    patch_size: tuple[int, int] | None = None
    num_heads: int | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bicubic"
    crop: float = 1.0
    task: Task = "multiclass"
    calibration: CalibrationInfo = field(default_factory=CalibrationInfo)
    ignores_aspect: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A model and what another project has to know to use it. classes: in the order of the logits."""

    model: DeiT
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    task: Task = "multiclass"

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict, on the CPU."""
        return {k: v.detach().cpu() for k, v in self.model.state_dict().items()}


class WeightsFormat(ABC):
    """A project's files of weights: how they are recognised and read, and how they are written."""

    name: ClassVar[str]
    about: ClassVar[str]  # the files, and how the project loads them
    has_hybrids: ClassVar[bool] = False

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether `config` is a config.json as this project writes it."""
        return False

    def info(self, config: Mapping[str, Any], folder: Path) -> CheckpointInfo:
        """What `config`, and the files in its folder, say about the model.

        May raise KeyError, TypeError, ValueError or AttributeError for a config with other values.
        """
        return CheckpointInfo()

    def published_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the project's keys to the published ones; leaves other keys as they are."""
        return state

    @abstractmethod
    def write(self, exported: ExportedModel, folder: Path) -> list[Path]:
        """Writes the model into an existing folder and returns the files, the weights first."""


FORMATS: dict[str, WeightsFormat] = {}
_Format = TypeVar("_Format", bound=type[WeightsFormat])


def register(kind: _Format) -> _Format:
    """Adds a format, as the decorator of its class."""
    FORMATS[kind.name] = kind()
    return kind


def info_beside(weights: Path) -> CheckpointInfo:
    """What config.json, in the folder of a weights file, says about the model.

    Raises WeightsError if it is damaged.
    """
    path = weights.parent / "config.json"
    config = read_config(path)
    for kind in FORMATS.values():
        if kind.describes(config):
            try:
                return kind.info(config, path.parent)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
                raise WeightsError(
                    f"{path} does not describe a model as {kind.name} does; "
                    "correct it, or move the weights to another folder"
                ) from None
    return CheckpointInfo()


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises WeightsError if it is not JSON."""
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError:
        raise WeightsError(f"{path} is not JSON; correct it, or move the weights to another folder") from None
    return found if isinstance(found, dict) else {}


def export(
    model: DeiT,
    destination: Path,
    to: str,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    task: Task = "multiclass",
) -> list[Path]:
    """Writes the model into the folder `destination` in the format `to`, a key of `FORMATS`.

    classes: names in the order of the logits. Returns the files, the weights first. timm, transformers and
    the official code evaluate `joint_logits` of a distilled model. Raises WeightsError for an unknown format,
    or if there is not one name per logit.

        export(model, Path("flowers-timm"), "timm", info.preprocessing, info.classes)
    """
    if len(classes) != model.num_classes:
        raise WeightsError(
            f"there are {len(classes)} class names for {model.num_classes} outputs; give one name per output"
        )
    if to not in FORMATS:
        raise WeightsError(f"cannot export to {to!r}; choose one of {', '.join(FORMATS)}")
    if model.stem is not None and not FORMATS[to].has_hybrids:
        raise WeightsError(
            f"{to} has no hybrid students; deitkit export writes formats that need no deitkit, such as onnx"
        )
    create_folder(destination)
    exported = ExportedModel(model=model, preprocessing=preprocessing, classes=tuple(classes), task=task)
    return FORMATS[to].write(exported, destination)


def pair(size: Any) -> tuple[int, int] | None:
    """A side or (height, width) as (height, width); None if there is none."""
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if size else None
