"""The student chosen, refused where it cannot be, and built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .. import log
from ..config import Config
from ..data.decode import UnreadableImage, max_pixel_value, open_rgb
from ..data.image_set import ImageSet, evenly_spread
from ..data.splits import Splits
from ..errors import SettingError
from ..models.deit import VARIANTS, DeiT, create_model
from ..weights import find_initial, load_into, read

# What a student of little data sees where nobody says how long to train: enough for a few thousand
# images, minutes on a CPU.
_VIEWS = 120_000
_DARK = 65536 // 4  # 14 bits of 16: a image of fewer loses most of its greys


def view_workers(config: Config, device: torch.device) -> int:
    """Threads that make views ahead: none on a CPU, where a model's own threads use every core."""
    workers = config.data.workers
    return workers if workers is not None else (0 if device.type == "cpu" else 4)


def choose_student(config: Config, splits: Splits, device: torch.device) -> tuple[Config, str]:
    """Fills in the student's name, image and patch size, epochs, batches, loss; and a sentence on it."""
    student, images = config.student, splits.train
    side = _median_side(images)
    _warn_of_lost_greys(images)
    name = student.name
    if name == "auto":
        name = "nano" if device.type == "cpu" else "tiny" if len(images) < 20_000 else "small"
    if name not in VARIANTS:
        raise SettingError(f"there is no student {name!r}; choose auto, {', '.join(VARIANTS)}")
    if device.type == "cpu":
        # 64 patches keep a CPU's epoch short; a smaller image for images that hold no more.
        chosen = 32 if side <= 40 else 64 if side <= 80 else 96
    else:
        chosen = 32 if side <= 40 else 64 if side <= 80 else 128 if side <= 160 else 224
    image_size = student.image_size or (chosen, chosen)
    on_cpu = device.type == "cpu"
    default_patch = max(4, round(max(image_size) / 8) if on_cpu else min(16, max(image_size) // 14))
    patch = student.patch_size or (
        _divisor(image_size[0], default_patch),
        _divisor(image_size[1], default_patch),
    )
    if image_size[0] % patch[0] or image_size[1] % patch[1]:
        raise SettingError(
            f"image size {image_size[0]}x{image_size[1]} is no multiple of patch size {patch[0]}x{patch[1]}; "
            "choose sizes that divide evenly"
        )
    why = (
        f"student {name} at {image_size[0]}x{image_size[1]} in patches of {patch[0]}x{patch[1]}: "
        f"{len(images)} training images of about {side} pixels, on {device.type}"
    )
    epochs = config.train.epochs
    if epochs is None:
        epochs = min(200, max(10, round(_VIEWS / len(images))))
        if config.train.budget_s is None:
            why += f"; {epochs} epochs for that many images"
    loss = config.train.loss
    if loss == "auto":
        loss = "bce" if images.task == "multilabel" else "cross-entropy"
    if images.task == "multilabel":
        why += "; loss bce, a question a label, since an image may have several"
    batch = min(config.train.batch_size, max(2, len(images) * config.data.repeats))
    micro = config.train.micro_batch_size or min(32 if device.type == "cpu" else 256, batch)
    config = replace(
        config,
        student=replace(student, name=name, image_size=image_size, patch_size=patch),
        train=replace(config.train, epochs=epochs, batch_size=batch, micro_batch_size=micro, loss=loss),
    )
    _refuse_impossible_start(config)
    return config, why


def _refuse_impossible_start(config: Config) -> None:
    """Raises DeitkitError for a first size that the student cannot start at."""
    start, full, patch = config.train.start_size, config.student.image_size, config.student.patch_size
    if start is None:
        return
    assert full is not None and patch is not None
    if not 0 < config.train.start_share < 1:
        raise SettingError(
            f"train.start_share is {config.train.start_share:g}; give a share above 0 and below 1, "
            "or leave out train.start_size"
        )
    if any(s < p or s % p or s > f for s, p, f in zip(start, patch, full, strict=True)) or start == full:
        raise SettingError(
            f"train.start_size {start[0]}x{start[1]} does not fit; give a size below {full[0]}x{full[1]} "
            f"that is a multiple of the patch size {patch[0]}x{patch[1]}"
        )


def resolve_initial_weights(config: Config, saved: Config | None) -> Config:
    """`student.initial_weights` without "auto": what a run that is resumed began with, else what can be had now."""
    if config.student.initial_weights != "auto":
        return config
    if saved is not None:
        return replace(config, student=replace(config.student, initial_weights=saved.student.initial_weights))
    init, why = find_initial(config.student.name)
    log.info(why)
    return replace(config, student=replace(config.student, initial_weights=init))


def _divisor(size: int, near: int) -> int:
    """The divisor of `size` nearest to `near`."""
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: (abs(d - near), d))


def _median_side(images: ImageSet) -> int:
    """The median shorter side, in pixels, of up to 32 images spread over the set."""
    sides = []
    for path in _sampled(images):
        try:
            sides.append(min(open_rgb(path).size))
        except UnreadableImage:
            continue
    return int(np.median(sides)) if sides else 0


def _warn_of_lost_greys(images: ImageSet) -> None:
    """Says where 16-bit images use a small part of their range: in 8 bits hardly a grey would be left."""
    largest = []
    for path in _sampled(images):
        with suppress(UnreadableImage):
            largest.append(max_pixel_value(path))
    values = [value for value in largest if value is not None]
    if values and max(values) < _DARK:
        log.info(
            f"the 16-bit images use values up to {max(values)} of 65535 and keep few greys in 8 bits: "
            "stretch them to the full range before training, and in the same way before predict"
        )


def _sampled(images: ImageSet) -> Iterator[Path]:
    return (images.full_path(i) for i in evenly_spread(len(images), 32))


def check_initial(config: Config, num_classes: int) -> None:
    """Raises DeitkitError for initial weights that cannot be had or do not fit, before hours of work."""
    _with_initial(config, num_classes)


def build_model(config: Config, num_classes: int) -> DeiT:
    """The student, initial weights from the run's seed; plain where no distillation token is trained."""
    model, changes = _with_initial(config, num_classes)
    for change in changes:
        log.info(f"initial weights: {change}")
    return model


def _with_initial(config: Config, num_classes: int) -> tuple[DeiT, list[str]]:
    """The student, and how the weights that it starts from were changed for it."""
    assert config.student.image_size is not None and config.student.patch_size is not None
    torch.manual_seed(config.train.seed)
    distilled = config.distillation.mode != "none" and config.distillation.token == "distill"
    model = create_model(
        config.student.name,
        num_classes=num_classes,
        image_size=config.student.image_size,
        patch_size=config.student.patch_size,
        drop_path_rate=config.student.drop_path_rate,
        distilled=distilled,
        layer_scale=config.student.layer_scale,
        patch_drop_rate=config.student.patch_drop_rate,
    )
    if config.student.init_scheme == "structured":
        model.init_structured()
    assert config.student.initial_weights != "auto", "settle_init comes first"
    if config.student.initial_weights == "none":
        return model, []
    return model, load_into(
        model, read(config.student.initial_weights), antialias=config.student.init_antialias
    )
