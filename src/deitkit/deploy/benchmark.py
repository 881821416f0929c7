"""`deitkit bench`: a model's latency and memory on each backend, and what int8 costs in accuracy."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from .. import log
from ..classifier import Classifier, ModelChoice, TeacherClassifier, load_folder, model_folder
from ..config import BackendName
from ..data.image_set import evenly_spread
from ..data.splits import Splits
from ..errors import DeitkitError, SettingError
from ..evaluation.evaluate import evaluate_backends
from ..evaluation.run_images import calibration_views, pixel_batches, run_splits
from ..evaluation.side_by_side import Turns, take_turns
from ..inference.backends import (
    CONVERTED,
    Backend,
    installed,
    open_file,
    require,
    write_openvino,
)
from ..inference.int8 import quantise
from ..inference.onnx_graph import missing_for_onnx, to_onnx
from ..models.deit import VARIANTS, create_model
from ..preprocessing import Preprocessing
from ..tasks import SCORES, Score
from ..weights import export as export_weights
from .export_format import metadata

BACKENDS = tuple(name for name in get_args(BackendName) if name != "auto")
_MOST_MEASURED = 1000  # validation images, spread over the set: enough to see the points that int8 loses
_RANDOM = Preprocessing((224, 224), mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0)


@dataclass(frozen=True)
class Side:
    """One way to run the model; file: its ONNX graph, None for PyTorch."""

    backend: str
    precision: str
    file: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class BenchRow:
    """One way to run a model at one batch size. score: by the task's metric, in percent; None if unknown."""

    backend: str
    precision: str
    batch: int
    merge: int
    turns: Turns
    metric: Score
    score: float | None

    def to_dict(self) -> dict[str, Any]:
        """The row as `deitkit bench --json` prints it."""
        about = {"backend": self.backend, "precision": self.precision, "batch": self.batch}
        return about | {"merge": self.merge} | self.turns.to_dict() | {self.metric.key: self.score}


def bench(
    target: str | Path,
    *,
    model: ModelChoice = "recommended",
    data: str | Path | None = None,
    batches: Sequence[int] = (1, 32),
    backends: Sequence[str] | None = None,
    merge: int = 0,
    device: str = "auto",
    rounds: int = 5,
    seconds: float = 1.0,
) -> list[BenchRow]:
    """One row per backend, precision and batch size: latency, images/s, peak memory, top-1 (or mAP).

    A backend that fails keeps the rows of the batch sizes before, and has no score.

    target: a run folder, a fitted teacher's folder, or a variant's name (random weights, 224 pixels). model:
    which model of a run. data: images whose training split calibrates int8 and whose validation split gives
    the score; None takes the run's own. backends: None for all that are installed. rounds, seconds: see
    `evaluation.side_by_side.take_turns`. Raises a DeitkitError for anything the caller can fix.
    """
    chosen, target = _check_backends(backends), str(target)
    data = Path(data) if data is not None else None
    with tempfile.TemporaryDirectory() as folder:
        with log.activity("loading the model"):
            run = model_folder(_run_folder(target, Path(folder)), model)
            classifier = load_folder(run, device=device, backend="pytorch", merge=merge)
            splits = _images(run, classifier, data, random=target in VARIANTS)
            sides = _sides(classifier, chosen, splits, Path(folder), random=target in VARIANTS)
        common = {
            "device": classifier.device.type,
            "image_size": classifier.image_size,
            "run": str(run),
            "merge": merge,
        }
        commands = {side.name: _command(side, common) for side in sides}
        with log.progress_bar("measuring", rounds * len(batches) * len(sides)) as advance:
            found, failed = take_turns(
                commands, batches, rounds=rounds, seconds=seconds, on_turn=lambda: advance(1)
            )
        _refuse_if_none(found, failed)
        for name, why in failed.items():
            lost = min(batch for batch in batches if (name, batch) not in found)
            log.info(f"{name} is left out from batch {lost} on: {why}")
        whole = [side for side in sides if side.name not in failed]  # a failed one might end this process
        scores = _accuracies(classifier, whole, splits) if splits is not None and whole else {}
    metric = SCORES[classifier.task]
    return [
        BenchRow(
            side.backend, side.precision, batch, merge, found[side.name, batch], metric, scores.get(side.name)
        )
        for batch in sorted(batches)
        for side in sides
        if (side.name, batch) in found
    ]


def _check_backends(backends: Sequence[str] | None) -> list[str]:
    if backends is None:
        return [name for name in BACKENDS if installed(name)]
    for name in backends:
        if name not in BACKENDS:
            raise SettingError(f"there is no backend {name!r}; choose all, or some of {', '.join(BACKENDS)}")
        require(name)
    return list(backends)


def _run_folder(target: str, folder: Path) -> Path:
    """The run's folder, or a new one with a random model of that name."""
    if target not in VARIANTS:
        if not Path(target).is_dir():
            raise SettingError(f"there is no run {target}; give a run's folder, or {', '.join(VARIANTS)}")
        return Path(target)
    torch.manual_seed(0)
    model = create_model(target, num_classes=1000)
    export_weights(model, folder / "random", "deitkit", _RANDOM, [str(k) for k in range(1000)])
    return folder / "random"


def _refuse_if_none(found: Mapping[Any, Any], failed: Mapping[str, str]) -> None:
    """Raises SettingError if no side could be measured."""
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise SettingError(f"nothing could be measured ({reasons}); choose other --backends")


def _images(run: Path, classifier: Classifier, data: Path | None, *, random: bool) -> Splits | None:
    """The images to measure accuracy on; None for a random model, and if the run's images are gone."""
    if random:
        if data is not None:
            raise SettingError("--data measures a run's accuracy, and random weights have none; leave it out")
        return None
    try:
        return run_splits(run, classifier, data)
    except DeitkitError as error:
        if data is not None:
            raise
        log.info(f"without accuracy and int8: {error}")
        return None


def _sides(
    classifier: Classifier, backends: Sequence[str], splits: Splits | None, folder: Path, *, random: bool
) -> list[Side]:
    """What there is to measure; writes the ONNX graphs that the sides share."""
    if classifier.device.type != "cpu":
        names = [name for name in backends if name not in CONVERTED]
        if not names:
            raise SettingError(f"{backends[0]} is measured on the CPU only; add --device cpu")
        return [Side(name, precision) for name in names for precision in ("fp32", "bf16")]
    sides = [Side(name, "fp32") for name in backends if name not in CONVERTED]
    others = [name for name in backends if name in CONVERTED]
    if not others:
        return sides
    graph, size = classifier.as_graph(), classifier.image_size
    missing = missing_for_onnx()
    if missing is not None and "openvino" in others:
        log.info(f'without ONNX Runtime and int8: {missing} is not installed; pip install "deitkit[onnx]"')
        write_openvino(graph, size, folder / "fp32.xml")
        return [*sides, Side("openvino", "fp32", folder / "fp32.xml")]
    log.info("writing the ONNX graphs")
    models = {"fp32": to_onnx(graph, size, graph.output_names, metadata(classifier))}
    if isinstance(classifier, TeacherClassifier):
        pass  # its convolutions would stay float
    elif splits is not None:
        models["int8"] = quantise(models["fp32"], calibration_views(classifier, splits.train))
    elif random:  # int8's speed does not depend on what it was calibrated on
        models["int8"] = quantise(models["fp32"], _noise(size))
    for precision, model in models.items():
        file = folder / f"{precision}.onnx"
        file.write_bytes(model.SerializeToString())
        sides += [Side(name, precision, file) for name in others]
    return sides


def _noise(size: tuple[int, int]) -> Iterator[Tensor]:
    yield torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0))


def _command(side: Side, common: dict[str, Any]) -> list[str]:
    spec = common | {"backend": side.backend, "precision": side.precision}
    spec |= {"file": str(side.file)} if side.file else {}
    return [sys.executable, "-m", "deitkit.deploy.bench_worker", json.dumps(spec)]


def _accuracies(classifier: Classifier, sides: Sequence[Side], splits: Splits) -> dict[str, float]:
    """Top-1 or mAP in percent; compiled PyTorch and bf16 are left out, which have eager PyTorch's weights."""
    backends: dict[str, Backend] = {}
    for side in sides:
        if side.backend == "pytorch" and side.precision == "fp32":
            backends[side.name] = classifier.backend
        elif side.file is not None:
            backends[side.name] = open_file(side.backend, side.file)
    images = splits.val.subset(evenly_spread(len(splits.val), _MOST_MEASURED))
    with log.progress_bar("accuracy", len(images)) as advance:
        return evaluate_backends(backends, pixel_batches(classifier, images), advance)
