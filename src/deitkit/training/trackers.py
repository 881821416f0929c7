"""Trackers of training curves, in one registry: TensorBoard, MLflow, Weights & Biases.

A tracker gets the metrics of every epoch, such as `train/loss` and `val/top1`. It writes into the run's
folder and sends nothing anywhere, unless the user's environment names a server (MLFLOW_TRACKING_URI,
WANDB_MODE). Its package is imported when it is asked for. To add one, write a class like these and register
it in `TRACKERS`.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..config import flatten
from ..errors import DependencyError
from ..io import read_json, write_json

_IDS = "trackers.json"  # by which a resumed run goes on in the same curves


class Tracker(Protocol):
    """A `Callback` that is closed after training."""

    def on_step(self, step: int, images: int) -> None: ...

    def on_epoch(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _EpochTracker:
    """Logs a line of `metrics.jsonl` as scalars: `log` gets them by name, and the step."""

    def on_step(self, step: int, images: int) -> None:
        """Does nothing: a curve over epochs is enough, and costs no time."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        found = {}
        for group, content in line.items():
            values = content if isinstance(content, dict) else {"": content}
            for name, value in values.items():
                if value is not None:
                    found[f"{group}/{name}" if name else group] = float(value)
        self.log(found, line["step"])

    def log(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError


class TensorBoardTracker(_EpochTracker):
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflowTracker(_EpochTracker):
    """A run in the file store `mlruns/`, or at MLFLOW_TRACKING_URI, in the experiment deitkit."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        # Files are enough for one run's curves; MLflow would rather have a database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        store = os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        self._client = MlflowClient(tracking_uri=store)
        run = _read_id(folder, "mlflow")
        if run is None:
            known = self._client.get_experiment_by_name("deitkit")
            experiment = known.experiment_id if known else self._client.create_experiment("deitkit")
            run = self._client.create_run(experiment, run_name=_name(folder)).info.run_id
            params = [Param(key, str(value)) for key, value in settings.items()]
            for first in range(0, len(params), 100):  # MLflow takes no more at once
                self._client.log_batch(run, params=params[first : first + 100])
            _write_id(folder, "mlflow", run)
        self._run = run

    def log(self, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandbTracker(_EpochTracker):
    """An offline run in `wandb/`, for `wandb sync`; online if WANDB_MODE says so. Project: deitkit."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run = _read_id(folder, "wandb")
        if run is None:
            run = secrets.token_hex(4)
            _write_id(folder, "wandb", run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "deitkit"),
            name=_name(folder),
            id=run,
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(settings),
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
            ),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


@dataclass(frozen=True)
class TrackerKind:
    """An entry of `TRACKERS`.

    create: opens a tracker for a run's folder and its settings by "section.key". package: what it imports.
    extra: of deitkit, which installs that. required: whether a missing package is an error.
    """

    create: Callable[[Path, Mapping[str, Any]], Tracker]
    package: str
    extra: str
    required: bool = True


TRACKERS: Mapping[str, TrackerKind] = {
    "tensorboard": TrackerKind(TensorBoardTracker, "tensorboard", "tensorboard", required=False),
    "mlflow": TrackerKind(MLflowTracker, "mlflow", "mlflow"),
    "wandb": TrackerKind(WandbTracker, "wandb", "wandb"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Raises DependencyError if the package of a tracker that was asked for is not installed.

    Unknown names are those of `Config.check`.
    """
    for name, kind in TRACKERS.items():
        if name in names and kind.required and not _installed(kind):
            raise DependencyError(
                f'{kind.package} is not installed; install it with: pip install "deitkit[{kind.extra}]", or '
                f"leave out --log {name}"
            )


@contextmanager
def trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The trackers `names` of the run in `folder`, closed at the end; those not installed are left out."""
    flat, kinds = flatten(settings), [TRACKERS[name] for name in names]
    with ExitStack() as stack:
        yield [stack.enter_context(closing(k.create(folder, flat))) for k in kinds if _installed(k)]


def _installed(kind: TrackerKind) -> bool:
    return importlib.util.find_spec(kind.package) is not None


def _name(folder: Path) -> str:
    """The run's name; a baseline's is that of its run as well."""
    path = folder.resolve()
    return path.name if path.name != "baseline" else f"{path.parent.name}/{path.name}"


def _read_id(folder: Path, tracker: str) -> str | None:
    try:
        found = read_json(folder / _IDS)
    except (OSError, ValueError):
        return None
    known = found.get(tracker) if isinstance(found, dict) else None
    return known if isinstance(known, str) else None


def _write_id(folder: Path, tracker: str, run: str) -> None:
    known = {name: id_ for name in TRACKERS if (id_ := _read_id(folder, name)) is not None}
    write_json(folder / _IDS, known | {tracker: run})
