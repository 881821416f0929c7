"""The files of a run folder, each with one typed reader.

    config.json        what the run is: student, preprocessing, classes, settings, data   read_info
    settings.json      the settings that the run was started with                         read_config
    plan.json          the number of epochs, fixed before the first                       read_plan
    split.json         which image is in which split                                      read_split
    skipped.json       images that could not be read                                      read_skipped
    duplicates.json    how many images show the same as others                            read_duplicates
    metrics.jsonl      one line per epoch                                                 read_metrics
    predictions.csv    one row per validation image                                       read_predictions
    calibration.json   what validation tells about probabilities; of each model           read_calibration
    class_means.safetensors   of the model's features; of each model                      read_class_means
    results.json       accuracies, speeds and the verdict; written last                   read_results
    model.safetensors  the student's weights                                              read_student
    checkpoints/       state of an unfinished training
    baseline/          the same student trained without a teacher, a run folder itself
    teacher/           the fitted teacher (deitkit.teachers.saved)
    candidates/        the teacher at other image sizes, a fitted teacher each
    report.html

The readers raise RunFolderError for a file that is missing or damaged, and read folders of version 0.1.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor

from .config import Config
from .errors import DeitkitError, RunFolderError, on_one_line
from .io import parse_json, read_json, read_text, write_json, write_tensors
from .models import DeiT
from .models.conv_stem import ConvStem
from .preprocessing import INTERPOLATIONS
from .run_schema import (
    CalibrationInfo,
    DuplicateCounts,
    EpochMetrics,
    ModelResult,
    PlanInfo,
    RunInfo,
    RunResults,
    SavedSplit,
    SkippedImage,
    probability_column,
)

CONFIG = "config.json"
SETTINGS = "settings.json"
PLAN = "plan.json"
SPLIT = "split.json"
SKIPPED = "skipped.json"
DUPLICATES = "duplicates.json"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.csv"
CALIBRATION = "calibration.json"  # also beside a fitted teacher
CLASS_MEANS = "class_means.safetensors"
RESULTS = "results.json"
WEIGHTS = "model.safetensors"
REPORT = "report.html"
CHECKPOINTS = "checkpoints"
BASELINE_FOLDER = "baseline"
TEACHER_FOLDER = "teacher"  # also in a soft-label folder
CANDIDATES_FOLDER = "candidates"
TEACHER_CARD = "teacher.json"  # of a fitted teacher

# Names of version 0.1.
_TASKS_V01 = {"classes": "multiclass"}
_BASELINE_V01 = "control"

_TEMPERATURES = 0.01, 100.0  # outside of these, a file is damaged
_LARGEST_SIDE = 65_536  # pixels of an image that a damaged file may ask for
T = TypeVar("T")


# Readers


def read_info(run: Path) -> RunInfo:
    """Reads `config.json`."""
    raw = _object(run / CONFIG)
    if "student" not in raw:
        raise RunFolderError(
            f"{run} is no run of deitkit but {_likeness(raw)}; "
            f"deitkit convert {run} NEW --to deitkit makes one of a DeiT or ViT"
        )
    return info_from(raw, run / CONFIG)


def info_from(raw: Mapping[str, Any], path: Path) -> RunInfo:
    """The content of a `config.json` that was read from `path`."""
    raw = dict(raw) | {"task": _task(raw)}
    if isinstance(raw.get("preprocessing"), dict):
        raw["preprocessing"] = {"crop": 1.0} | raw["preprocessing"]
    settings = raw.pop("config", None)
    info = _fields(RunInfo, raw, path)
    problem = _problem(info)
    if problem:
        raise _damaged(path, problem)
    return info if settings is None else replace(info, config=_config(settings, path))


def read_config(run: Path) -> Config:
    """Reads `settings.json`."""
    path = run / SETTINGS
    return _config(_object(path), path)


def read_plan(run: Path) -> PlanInfo:
    """Reads `plan.json`."""
    plan = _fields(PlanInfo, _object(run / PLAN), run / PLAN)
    if plan.epochs < 1:
        raise _damaged(run / PLAN, f"epochs is {plan.epochs}, not 1 or more")
    return plan


def read_split(run: Path) -> SavedSplit | None:
    """Reads `split.json` of a run, or of the run that a baseline is part of; None if there is none."""
    for path in (run / SPLIT, run.parent / SPLIT):
        if path.exists():
            return _fields(SavedSplit, _object(path), path)
    return None


def read_skipped(run: Path) -> list[SkippedImage]:
    """Reads `skipped.json`."""
    path = run / SKIPPED
    return _fields(list[SkippedImage], _json(path), path)


def read_duplicates(run: Path) -> DuplicateCounts | None:
    """Reads `duplicates.json`; None if there is none, as in runs of version 0.1."""
    path = run / DUPLICATES
    return _fields(DuplicateCounts, _object(path), path) if path.exists() else None


def read_metrics(run: Path) -> list[EpochMetrics]:
    """Reads `metrics.jsonl`; empty if there is no such file. A line that a killed process left incomplete
    is dropped."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = []
    for number, line in enumerate(_text(path).splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            lines.append(parse_json(EpochMetrics, json.loads(line), lenient=True))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"line {number}: {_reason(error)}") from None
    return lines


def read_predictions(run: Path) -> list[dict[str, str]]:
    """Reads `predictions.csv`: a dict by column for each image, with path, label and prediction at least."""
    path = run / PREDICTIONS
    try:
        reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
        rows, columns = list(reader), reader.fieldnames or []
    except csv.Error as error:
        raise _damaged(path, str(error)) from None
    missing = [name for name in ("path", "label", "prediction") if name not in columns]
    if missing:
        raise _damaged(path, f"there is no column {missing[0]!r}")
    numeric = [c for c in columns if c == "probability" or c.startswith(probability_column("")[:2])]
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise _damaged(path, f"row {number} does not have {len(columns)} cells")
        for column in numeric:
            if not _is_number(row[column]):
                raise _damaged(path, f"{column} in row {number} is {row[column]!r}, not a number")
    return rows


def read_calibration(folder: Path) -> CalibrationInfo:
    """Reads `calibration.json` of a student, baseline or teacher in its own folder.

    Without the file, as in runs of version 0.1, nothing is known and probabilities stay as they are.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return CalibrationInfo()
    found = _fields(CalibrationInfo, _object(path), path)
    low, high = _TEMPERATURES
    for temperature in (found.temperature, *found.head_temperatures.values()):
        if not low <= temperature <= high:
            raise _damaged(path, f"a temperature is {temperature:g}, not between {low:g} and {high:g}")
    return found


def read_class_means(folder: Path, calibration: CalibrationInfo) -> Tensor | None:
    """Reads `class_means.safetensors`, (C, F), of a model whose calibration goes with them; else None."""
    path = folder / CLASS_MEANS
    if calibration.familiar_up_to is None or not path.exists():
        return None
    means = _tensors(path).get("class_means")
    if means is None or means.ndim != 2 or not means.isfinite().all():
        raise _damaged(path, "it holds no class_means")
    return means.float()


def write_calibration(folder: Path, calibration: CalibrationInfo, class_means: Tensor | None = None) -> None:
    """Writes `calibration.json`, and `class_means.safetensors` if there are any, beside a model's files."""
    if class_means is not None:
        write_tensors(folder / CLASS_MEANS, {"class_means": class_means})
    write_json(folder / CALIBRATION, _listed(asdict(calibration)))


def read_results(run: Path) -> RunResults:
    """Reads `results.json` of a finished run."""
    path = run / RESULTS
    raw = _object(path)
    raw |= {"task": _task(raw), "baseline": raw.get("baseline", raw.get(_BASELINE_V01))}
    raw |= {name: _unflattened(raw[name]) for name in ("student", "teacher", "baseline") if name in raw}
    if isinstance(raw.get("candidates"), dict):
        raw["candidates"] = {name: _unflattened(model) for name, model in raw["candidates"].items()}
    results = _fields(RunResults, raw, path)
    if results.task == "multiclass" and results.confusion is not None:
        size = len(results.confusion)
        if any(len(row) != size for row in results.confusion):
            raise _damaged(path, f"confusion has no {size} columns in each row")
    return results


def results_to_json(results: RunResults) -> dict[str, Any]:
    """The content of `results.json`, with the scores of each model beside its other numbers."""
    content: dict[str, Any] = _listed(asdict(results))
    for role in ("student", "teacher", "baseline"):
        if content[role] is not None:
            content[role] = _flattened(content[role])
    content["candidates"] = {name: _flattened(model) for name, model in content["candidates"].items()}
    by_class = ("confusion", "per_class")
    return {key: value for key, value in content.items() if key not in by_class or value is not None}


def model_to_json(model: ModelResult) -> dict[str, Any]:
    """A model as `results.json` has it."""
    return _flattened(_listed(asdict(model)))


def model_from_json(raw: Any, path: Path) -> ModelResult:
    """The inverse of `model_to_json`. Raises RunFolderError, naming `path`, if it does not fit."""
    return _fields(ModelResult, _unflattened(raw), path)


def _listed(value: Any) -> Any:
    """The value with lists instead of tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _flattened(model: dict[str, Any]) -> dict[str, Any]:
    """A model with its scores, of which None is kept, beside its other entries, if those say anything."""
    scores = model.pop("scores")
    told = {key: value for key, value in model.items() if value is not None and value != ""}
    return {"name": told.pop("name"), **scores, **told}


def read_student(run: Path) -> tuple[DeiT, RunInfo]:
    """Reads the student of a finished run, on the CPU, and `config.json`.

        model, info = read_student(Path("runs/flowers"))

    Raises RunFolderError if the folder holds no DeiT, or its weights are damaged or of another model.
    """
    if holds_teacher(run):
        raise RunFolderError(f"{run} holds a teacher and no student; give the folder of a run")
    if not (run / CONFIG).exists() or not (run / WEIGHTS).exists():
        raise RunFolderError(f"{run} holds no finished run; give the --out folder of a training that ended")
    info, weights = read_info(run), _tensors(run / WEIGHTS)
    student = info.student
    if student.patch_size is None:
        raise RunFolderError(f"{run} holds a {student.name} and no DeiT; give the run of a student")
    try:
        if not _same_shape(info, weights):  # before a damaged shape allocates memory
            raise RuntimeError
        model = DeiT.from_description(asdict(student), len(info.classes))
        model.load_state_dict(weights)
        model.scale_heads(info.head_temperature)
    except (RuntimeError, DeitkitError):
        raise RunFolderError(
            f"{run / WEIGHTS} and {run / CONFIG} are of different models; train the run again"
        ) from None
    return model, info


def refuse_untrained(run: Path, info: RunInfo) -> None:
    """Raises RunFolderError for a folder that holds weights only, as `deitkit convert` writes."""
    if info.data is None:
        raise RunFolderError(f"{run} holds weights only, not a training; give a run of deitkit train")


# Folders


def baseline_folder(run: Path) -> Path:
    """The folder of a run's baseline, which version 0.1 called control/."""
    old = run / _BASELINE_V01
    return old if old.is_dir() and not (run / BASELINE_FOLDER).exists() else run / BASELINE_FOLDER


def candidate_folder(run: Path, name: str) -> Path:
    """The folder of a candidate of a run, such as "teacher-224". Raises RunFolderError if there is none."""
    folder = run / CANDIDATES_FOLDER / name
    # The name may come from a damaged or foreign results.json.
    if Path(name).name != name or not holds_teacher(folder):
        known = ["student"]
        known += ["teacher"] if holds_teacher(run / TEACHER_FOLDER) else []
        known += ["baseline"] if baseline_folder(run).is_dir() else []
        known += sorted(path.name for path in (run / CANDIDATES_FOLDER).glob("*") if holds_teacher(path))
        raise RunFolderError(f"{run} has no model {name!r}; choose {', '.join(known)}")
    return folder


def holds_teacher(folder: Path) -> bool:
    """Whether `folder` is a fitted teacher's: RUN/teacher, or what `deitkit teacher fit` wrote.

    A run stays a run, whatever a stranger put beside its files.
    """
    run = any((folder / name).exists() for name in (CONFIG, SETTINGS, WEIGHTS))
    return (folder / TEACHER_CARD).is_file() and not run


def run_of_teacher(folder: Path) -> Path | None:
    """The run whose teacher is in `folder`, fitted on the same images; None for any other teacher.

    Also None for a run that was stopped before its config.json was written. Raises RunFolderError if
    config.json is damaged.
    """
    folder = folder.resolve()  # "." and links have another parent
    if folder.name == TEACHER_FOLDER:
        run = folder.parent
    elif folder.parent.name == CANDIDATES_FOLDER:
        run = folder.parent.parent
    else:
        return None
    described = run / CONFIG
    if not described.is_file():
        return None
    try:
        saved = read_json(described)
    except ValueError:
        raise RunFolderError(
            f"{described}, beside the teacher, cannot be read; move the teacher elsewhere"
        ) from None
    return run if isinstance(saved, dict) and {"data", "student"} <= saved.keys() else None


# Validation


def _damaged(path: Path, problem: str) -> RunFolderError:
    what = on_one_line(problem)  # it may quote the file
    return RunFolderError(f"{path} cannot be read: {what}; restore the file, or train the run again")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON (line {error.lineno}, column {error.colno})"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _text(path: Path) -> str:
    return _read(read_text, path)


def _json(path: Path) -> Any:
    return _read(read_json, path)


def _read(reader: Callable[[Path], T], path: Path) -> T:
    try:
        return reader(path)
    except FileNotFoundError:
        raise RunFolderError(
            f"{path.parent} holds no finished run: there is no {path.name}; "
            "give the --out folder of a training that ended"
        ) from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _fields(kind: type[T], raw: Any, path: Path) -> T:
    try:
        return parse_json(kind, raw, lenient=True)
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _config(raw: Any, path: Path) -> Config:
    """Settings, those of version 0.1 under their present names."""
    try:
        return Config.from_dict(raw)
    except DeitkitError as error:
        raise _damaged(path, str(error).splitlines()[0]) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise _damaged(path, "its settings are not those of deitkit") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged file raises errors of many types
        raise _damaged(path, f"it is no safetensors file ({type(error).__name__})") from None


def _task(raw: Mapping[str, Any]) -> Any:
    task = raw.get("task", "multiclass")
    return _TASKS_V01.get(task, task) if isinstance(task, str) else task


def _unflattened(model: Any) -> Any:
    """The inverse of `_flattened`: the numbers that are no fields of their own become `scores`."""
    if not isinstance(model, dict):
        return model
    fields, numbers = ModelResult.__dataclass_fields__, (int, float, type(None))
    return model | {"scores": {k: v for k, v in model.items() if k not in fields and isinstance(v, numbers)}}


def _problem(info: RunInfo) -> str | None:
    """What is wrong with the values of a config.json whose types are right."""
    student, view = info.student, info.preprocessing
    pairs = {
        "preprocessing.image_size": view.image_size,
        "student.image_size": student.image_size,
        "student.patch_size": student.patch_size,
    }
    for name, size in pairs.items():
        if size is not None and not all(0 < side <= _LARGEST_SIDE for side in size):
            return f"{name} is {list(size)}, not a size in pixels"
    if student.patch_size is not None:
        if student.image_size != view.image_size:
            return "student.image_size and preprocessing.image_size differ"
        if min(student.embed_dim, student.depth, student.num_heads) < 1:
            return "student has no embed_dim, depth or num_heads of 1 or more"
        if student.embed_dim % student.num_heads:
            return "student.embed_dim is not a multiple of student.num_heads"
    if view.interpolation not in INTERPOLATIONS:
        return (
            f"preprocessing.interpolation is {view.interpolation!r}, not one of {', '.join(INTERPOLATIONS)}"
        )
    if not 0 < view.crop <= 1:
        return f"preprocessing.crop is {view.crop:g}, not above 0 and at most 1"
    if len(view.mean) != 3 or len(view.std) != 3 or not all(map(_is_finite, view.mean + view.std)):
        return "preprocessing.mean and std are not three finite numbers each"
    if min(view.std) <= 0:
        return f"preprocessing.std is {list(view.std)}, not above 0"
    low, high = _TEMPERATURES
    if not low <= info.head_temperature <= high:
        return f"head_temperature is {info.head_temperature:g}, not between {low:g} and {high:g}"
    return None if info.classes else "classes is empty"


def _same_shape(info: RunInfo, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights have the described shape."""
    s = info.student
    assert s.image_size is not None and s.patch_size is not None
    (H, W), (p, q), D = s.image_size, s.patch_size, s.embed_dim
    tokens = (2 if s.distilled else 1) + (H // p) * (W // q)
    shapes: dict[str, Sequence[int]] = {
        "pos_embed": (1, tokens, D),
        "patch_embed.proj.weight": (D, ConvStem.channels, 1, 1) if s.hybrid else (D, 3, p, q),
        "head.weight": (len(info.classes), D),
        f"blocks.{s.depth - 1}.norm1.weight": (D,),
    }
    if not _is_finite(s.mlp_ratio):
        return False
    shapes["blocks.0.mlp.fc1.weight"] = (int(D * s.mlp_ratio), D)
    return all(k in weights and tuple(weights[k].shape) == tuple(shape) for k, shape in shapes.items())


def _is_finite(value: float) -> bool:
    return float("-inf") < value < float("inf")


def _is_number(text: str) -> bool:
    try:
        return _is_finite(float(text))
    except ValueError:
        return False


def _likeness(config: Mapping[str, Any]) -> str:
    """What a folder looks like whose config.json is not a run's."""
    if "pretrained_cfg" in config or "architecture" in config:
        return "looks like a model of timm"
    return "looks like a model of transformers" if "model_type" in config else "a model of another project"
