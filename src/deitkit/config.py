"""The settings of a run: one source for command-line flags, recipes and saved runs.

Every section is a frozen dataclass, so a run's settings cannot drift while it works; `override`
makes a changed copy and refuses a key that does not exist. The text after each field is its help.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import SettingError, did_you_mean, nearest


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The model that is trained."""

    name: str = "auto"  # nano, tiny, small, base; auto picks by device and image count
    image_size: tuple[int, int] | None = None  # height, width in pixels; None picks by device and data
    patch_size: tuple[int, int] | None = None  # height, width in pixels; None picks about 64 patches on a CPU
    drop_path_rate: float = 0.0  # stochastic depth at the last block (arXiv 1603.09382)
    patch_drop_rate: float = 0.0  # share of patches left out in training (PatchDropout, arXiv 2208.07220)
    init_scheme: Literal["published", "structured"] = (
        "published"  # how weights are drawn; see DeiT.init_structured
    )
    layer_scale: float | None = None  # where LayerScale's gains start (arXiv 2103.17239); none: no gains
    init_antialias: bool = False  # positions of other sizes resized as timm does; false: as published
    initial_weights: str = (
        "none"  # weights to start from: auto, none, a run folder, a file, timm:, hf: or deitkit:NAME
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where views come from."""

    split: Literal["stratified", "blocks"] = "stratified"  # blocks: consecutive file names stay together
    split_seed: int = 0  # which images are held out; apart from train.seed, so that seeds compare
    val_fraction: float = 0.25  # held out where the folder has no val/
    train_fraction: float = 1.0  # share of the training images that are used, drawn by split_seed
    eval_fraction: float = 1.0  # share of the validation images that are measured on, drawn likewise
    eval_crop: float = 1.0  # share of the shorter side that evaluation's centre crop keeps
    repeats: int = 1  # views of an image in one batch (repeated augmentation, arXiv 1902.05509, 1901.09335)
    unlabeled: str | None = None  # folder of images for the teacher to answer, of the same field
    unlabeled_share: float = 0.5  # of each batch, where there are unlabelled images
    cache_gb: float = 8.0  # decoded pixels are kept on disk up to this size; above, decoded as needed
    workers: int | None = None  # threads that decode and augment ahead; None: by device


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a view differs from its image."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area that a crop covers
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width over height of a crop
    flip: float = 0.5  # probability of a horizontal mirror
    randaugment_ops: int = 2  # operations a view (RandAugment, arXiv 1909.13719); 0: none
    randaugment_magnitude: float = 9.0  # of 10
    randaugment_std: float = 0.5  # spread of the magnitude between operations
    three_augment: bool = False  # each view greyed, solarised or blurred (3-Augment, arXiv 2204.07118)
    color_jitter: float = 0.0  # brightness, contrast, saturation each within 1 +- this
    erasing: float = 0.25  # probability of erasing a rectangle (arXiv 1708.04896)
    mixup: float = 0.8  # Beta parameter of mixup (arXiv 1710.09412); 0: off
    cutmix: float = 1.0  # Beta parameter of CutMix (arXiv 1905.04899); 0: off
    mix_probability: float = 1.0  # share of pairs that are mixed at all
    cutmix_share: float = 0.5  # share of mixed pairs that take CutMix where both are on


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher: which model, which head, how it runs."""

    spec: str = "auto"  # auto, none, KIND:NAME or a fitted one's folder; or several: A*2,B
    # Which head; auto: its own if it can. The last two train the network too, or its last half.
    fit: Literal["auto", "head", "probe", "finetune", "finetune-last"] = "auto"
    classes: str | None = None  # which outputs of its pretrained head: imagenet, or a file; None: by name
    image_size: int | None = None  # pixels a side of its input; None picks by the student's
    probe_views: int = 4  # views of each training image that the probe is fitted on
    mean: tuple[float, float, float] | None = None  # of the channels, in place of its own
    std: tuple[float, float, float] | None = None  # likewise
    backend: Literal["auto", "pytorch", "compiled", "openvino", "onnxruntime"] = "auto"  # auto: measured
    soft_labels: str | None = None  # folder of stored answers (deitkit label), in place of a live teacher
    code: str | None = None  # python:MODULE:FUNCTION that a saved teacher may run; never read from a file
    trust_remote_code: bool = False  # run code that a hub's model comes with; never read from a file


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What the student takes from the teacher."""

    mode: Literal["none", "soft", "hard", "dist"] = "hard"  # dist: correlations (arXiv 2205.10536)
    token: Literal["distill", "class"] = "distill"  # which token learns from the teacher; class: one head
    alpha: float = 0.5  # weight of the teacher's term; the label's term weighs 1 - alpha
    distill_until: float = 1.0  # share of the updates after which labels replace the teacher's answers
    temperature: float = 3.0  # of soft distillation (arXiv 1503.02531) and of dist
    standardise: bool = False  # both logits as z-scores before soft distillation (arXiv 2403.01427)
    reduction: Literal["batch", "batch_and_classes"] = "batch"  # soft; the second is the published code's
    smoothing: float = 0.0  # of the teacher's hard labels; the paper leaves them as they are
    feature_weight: float = 0.0  # weight of feature distillation (arXiv 2207.10026); 0: off
    feature_until: float = 1.0  # share of the updates after which guidance stops

    def answered_epochs(self, epochs: int) -> int:
        """Of so many epochs, those in which the teacher's answers are read at all."""
        return math.ceil(self.distill_until * epochs - 1e-9)  # 0.07 x 100 is 7, whatever its last bit

    def longest_run(self, answered: int) -> int:
        """Epochs of the longest run that reads the teacher's answers in no more than `answered` of them."""
        return int(answered / self.distill_until)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule, stepped once an optimizer update."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"  # lamb: for large batches; sgd: Nesterov, of betas' first
    lr: float = 5e-4  # at a global batch of `lr_batch` images, scaled linearly to the one in use
    lr_batch: int = 512
    min_lr: float = 1e-5  # where the cosine ends
    warmup_lr: float = 1e-6  # where the warm-up starts
    warmup_epochs: float = 5.0  # at most a fifth of the run
    weight_decay: float = 0.05  # on matrices only: not on tokens, positions, norms, biases
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None  # largest norm of the student's gradient
    ema_decay: float = 0.99996  # per update; warmed up as (1 + n) / (10 + n)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batches, loss, device and seed of a run."""

    epochs: int | None = 300  # None (auto): by the number of images, 10 to 200
    budget_s: float | None = None  # plan the epochs so that the whole job ends within so many seconds
    batch_size: int = 1024  # images an optimizer update
    micro_batch_size: int | None = None  # images a forward pass; None: by device
    loss: Literal["auto", "cross-entropy", "bce"] = "auto"  # on the labels; auto: bce for several an image
    label_smoothing: float = 0.1
    start_size: tuple[int, int] | None = None  # of smaller views at first (FixRes, arXiv 1906.06423)
    start_share: float = 0.8  # share of the updates made at start_size
    patience: int | None = None  # stop after so many EMA measurements without gain; selects on validation
    device: str = "auto"
    seed: int = 0
    baseline: bool = False  # also train the same student without a teacher, side by side


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run's result."""

    recipe: str = "small-data"
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def taught_live(self) -> bool:
        """Whether a teacher answers while the student trains."""
        return (
            self.distillation.mode != "none" and self.teacher.spec != "none" and not self.teacher.soft_labels
        )

    def override(self, changes: dict[str, Any]) -> Config:
        """A copy with `{"section.key": value}` applied; text values are parsed to the field's type.

        Raises DeitkitError, naming the nearest key, for one that does not exist, and for a value
        that does not fit its field.
        """
        by_section: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            if key in RENAMED:
                warnings.warn(f"the setting {key} is now called {RENAMED[key]}", FutureWarning, stacklevel=2)
                key = RENAMED[key]
            section, name, hint = _find_field(key)
            by_section.setdefault(section, {})[name] = _parse(key, value, hint)
        sections = {s: dataclasses.replace(getattr(self, s), **kv) for s, kv in by_section.items()}
        return dataclasses.replace(self, **sections)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, as written to `config.json`, without `OF_THIS_CALL`."""
        plain = json.loads(json.dumps(dataclasses.asdict(self)))
        for key in OF_THIS_CALL:
            section, _, name = key.partition(".")
            del plain[section][name]
        return plain

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Config:
        """The inverse of `to_dict`."""
        flat = {
            f"{section}.{key}": value
            for section, values in saved.items()
            if isinstance(values, dict)
            for key, value in values.items()
        }
        flat = {RENAMED.get(k, k): value for k, value in flat.items() if k not in OF_THIS_CALL}
        return dataclasses.replace(cls(), recipe=saved["recipe"]).override(flat)

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """`{"section.key": (mine, theirs)}` for every field that differs."""
        a, b = flatten(self.to_dict()), flatten(other.to_dict())
        return {k: (a[k], b[k]) for k in a if a[k] != b[k]}


def dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments `section__key` as "section.key", which may stand among them too."""
    return {key.replace("__", "."): value for key, value in settings.items()}


def flatten(nested: dict[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, one level deep."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def resized_side(side: int, crop: float) -> int:
    """Pixels that a side of a image is resized to before the share `data.eval_crop` of it is cut out.

    Whole as in timm; a crop that was computed as 224 / 256 gives 256, whatever its last bit.
    """
    return math.floor(side / crop + 1e-6)


# Settings that let code run. They hold for the call that names them: files neither keep nor set them.
OF_THIS_CALL = ("teacher.code", "teacher.trust_remote_code")

# Settings of version 0.1 under the names they have now.
RENAMED = {
    "student.start": "student.init_scheme",
    "student.init": "student.initial_weights",
    "teacher.labels": "teacher.soft_labels",
    "distillation.alpha_until": "distillation.distill_until",
    "distillation.guidance": "distillation.feature_weight",
    "distillation.guidance_until": "distillation.feature_until",
    "train.control": "train.baseline",
}


def _sections() -> dict[str, type]:
    hints = typing.get_type_hints(Config)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}  # type: ignore[misc]


@functools.cache
def _fields() -> dict[str, tuple[str, str, Any]]:
    """The section, name and type of every setting, by "section.key"."""
    return {
        f"{section}.{name}": (section, name, hint)
        for section, cls in _sections().items()
        for name, hint in typing.get_type_hints(cls).items()
    }


def _find_field(key: str) -> tuple[str, str, Any]:
    """The section, name and type behind "section.key"."""
    known = _fields()
    if key in known:
        return known[key]
    section, _, name = key.rpartition(".")
    elsewhere = [k for k in known if k.endswith(f".{name}")]
    if elsewhere:
        raise SettingError(f"there is no setting {key!r}; did you mean {elsewhere[0]!r}?")
    inside = [k.partition(".")[2] for k in known if k.startswith(f"{section}.")]
    if inside and not did_you_mean(name, inside):
        raise SettingError(f"there is no setting {key!r}; the section {section} has {', '.join(inside)}")
    meant = key
    if not section:  # of a bare name, as of --set epochz=3, only the name can be near
        by_name = {k.partition(".")[2]: k for k in known}
        meant = by_name.get(nearest(key, by_name) or "", key)
    hint = did_you_mean(meant, known) or "; deitkit recipes small-data prints all settings"
    raise SettingError(f"there is no setting {key!r}{hint}")


def _parse(key: str, value: Any, hint: Any) -> Any:
    """`value`, as text or as JSON gives it, turned into `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin in (types.UnionType, typing.Union):
            if value is None or (isinstance(value, str) and value.lower() in ("none", "auto")):
                return None
            return _parse(key, value, next(a for a in args if a is not type(None)))
        if origin is Literal:
            if value not in args:
                raise ValueError(f"choose one of {', '.join(map(str, args))}")
            return value
        if origin is tuple:
            parts = value.lower().replace("x", ",").split(",") if isinstance(value, str) else value
            parts = [parts] * len(args) if isinstance(parts, (int, float)) else list(parts)
            parts = parts * len(args) if len(parts) == 1 else parts
            if len(parts) != len(args):
                raise ValueError(f"give {len(args)} numbers, such as 0.1,0.9")
            return tuple(_parse(key, p, a) for p, a in zip(parts, args, strict=True))
        if hint is bool and isinstance(value, str):
            if value.lower() not in ("true", "false"):
                raise ValueError("give true or false")
            return value.lower() == "true"
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError("give a whole number")
        return hint(value)
    except (ValueError, TypeError) as error:
        raise SettingError(f"setting {key!r} cannot be {value!r}: {error}") from None
