"""All settings, in sections: what the user asks for (`Config`) and what is run (`ResolvedConfig`).

A `Config` may say "auto"; `training.resolve` replaces every "auto" once, and only a `ResolvedConfig`
is handed on. Sections are frozen dataclasses; `override` returns a changed copy. Each setting states its
type, default, help and allowed values where it is declared (see `settings`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from .errors import SettingError, did_you_mean, nearest
from .settings import (
    AUTO,
    SEED,
    Auto,
    Registered,
    Section,
    above,
    at_least,
    parse,
    raise_all,
    setting,
    share,
)

# The names of inference.backends.BACKENDS, and "auto".
BackendName = Literal["auto", "pytorch", "compiled", "openvino", "onnxruntime"]
# Of a resolved config; `TrainConfig` also has "auto".
BalanceName = Literal["none", "sampler", "sqrt-sampler", "loss"]
MetricName = Literal["top1", "balanced", "macro-f1", "map"]


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Section):
    """The model that is trained."""

    name: str = setting("auto", "nano, nano-hybrid, tiny, small or base; auto: by device and images.")
    image_size: tuple[int, int] | Auto = setting(
        AUTO, "Height and width in pixels; auto: by device and images.", at_least(1)
    )
    patch_size: tuple[int, int] | Auto = setting(
        AUTO, "Height and width in pixels; auto: about 64 patches on a CPU.", at_least(1)
    )
    drop_path_rate: float = setting(
        0.0, "Stochastic depth of the last block (arXiv 1603.09382).", share(one=False)
    )
    patch_drop_rate: float = setting(
        0.0, "Share of patches dropped in training (PatchDropout, arXiv 2208.07220).", share(one=False)
    )
    init_scheme: Literal["published", "structured"] = setting(
        "published", "Weight initialisation scheme; structured needs less data (DeiT.init_structured)."
    )
    layer_scale: float | None = setting(
        None, "LayerScale init value (arXiv 2103.17239); none disables it.", above(0)
    )
    init_antialias: bool = setting(
        False, "Resize position embeddings of initial weights with antialiasing, as timm does."
    )
    initial_weights: str = setting(
        "none", "Initial weights: auto, none, a run folder, a file, timm:NAME, hf:NAME or deitkit:NAME."
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Images, splits and loading."""

    split: Literal["stratified", "blocks"] = setting(
        "stratified", "How validation images are held out; blocks keeps consecutive file names together."
    )
    split_seed: int = setting(0, "Seed of the split; independent of train.seed.", SEED)
    group: str = setting(
        "none",
        "Images kept together by a split: none, auto (near-duplicates), folder, a column, or a regex.",
    )
    relabel: str | None = setting(None, "CSV file of path and label: labels to use instead of the data's.")
    exclude: str | None = setting(None, "CSV file with a column path: images to leave out.")
    val_fraction: float = setting(0.25, "Share held out for validation if the folder has no val/.")
    train_fraction: float = setting(1.0, "Share of the training images to use.", share(zero=False))
    eval_fraction: float = setting(1.0, "Share of the validation images to use.", share(zero=False))
    eval_crop: float = setting(1.0, "Share of the shorter side kept by evaluation's centre crop.", above(0))
    repeats: int = setting(
        1,
        "Views of each image in a batch (repeated augmentation, arXiv 1902.05509, 1901.09335).",
        at_least(1),
    )
    views: int | Auto | None = setting(
        None,
        "Different views of an image, shown in turn; auto: 4 to 32 by images; none: new in every epoch.",
        at_least(1),
    )
    unlabeled: str | None = setting(None, "Folder of unlabelled images for the teacher to label.")
    unlabeled_share: float = setting(
        0.5, "Share of each batch taken by unlabelled images.", share(zero=False, one=False)
    )
    max_broken: float = setting(
        0.05,
        "Share of images that may be unreadable and are skipped; three always may, unless it is 0.",
        share(),
    )
    max_pixels: int = setting(
        100_000_000, "Width times height that an image may have; a larger one is unreadable.", at_least(1)
    )
    cache_gb: float = setting(8.0, "Decoded pixels are cached on disk up to this size.", at_least(0))
    workers: int | Auto = setting(
        AUTO, "Threads that decode and augment batches ahead; auto: by device.", at_least(0)
    )

    def problems(self, name: str) -> list[str]:
        problems = super().problems(name)
        if "(" in self.group:
            try:
                groups = re.compile(self.group).groups
            except re.error as error:
                problems.append(f"{name}.group {self.group!r} is no regular expression: {error}")
            else:
                if groups != 1:
                    problems.append(
                        f"{name}.group {self.group!r} has {groups} groups in parentheses; give one"
                    )
        if self.group not in ("none", "auto") and self.split == "blocks":
            problems.append(
                f"{name}.split blocks and {name}.group {self.group} both divide; give one of them"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """Augmentation of training views."""

    view_size: tuple[int, int] | None = setting(
        None,
        "Height and width of a view before a larger teacher and the student resize it; none: the student's.",
        at_least(1),
    )
    crop_scale: tuple[float, float] = setting((0.08, 1.0), "Area of a random crop, as a share.", above(0))
    crop_ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "Aspect ratio (width / height) of a random crop.", above(0)
    )
    flip: float = setting(0.5, "Probability of a horizontal flip.", share())
    randaugment_ops: int = setting(
        2, "Operations per view (RandAugment, arXiv 1909.13719); 0 disables it.", at_least(0)
    )
    randaugment_magnitude: float = setting(9.0, "Magnitude, out of 10.", at_least(0))
    randaugment_std: float = setting(0.5, "Standard deviation of the magnitude.", at_least(0))
    three_augment: bool = setting(
        False, "Grayscale, solarisation or blur for each view (3-Augment, arXiv 2204.07118)."
    )
    color_jitter: float = setting(0.0, "Jitter of brightness, contrast and saturation.", at_least(0))
    erasing: float = setting(0.25, "Probability of random erasing (arXiv 1708.04896).", share())
    mixup: float = setting(0.8, "Beta parameter of mixup (arXiv 1710.09412); 0 disables it.", at_least(0))
    cutmix: float = setting(1.0, "Beta parameter of CutMix (arXiv 1905.04899); 0 disables it.", at_least(0))
    mix_probability: float = setting(1.0, "Probability that a pair of views is mixed.", share())
    cutmix_share: float = setting(0.5, "Share of mixed pairs that use CutMix if both are enabled.", share())


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Section):
    """The teacher: model, head, backend."""

    spec: str = setting(
        "auto", "auto, none, SOURCE:NAME, the folder of a fitted teacher, or an ensemble such as A*2,B."
    )
    fit: Literal["auto", "head", "probe", "finetune", "finetune-last"] = setting(
        "auto", "Pretrained head, linear probe, or fine-tune the whole network or its last half."
    )
    classes: str | None = setting(
        None, "Outputs of the pretrained head to use: imagenet, or a file; none: match by name."
    )
    image_size: int | Auto = setting(AUTO, "Input size in pixels; auto: by the student's.", at_least(1))
    deploy_sizes: tuple[int, ...] | Auto | None = setting(
        AUTO,
        "Sizes at which the teacher may be deployed; auto: 96, 128, 160, 224; none: no size.",
        at_least(32),
    )
    probe_views: int = setting(4, "Views of each training image that the probe is fitted on.", at_least(1))
    mean: tuple[float, float, float] | None = setting(None, "Channel means; none: the teacher's own.")
    std: tuple[float, float, float] | None = setting(
        None, "Channel standard deviations; none: the teacher's own.", above(0)
    )
    backend: BackendName = setting(
        "auto", "Inference backend; auto: the fastest one that agrees with PyTorch."
    )
    soft_labels: str | None = setting(
        None, "Folder of stored soft labels (deitkit label) to use instead of a live teacher."
    )
    code: str | None = setting(
        None, "python:MODULE:FUNCTION that a saved teacher may run; never read from a file."
    )
    trust_remote_code: bool = setting(
        False, "Run code that comes with a model of a hub; never read from a file."
    )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Section):
    """What the student learns from the teacher, and for how long."""

    mode: str = setting(
        "hard",
        "Distillation loss, or none.",
        Registered(".distillation.losses", "DISTILLATION_LOSSES", also=("none",)),
    )
    token: Literal["distill", "class", "both"] = setting(
        "distill", "Token that learns from the teacher; class: a plain ViT with one head."
    )
    alpha: float = setting(0.5, "Weight of the distillation loss; the label loss weighs 1 - alpha.", share())
    distill_until: float = setting(
        1.0, "Share of training after which distillation stops and both heads learn from labels.", share()
    )
    temperature: float = setting(3.0, "Temperature of soft distillation (arXiv 1503.02531).", above(0))
    standardise: bool = setting(False, "Standardise both logits before soft distillation (arXiv 2403.01427).")
    reduction: Literal["batch", "batch_and_classes"] = setting(
        "batch", "Of soft distillation; batch_and_classes divides by the classes too, as the published code."
    )
    smoothing: float = setting(0.0, "Label smoothing of the teacher's hard labels.", share(one=False))
    features: Literal["maps", "embedding"] = setting(
        "maps",
        "What feature distillation imitates: maps (arXiv 2207.10026), or what the teacher's head reads.",
    )
    feature_weight: float = setting(0.0, "Weight of feature distillation; 0 disables it.", at_least(0))
    feature_until: float = setting(1.0, "Share of training after which feature distillation stops.", share())

    def distilled_epochs(self, epochs: int) -> int:
        """Number of epochs, out of `epochs`, in which the distillation loss is used."""
        return math.ceil(self.distill_until * epochs - 1e-9)  # 0.07 x 100 is 7, whatever its last bit

    def longest_run(self, stored: int) -> int:
        """Longest run, in epochs, that uses the distillation loss in at most `stored` of them."""
        return int(stored / self.distill_until)

    def problems(self, name: str) -> list[str]:
        problems = super().problems(name)
        if self.mode != "none" and self.token == "distill" and self.alpha in (0, 1):
            head = "distillation" if self.alpha == 0 else "class"
            problems.append(
                f"{name}.alpha {self.alpha:g} would leave the {head} head at its random values, "
                "and both heads predict; give a value between 0 and 1, or distillation.token=class"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule."""

    name: str = setting(
        "adamw", "Optimizer; lamb suits large batches.", Registered(".training.optim", "OPTIMIZERS")
    )
    lr: float = setting(5e-4, "Learning rate at `lr_batch` images per step, scaled linearly.", at_least(0))
    lr_batch: int = setting(512, "Global batch size that `lr` refers to.", at_least(1))
    min_lr: float = setting(1e-5, "Learning rate at the end of the cosine.", at_least(0))
    warmup_lr: float = setting(1e-6, "Learning rate at the start of the warm-up.", at_least(0))
    warmup_epochs: float = setting(5.0, "Linear warm-up, at most a fifth of training.", at_least(0))
    layer_decay: float = setting(
        1.0, "Each block's learning rate as a share of the next one's (arXiv 2106.08254).", share(zero=False)
    )
    stem_lr: float = setting(
        0.0, "Learning rate of a hybrid's stem as a share of the others'; 0 freezes it.", share()
    )
    weight_decay: float = setting(
        0.05, "Weight decay of matrices; tokens, positions, norms and biases have none.", at_least(0)
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "Adam's betas; the first one is SGD's momentum.", share(one=False)
    )
    clip_grad: float | None = setting(None, "Largest norm of the gradient; none disables it.", above(0))
    ema_decay: float = setting(0.99996, "EMA decay per step, warmed up as (1 + n) / (10 + n).", share())

    def problems(self, name: str) -> list[str]:
        problems = super().problems(name)
        if self.name == "sgd" and self.betas[0] == 0:
            problems.append(
                f"{name}.name sgd takes its momentum from the first of {name}.betas; give more than 0"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Length, batch size, label loss, device and seed."""

    epochs: int | Auto = setting(300, "Epochs; auto: by the number of images, 10 to 200.", at_least(1))
    budget_s: float | None = setting(None, "Seconds that the whole job may take; sets the epochs.", above(0))
    batch_size: int = setting(1024, "Global batch size: images per step.", at_least(1))
    micro_batch_size: int | Auto = setting(
        AUTO, "Images per forward pass; auto: by device and its memory.", at_least(1)
    )
    loss: Literal["auto", "cross-entropy", "bce"] = setting(
        "auto", "Label loss; auto: bce if multilabel, else cross-entropy."
    )
    label_smoothing: float = setting(0.1, "Label smoothing.", share(one=False))
    balance: Literal["auto", "none", "sampler", "sqrt-sampler", "loss"] = setting(
        "auto",
        "For uneven classes: a sampler, even or by square roots, or adjusted logits (arXiv 2007.07314).",
    )
    metric: Literal["auto", "top1", "balanced", "macro-f1", "map"] = setting(
        "auto",
        "What weights and the recommended model are chosen by; auto: balanced if classes are uneven.",
    )
    start_size: tuple[int, int] | None = setting(
        None, "Image size for the first part of training (FixRes, arXiv 1906.06423).", at_least(1)
    )
    start_share: float = setting(0.8, "Share of the steps trained at `start_size`.")
    patience: int | None = setting(
        None, "Stop after this many evaluations without a lower validation loss.", at_least(1)
    )
    prefer: Literal["balanced", "accuracy", "speed"] = setting(
        "balanced",
        "What the recommended model is chosen for; see docs/choosing.md.",
    )
    log: tuple[str, ...] = setting(
        ("tensorboard",),
        "Trackers of the curves: tensorboard (if it is installed), mlflow, wandb.",
        Registered(".training.trackers", "TRACKERS"),
    )
    device: str = setting("auto", "auto, cpu, cuda or mps.")
    seed: int = setting(0, "Seed of initial weights, batches and augmentation.", SEED)
    deterministic: bool = setting(False, "On a GPU: the same bits in every run, more slowly.")
    baseline: bool = setting(False, "Also train a baseline: the same student without a teacher.")


# `Config()` is the recipe small-data; recipes.small_data says where these values come from.
_SMALL_DATA_AUGMENT = AugmentConfig(
    crop_scale=(0.5, 1.0), randaugment_ops=0, color_jitter=0.2, erasing=0.0, mixup=0.0, cutmix=0.0
)
_SMALL_DATA_DISTILLATION = DistillationConfig(
    mode="soft", alpha=0.5, temperature=2.0, distill_until=0.5, feature_weight=16.0, feature_until=0.5
)
_SMALL_DATA_OPTIM = OptimConfig(lr=1e-3, lr_batch=32, min_lr=1e-5, warmup_epochs=2, ema_decay=0.998)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the user asks for. The defaults are those of the recipe `small-data`."""

    recipe: str = "small-data"
    student: StudentConfig = StudentConfig(init_scheme="structured", initial_weights="auto")
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = _SMALL_DATA_AUGMENT
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distillation: DistillationConfig = _SMALL_DATA_DISTILLATION
    optim: OptimConfig = _SMALL_DATA_OPTIM
    train: TrainConfig = TrainConfig(epochs=AUTO, batch_size=32)

    @property
    def has_live_teacher(self) -> bool:
        """Whether a teacher runs while the student trains."""
        return (
            self.distillation.mode != "none" and self.teacher.spec != "none" and not self.teacher.soft_labels
        )

    def override(self, changes: Mapping[str, Any]) -> Self:
        """A copy with `{"section.key": value}` applied; text is parsed to the type of the setting.

        Raises SettingError with every unknown key, naming the nearest, and every value that does not fit.
        """
        by_section: dict[str, dict[str, Any]] = {}
        problems = []
        for key, value in changes.items():
            try:
                section, name, hint = _find_field(_current_name(key))
                by_section.setdefault(section, {})[name] = parse(f"{section}.{name}", value, hint)
            except SettingError as error:
                problems.append(str(error))
        raise_all(problems)
        return replace(self, **{s: replace(getattr(self, s), **kv) for s, kv in by_section.items()})

    def check(self) -> None:
        """Raises SettingError with every setting that is out of range or contradicts another."""
        problems = [p for name in _sections() for p in getattr(self, name).problems(name)]
        without_teacher = self.distillation.mode == "none" or self.teacher.spec == "none"
        if self.data.unlabeled is not None and without_teacher:
            problems.append("unlabelled images need a teacher to label them; leave out --unlabeled")
        raise_all(problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, as written to `config.json`, without `OF_THIS_CALL`."""
        sections = {name: dataclasses.asdict(getattr(self, name)) for name in _sections()}
        for section, name in (key.split(".") for key in OF_THIS_CALL):
            del sections[section][name]
        plain: dict[str, Any] = json.loads(json.dumps({"recipe": self.recipe} | sections))
        return plain

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; reads what version 0.1 wrote as well."""
        settings = {
            key: value for key, value in flatten(saved).items() if "." in key and key not in OF_THIS_CALL
        }
        changes = {RENAMED.get(key, key): value for key, value in settings.items()}
        # These settings are younger than some files.
        changes = {"train.balance": "none", "train.metric": "top1"} | changes
        return replace(Config(), recipe=saved["recipe"]).override(changes)

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """`{"section.key": (mine, theirs)}` for every setting that differs."""
        a, b = flatten(self.to_dict()), flatten(other.to_dict())
        return {k: (a[k], b[k]) for k in a if a[k] != b[k]}

    def affects_results(self) -> dict[str, Any]:
        """`to_dict` without the settings that the student's training does not depend on."""
        saved = self.to_dict()
        for section, name in NOT_OF_TRAINING:
            del saved[section][name]
        return saved


@dataclass(frozen=True, kw_only=True)
class ResolvedStudent(StudentConfig):
    """The student with name and sizes chosen; `initial_weights` is no longer "auto"."""

    name: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ResolvedData(DataConfig):
    """Views and loading threads chosen."""

    views: int | None
    workers: int


@dataclass(frozen=True, kw_only=True)
class ResolvedTrain(TrainConfig):
    """Length, batches, loss, metric, and what is done about uneven classes, chosen."""

    epochs: int
    micro_batch_size: int
    loss: Literal["cross-entropy", "bce"]
    balance: BalanceName
    metric: MetricName


def view_size(image_size: tuple[int, int], augment: AugmentConfig) -> tuple[int, int]:
    """Height and width of the training views of a student of `image_size`."""
    (H, W), (h, w) = image_size, augment.view_size or (1, 1)
    return max(H, h), max(W, w)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """What is run: every choice that depends on device and images is made. See `training.resolve`.

    The teacher's "auto" (head, input size, backend) is settled when the teacher is fitted, by measuring,
    and is recorded in its card.

    reasons: one sentence on the choices, for people; not part of what is saved or compared.
    """

    student: ResolvedStudent
    data: ResolvedData
    train: ResolvedTrain
    reasons: str = field(default="", compare=False)

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of a training view, at least those of the student."""
        return view_size(self.student.image_size, self.augment)

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> ResolvedConfig:
        """What `to_dict` wrote, by version 0.1 too, which left the number of workers open."""
        config = Config.from_dict(saved)
        return cls.of(config.override({"data.workers": 0}) if config.data.workers == AUTO else config)

    @classmethod
    def of(cls, config: Config, reasons: str = "") -> ResolvedConfig:
        """The same settings as a ResolvedConfig; raises SettingError for each one that is still "auto"."""
        values = {name: getattr(config, name) for name in ("recipe", *_sections())} | {"reasons": reasons}
        kinds = {"student": ResolvedStudent, "data": ResolvedData, "train": ResolvedTrain}
        for section, kind in kinds.items():
            fields = {f.name: getattr(values[section], f.name) for f in dataclasses.fields(kind)}
            open_ones = [name for name in kind.__annotations__ if fields[name] == AUTO]
            raise_all(f"{section}.{name} is auto and has to be chosen here" for name in open_ones)
            values[section] = kind(**fields)
        return cls(**values)


def multilabel_problems(config: Config) -> list[str]:
    """Settings that have no meaning for multilabel images."""
    return [
        f"the images are multilabel, and {what}"
        for wrong, what in (
            (
                config.train.loss == "cross-entropy",
                "train.loss cross-entropy is for one class per image; use bce",
            ),
            (
                config.distillation.mode == "dist",
                "distillation.mode dist compares softmaxes; use soft or hard",
            ),
            (
                config.train.balance not in ("auto", "none"),
                f"train.balance {config.train.balance} needs one class per image; leave it out",
            ),
            (
                config.train.metric not in ("auto", "map"),
                f"train.metric {config.train.metric} is for one class per image; use map",
            ),
            (config.distillation.standardise, "distillation.standardise ranks classes; leave it out"),
            (config.data.unlabeled is not None, "data.unlabeled needs one class per image; leave it out"),
            (
                config.teacher.soft_labels is not None,
                "teacher.soft_labels needs one class per image; use a live teacher",
            ),
        )
        if wrong
    ]


def dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments `section__key` as "section.key", under today's names; keys with a dot are kept."""
    named = {}
    for key, value in settings.items():
        named[_current_name(key.replace("__", "."), stacklevel=4)] = value
    return named


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, one level deep."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update({f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


def resized_side(side: int, crop: float) -> int:
    """Pixels to resize an image's side to before the centre crop keeps the share `crop` of it.

    Whole as in timm; a crop that was computed as 224 / 256 gives 256, whatever its last bit.
    """
    return math.floor(side / crop + 1e-6)


# Settings that let code run. They hold for the call that names them; files neither keep nor set them.
OF_THIS_CALL = ("teacher.code", "teacher.trust_remote_code")

# The student's training does not depend on these: a run may be resumed with other values.
NOT_OF_TRAINING = (
    ("data", "workers"),
    ("data", "cache_gb"),
    ("data", "max_broken"),
    ("teacher", "deploy_sizes"),
    ("train", "prefer"),
    ("train", "deterministic"),
    ("train", "log"),
    ("train", "metric"),  # only which of its weights are kept
)

# Names that version 0.1 gave to settings.
RENAMED = {
    "student.start": "student.init_scheme",
    "student.init": "student.initial_weights",
    "teacher.labels": "teacher.soft_labels",
    "distillation.alpha_until": "distillation.distill_until",
    "distillation.guidance": "distillation.feature_weight",
    "distillation.guidance_until": "distillation.feature_until",
    "train.control": "train.baseline",
}


def _current_name(key: str, *, stacklevel: int = 3) -> str:
    """The name of a setting today; warns about one of version 0.1."""
    if key in RENAMED:
        message = f"the setting {key} is now called {RENAMED[key]}"
        warnings.warn(message, FutureWarning, stacklevel=stacklevel)
    return RENAMED.get(key, key)


@functools.cache
def _sections() -> dict[str, type]:
    hints = typing.get_type_hints(Config)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}  # type: ignore[misc]


@functools.cache
def _fields() -> dict[str, tuple[str, str, Any]]:
    """Section, name and type of every setting, by "section.key"."""
    return {
        f"{section}.{name}": (section, name, hint)
        for section, cls in _sections().items()
        for name, hint in typing.get_type_hints(cls).items()
    }


def _find_field(key: str) -> tuple[str, str, Any]:
    """Section, name and type of "section.key"; raises SettingError with the nearest name."""
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
    if not section:  # a bare name, as in --set epochz=3
        by_name = {k.partition(".")[2]: k for k in known}
        meant = by_name.get(nearest(key, by_name) or "", key)
    hint = did_you_mean(meant, known) or "; deitkit settings prints all of them"
    raise SettingError(f"there is no setting {key!r}{hint}")


@dataclass(frozen=True)
class Described:
    """A setting in words, for help texts."""

    key: str
    default: Any
    help: str
    allowed: str


def describe_settings() -> list[Described]:
    """Every setting with default, help and allowed values, in the order of declaration."""
    config, found = Config(), []
    for section, cls in _sections().items():
        for each in dataclasses.fields(cls):
            allowed, hint = each.metadata["allowed"], typing.get_type_hints(cls)[each.name]
            words = allowed.wanted if allowed is not None else ""
            if typing.get_origin(hint) is Literal:
                words = f"one of {', '.join(map(str, typing.get_args(hint)))}"
            found.append(
                Described(
                    f"{section}.{each.name}",
                    getattr(getattr(config, section), each.name),
                    each.metadata["help"],
                    words,
                )
            )
    return found
