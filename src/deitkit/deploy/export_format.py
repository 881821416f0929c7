"""Export formats: what one consists of, and their registry.

To add a format, write a module in `export_formats/` with a subclass of `ExportFormat` decorated by
`register`. `deitkit export`, its help, its test of agreement and the sample code follow from its attributes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from ..classifier import Classifier
from ..config import resized_side
from ..errors import DependencyError, SettingError
from ..inference.backends import Backend
from ..inference.joint_classifier import ClassifierGraph
from ..inference.raw_image import RawImageGraph
from .model_card import ModelCard

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class ExportJob:
    """What an export is made of.

    card: reads the model card, which a web page shows. precision: fp16 is of the weights, int8 also of the
    products with them. batch: images at a time, None for any number. raw: the graph takes one image of any
    size, see `inference.raw_image`. calibration: inputs of the graph to quantise it by. runtime: where a web
    page's runtime is; see `web_runtime.web_runtime`.
    """

    classifier: Classifier
    card: Callable[[], ModelCard]
    precision: Precision = "fp32"
    batch: int | None = None
    raw: bool = False
    calibration: Callable[[], Iterable[Tensor]] | None = None
    runtime: str | None = None

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width that an image covers before the centre is cut out."""
        height, width = self.classifier.image_size
        return resized_side(height, self.classifier.crop), resized_side(width, self.classifier.crop)


class ExportFormat(ABC):
    """A format that a classifier is written in, and the runtime that opens it.

    The module must not import its packages at the top: all formats are imported together.
    """

    name: ClassVar[str]
    about: ClassVar[str]  # what runs it, a phrase
    suffix: ClassVar[str]  # of the file or folder; empty for a folder of any name
    is_folder: ClassVar[bool] = False
    extra: ClassVar[str | None] = None  # of deitkit, which installs what it needs
    packages: ClassVar[tuple[str, ...]] = ()  # that it imports
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    batches: ClassVar[Literal["any", "fixed", "one"]] = "fixed"  # how many images at a time
    takes_raw: ClassVar[bool] = False  # whether preprocessing fits into the graph
    brings_runtime: ClassVar[bool] = False  # that `ExportJob.runtime` names
    runs_here: ClassVar[bool] = True  # whether there is a runtime for `open` outside of one maker's systems

    def require(self) -> None:
        """Raises DependencyError if a package is missing."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise DependencyError(
                    f"{package} is not installed, and {self.name} needs it; "
                    f'install it with: pip install "deitkit[{self.extra}]"'
                )

    def graph(self, job: ExportJob) -> ClassifierGraph:
        """The classifier as the graph that is written."""
        graph = job.classifier.as_graph()
        return RawImageGraph(graph, job.classifier.image_size, job.classifier.crop) if job.raw else graph

    @abstractmethod
    def write(self, job: ExportJob, file: Path) -> None:
        """Writes the file, and others beside it that belong to it; or fills the folder."""

    @abstractmethod
    def open(self, file: Path) -> Backend:
        """The format's own runtime on a file that `write` wrote."""

    @abstractmethod
    def sample(self, name: str, job: ExportJob) -> dict[str, str]:
        """Short programs that use the file `name`, by file name."""


FORMATS: dict[str, ExportFormat] = {}
_Format = TypeVar("_Format", bound=type[ExportFormat])


def register(export_format: _Format) -> _Format:
    """Adds a format, as the decorator of its class."""
    FORMATS[export_format.name] = export_format()
    return export_format


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what converters print and log for their developers."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def check_options(export_format: ExportFormat, job: ExportJob) -> None:
    """Raises SettingError for what the format does not have."""
    name = export_format.name
    if job.precision not in export_format.precisions:
        have = ", ".join(export_format.precisions)
        raise SettingError(f"{name} has no {job.precision} here; choose --precision of {have}")
    if export_format.batches == "one" and job.batch != 1:
        raise SettingError(f"{name} takes one image at a time; leave out --batch")
    if job.raw and not export_format.takes_raw:
        able = ", ".join(f.name for f in FORMATS.values() if f.takes_raw)
        raise SettingError(f"--input uint8 is for {able}; leave it out")
    if job.raw and job.batch not in (None, 1):
        raise SettingError("--input uint8 takes one image of any size at a time; leave out --batch")
    if job.runtime is not None and not export_format.brings_runtime:
        raise SettingError("--runtime is for --to web; leave it out")


def metadata(classifier: Classifier, *, raw: bool = False) -> dict[str, str]:
    """The metadata of an exported file, as JSON texts."""
    mean, std = classifier.normalisation()
    takes = "RGB, float in [0, 1], (B, 3, H, W); normalised inside the graph"
    if raw:
        takes = "RGB, uint8, (H, W, 3) of any size; resized, cropped and normalised inside the graph"
    return {
        # A folder's name may be no UTF-8; its bytes become escapes of JSON.
        "classes": json.dumps(list(classifier.classes), ensure_ascii=False)
        .encode("utf-8", "backslashreplace")
        .decode(),
        "task": json.dumps(classifier.task),
        "calibration": json.dumps(
            {
                "temperature": classifier.calibration.temperature,  # applied to `probabilities`
                "head_temperatures": classifier.calibration.head_temperatures,  # to divide logits by
                "familiar_up_to": classifier.calibration.familiar_up_to,  # of `unfamiliarity`
            }
        ),
        "preprocessing": json.dumps(
            {
                "resize": [resized_side(side, classifier.crop) for side in classifier.image_size],
                "image_size": list(classifier.image_size),
                "crop": classifier.crop,
                "interpolation": "bicubic",
                "input": takes,
                "mean": mean,
                "std": std,
            }
        ),
    }


def write_facts(job: ExportJob, graph: ClassifierGraph, file: Path) -> None:
    """Writes the metadata, with the names of the outputs, beside `file`: for formats without metadata."""
    about = {key: json.loads(text) for key, text in metadata(job.classifier, raw=job.raw).items()}
    text = json.dumps(about | {"outputs": list(graph.output_names)}, indent=1)
    file.with_name(f"{file.name}.json").write_text(text, encoding="utf-8")
