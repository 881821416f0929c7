"""From what the user asks for to what is run: every "auto" is replaced here, once.

`resolve` looks at the images and the device and returns a `ResolvedConfig`; `create_student` builds the model
that it describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .. import log, recipes
from ..config import (
    BalanceName,
    Config,
    MetricName,
    ResolvedConfig,
    StudentConfig,
    TrainConfig,
    multilabel_problems,
)
from ..data.decode import UnreadableImage, max_pixel_value, open_rgb
from ..data.image_set import ImageSet, evenly_spread
from ..data.splits import Splits
from ..data.stored import ImageFile
from ..errors import SettingError
from ..evaluation.metrics import uneven
from ..evaluation.speed import kept_values
from ..inference.device import memory_bytes
from ..models import VARIANTS, DeiT, create_model
from ..models.conv_stem import STRIDE
from ..settings import AUTO, raise_all
from ..teachers.recognition import recognition
from ..weights import find_initial, load_into, read, shipped_file, stem_weights
from ..weights.packaged import LITE0, packaged_file

_VIEWS = 6000  # of all images together, where views are shown again: half a minute's, on a CPU
_EXAMPLES = 120_000  # training images seen in a run whose length is "auto": minutes on a CPU
_SMALL_SIDE = 80  # pixels; the median shorter side of images that hold no more than a small student sees
# The mean probability of EfficientNet-Lite0's first guess, on so many images, that makes them ImageNet-like.
# It is 0.31 to 0.64 on five folders of photographs, 0.14 to 0.22 on solar cells, hands and thumbnails.
_RECOGNISED, _RECOGNISED_IMAGES = 0.26, 64
_OF_A_RECIPE = ("student.", "teacher.spec", "distillation.", "augment.", "optim.", "train.start_size")
_LARGEST_MICRO_BATCH = 256  # on a GPU, which is busy with it
_ACTIVATIONS = 0.4  # of a GPU's memory
_DARK = 65536 // 4  # a 16-bit image that stays below loses most of its grey levels in 8 bits

# Ratio of the largest to the smallest class from which something is done: benchmarks/imbalance.py.
_MOST_UNEVEN = 5

Size = tuple[int, int]


def resolve(config: Config, splits: Splits, device: torch.device) -> ResolvedConfig:
    """Chooses all that depends on images and device; `reasons` says what was chosen and why.

    `student.initial_weights` may stay "auto": see `resolve_initial_weights`. Raises SettingError with every
    setting that does not fit the images or another setting.
    """
    images, on_cpu = splits.train, device.type == "cpu"
    if images.task == "multilabel":
        raise_all(multilabel_problems(config))
    side = _median_side(images, config.data.max_pixels)
    _warn_of_lost_greys(images, config.data.max_pixels)

    # 1. The student and what it sees.
    name = config.student.name
    if name == AUTO:
        name = "nano" if on_cpu else "tiny" if len(images) < 20_000 else "small"
    if name not in VARIANTS:
        raise SettingError(f"there is no student {name!r}; choose auto, {', '.join(VARIANTS)}")
    hybrid = VARIANTS[name].hybrid
    image_size = _image_size(config.student, side, on_cpu, hybrid)
    patch_size = _patch_size(config.student, image_size, on_cpu, hybrid)
    _refuse_start_size(config, image_size, patch_size)
    reasons = (
        f"student {name} at {image_size[0]}x{image_size[1]} in patches of {patch_size[0]}x{patch_size[1]}: "
        f"{len(images)} training images of about {side} pixels, on {device.type}"
    )

    # 2. The length of training.
    epochs = config.train.epochs
    if epochs == AUTO:
        # A hybrid's stem has learnt already: longer training does not help it (docs/hybrid.md).
        seen, most = (_EXAMPLES // 3, 40) if hybrid else (_EXAMPLES, 200)
        epochs = min(most, max(10, round(seen / len(images))))
        if config.train.budget_s is None:
            reasons += f"; {epochs} epochs for that many images"

    # 3. The label loss.
    loss = config.train.loss
    if loss == "auto":
        loss = "bce" if images.task == "multilabel" else "cross-entropy"
    if images.task == "multilabel":
        reasons += "; loss bce, because an image may have several labels"

    # 4. Uneven classes.
    metric = _metric(config.train, splits)
    balance, why = _balance(config.train, images, loss)
    reasons += why

    # 5. Views, batches and threads.
    views = config.data.views
    if views == AUTO:
        views = min(32, max(4, _VIEWS // len(images)))
    batch = min(config.train.batch_size, max(2, len(images) * config.data.repeats))
    micro = config.train.micro_batch_size
    if micro == AUTO:
        micro = 32
        if not on_cpu:
            with torch.device("meta"):
                student = create_model(
                    name, num_classes=len(images.classes) or 1, image_size=image_size, patch_size=patch_size
                )
            _freeze_stem(student, config)
            micro = _fitting_micro_batch(student, device)
        micro = min(micro, batch)
    workers = config.data.workers
    if workers == AUTO:  # on a CPU the model's own threads use every core
        workers = 0 if on_cpu else 4

    return ResolvedConfig.of(
        replace(
            config,
            student=replace(config.student, name=name, image_size=image_size, patch_size=patch_size),
            data=replace(config.data, views=views, workers=workers),
            train=replace(
                config.train,
                epochs=epochs,
                batch_size=batch,
                micro_batch_size=micro,
                loss=loss,
                balance=balance,
                metric=metric,
            ),
        ),
        reasons,
    )


def _fitting_micro_batch(student: DeiT, device: torch.device) -> int:
    """The images, 256 at most, whose forward pass takes two fifths of a GPU's memory; about half of it may be
    the pixels'. Counted in float32, though most of what is kept is bfloat16, and so with some room."""
    memory, micro, per_image = memory_bytes(device), _LARGEST_MICRO_BATCH, 4 * kept_values(student)
    while memory is not None and micro > 1 and micro * per_image > _ACTIVATIONS * memory:
        micro //= 2
    return micro


def recipe_for(changes: Mapping[str, Any], splits: Splits, device: torch.device) -> str:
    """The recipe for a folder of images if none is named: `hybrid` or `small-data`.

    A hybrid needs a CPU, true pixels for its size, images that its stem knows something about, and the
    weights that it starts from; and nothing in `changes`, of "section.key", may ask for another student,
    teacher or loss. Measured: docs/hybrid.md.
    """
    hybrid = recipes.get("hybrid")
    asked = any(key.startswith(_OF_A_RECIPE) for key in changes)
    if asked or device.type != "cpu" or packaged_file(LITE0) is None:
        return "small-data"
    if not shipped_file(hybrid.student.name).is_file():
        return "small-data"
    max_pixels = int(changes.get("data.max_pixels", hybrid.data.max_pixels))
    if _median_side(splits.train, max_pixels) <= _SMALL_SIDE:
        return "small-data"
    files = map(splits.train.file, evenly_spread(len(splits.train), _RECOGNISED_IMAGES))
    recognised = recognition(files, max_pixels)
    name = "hybrid" if recognised > _RECOGNISED else "small-data"
    log.info(
        f"recipe {name}: the images are {'' if name == 'hybrid' else 'un'}like ImageNet's photographs "
        f"(EfficientNet-Lite0, asked what they show, is {100 * recognised:.0f} % sure on average)"
    )
    return name


def resolve_initial_weights(config: ResolvedConfig, saved: Config | None) -> ResolvedConfig:
    """Replaces "auto" in `student.initial_weights`: a resumed run keeps its own (`saved`)."""
    if config.student.initial_weights != AUTO:
        return config
    if saved is not None:
        weights = saved.student.initial_weights
    else:
        weights, why = find_initial(config.student.name)
        log.info(why)
    return replace(config, student=replace(config.student, initial_weights=weights))


def create_student(config: ResolvedConfig, num_classes: int) -> tuple[DeiT, list[str]]:
    """The model with its initial weights, and a sentence for each way in which those were changed to fit.

    Weights that are not loaded are drawn from `train.seed`. The model is a plain ViT if no distillation
    token is trained. Raises WeightsError if the initial weights cannot be had or do not fit.
    """
    student, distillation = config.student, config.distillation
    torch.manual_seed(config.train.seed)
    model = create_model(
        student.name,
        num_classes=num_classes,
        image_size=student.image_size,
        patch_size=student.patch_size,
        drop_path_rate=student.drop_path_rate,
        distilled=distillation.mode != "none" and distillation.token != "class",
        layer_scale=student.layer_scale,
        patch_drop_rate=student.patch_drop_rate,
    )
    _freeze_stem(model, config)
    if student.init_scheme == "structured":
        model.init_structured()
    if student.initial_weights == "none":
        if model.stem is not None:
            model.stem.load_state_dict(stem_weights())
        return model, []
    return model, load_into(model, read(student.initial_weights), antialias=student.init_antialias)


def _freeze_stem(model: DeiT, config: Config) -> None:
    """A hybrid's stem is trained only at a learning rate of its own."""
    if model.stem is not None and config.optim.stem_lr == 0:
        model.stem.requires_grad_(False)


def _image_size(student: StudentConfig, side: int, on_cpu: bool, hybrid: bool) -> Size:
    """The asked size, or by the images' median shorter side: no larger than what they hold."""
    if student.image_size != AUTO:
        return student.image_size
    if hybrid:
        chosen = 96 if side <= _SMALL_SIDE else 128  # at 64 pixels, four patches are left
        return chosen, chosen
    chosen = 32 if side <= 40 else 64 if side <= _SMALL_SIDE else 96  # 64 patches keep a CPU's epoch short
    if not on_cpu and side > _SMALL_SIDE:
        chosen = 128 if side <= 160 else 224
    return chosen, chosen


def _patch_size(student: StudentConfig, image_size: Size, on_cpu: bool, hybrid: bool) -> Size:
    """The asked size, or about 64 patches on a CPU and 14 x 14 on a GPU; it divides the image size."""
    patch = student.patch_size
    if patch == AUTO and hybrid:
        patch = (STRIDE, STRIDE)
    elif patch == AUTO:
        near = max(4, round(max(image_size) / 8) if on_cpu else min(16, max(image_size) // 14))
        patch = (_divisor(image_size[0], near), _divisor(image_size[1], near))
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise SettingError(
            f"image size {image_size[0]}x{image_size[1]} is not a multiple of patch size "
            f"{patch[0]}x{patch[1]}; choose sizes that divide evenly"
        )
    return patch


def _refuse_start_size(config: Config, full: Size, patch: Size) -> None:
    """Raises SettingError if the student cannot start at `train.start_size`."""
    train, start = config.train, config.train.start_size
    if start is None:
        return
    if config.augment.view_size is not None:
        raise SettingError("train.start_size and augment.view_size both set the size of views; leave one out")
    if not 0 < train.start_share < 1:
        raise SettingError(
            f"train.start_share is {train.start_share:g}; give a share above 0 and below 1, "
            "or leave out train.start_size"
        )
    if any(s < p or s % p or s > f for s, p, f in zip(start, patch, full, strict=True)) or start == full:
        raise SettingError(
            f"train.start_size {start[0]}x{start[1]} does not fit; give a size below {full[0]}x{full[1]} "
            f"that is a multiple of the patch size {patch[0]}x{patch[1]}"
        )


def _divisor(size: int, near: int) -> int:
    """The divisor of `size` nearest to `near`."""
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - near), d))


def _metric(train: TrainConfig, splits: Splits) -> MetricName:
    """What models are compared by: balanced accuracy if the validation images' classes are uneven."""
    if train.metric == "map" and splits.train.task == "multiclass":
        raise SettingError("train.metric map is for multilabel images; choose top1, balanced or macro-f1")
    if train.metric != "auto":
        return train.metric
    if splits.train.task == "multilabel":
        return "map"
    labelled = bool(splits.train.classes)
    return "balanced" if labelled and uneven(splits.val.counts().tolist()) else "top1"


def _balance(train: TrainConfig, images: ImageSet, loss: str) -> tuple[BalanceName, str]:
    """What is done about uneven classes, and why, as a clause for `reasons`."""
    if train.balance == "loss" and loss == "bce":
        raise SettingError(
            "train.balance loss adjusts the logits of a softmax, and train.loss bce has none; "
            "use sampler, or train.loss=cross-entropy"
        )
    if train.balance != "auto":
        return train.balance, ""
    if images.task == "multilabel" or not images.classes or train.metric == "top1":
        return "none", ""
    counts = images.counts()
    largest, smallest = int(counts.max()), int(counts[counts > 0].min())
    if largest < _MOST_UNEVEN * smallest:
        return "none", ""
    balance: BalanceName = "loss" if loss == "cross-entropy" else "sqrt-sampler"
    return balance, f"; train.balance {balance}: classes have from {smallest} to {largest} training images"


def _median_side(images: ImageSet, max_pixels: int) -> int:
    """Median shorter side, in pixels, of up to 32 images spread over the set."""
    sides = []
    for path in _sampled(images):
        with suppress(UnreadableImage):
            sides.append(min(open_rgb(path, max_pixels=max_pixels).size))
    return int(np.median(sides)) if sides else 0


def _warn_of_lost_greys(images: ImageSet, max_pixels: int) -> None:
    """Warns about 16-bit images that use a small part of their range."""
    largest = []
    for path in _sampled(images):
        with suppress(UnreadableImage):
            largest.append(max_pixel_value(path, max_pixels))
    values = [value for value in largest if value is not None]
    if values and max(values) < _DARK:
        log.warning(
            f"the 16-bit images use values up to {max(values)} of 65535 and keep few grey levels in 8 bits; "
            "stretch them to the full range before training, and in the same way before predict"
        )


def _sampled(images: ImageSet) -> Iterator[ImageFile]:
    return (images.file(i) for i in evenly_spread(len(images), 32))
