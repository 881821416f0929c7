"""Recipes: each function returns a Config and names its source, command, cost and published results.

`get(name)` finds one. To add a recipe, write its function and add it to `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import (
    AugmentConfig,
    Config,
    DataConfig,
    DistillationConfig,
    OptimConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from .errors import SettingError, did_you_mean


def small_data() -> Config:
    """Hundreds to tens of thousands of images, on any machine; the default.

    Not the paper's recipe: trained initial weights if there are any, light augmentation, small batches. The
    first half of training uses soft distillation and strong feature distillation (Locality Guidance, arXiv
    2207.10026), the second half labels alone. Measurements: docs/small-data.md.

    Command: deitkit train DATA --out RUN
    Cost: about a quarter of an hour on two CPU cores; --epochs or --budget sets it.
    """
    return Config()


def hybrid() -> Config:
    """Photographs like ImageNet's, on any machine: a convnet's first stages, then DeiT's blocks and heads.

    Not the paper's recipe: `nano-hybrid` keeps the frozen first stages of EfficientNet-Lite0 and learns soft
    labels to the end, from a teacher that sees sharper views. Measurements: docs/hybrid.md.

    Command: deitkit train DATA --out RUN --recipe hybrid
    Cost: about twice that of small-data, image for image.
    """
    light = small_data()
    return replace(
        light,
        recipe="hybrid",
        student=replace(light.student, name="nano-hybrid"),
        data=replace(light.data, eval_crop=0.875, views="auto"),
        augment=replace(light.augment, view_size=(224, 224), crop_scale=(0.35, 1.0), color_jitter=0.0),
        distillation=replace(
            light.distillation,
            token="both",
            alpha=0.6,
            distill_until=1.0,
            features="embedding",
            feature_weight=0.5,
            feature_until=1.0,
        ),
        optim=replace(light.optim, lr=5e-4, clip_grad=1.0),
    )


def pretrain() -> Config:
    """Initial weights for students, from unlabelled images and an ImageNet teacher.

    Not the paper's recipe: a plain ViT learns the teacher's probabilities over 1000 classes and its feature
    maps (arXiv 2207.10026) on the same views as the teacher (arXiv 2106.05237). Crops are stronger than in
    small-data, since there is no label that a crop could miss.

    Command: deitkit pretrain FOLDER [FOLDER ...] --out RUN, then deitkit train DATA --init RUN
    Cost: about 100 views a second on a CPU core, nano at 64 pixels.
    """
    light = small_data()
    return replace(
        light,
        recipe="pretrain",
        student=replace(light.student, initial_weights="none"),
        augment=replace(light.augment, crop_scale=(0.25, 1.0)),
        distillation=replace(
            light.distillation, token="class", alpha=1.0, distill_until=1.0, feature_until=1.0
        ),
        optim=replace(light.optim, lr_batch=64),
        train=TrainConfig(epochs=10, batch_size=64, label_smoothing=0.0),
    )


def pretrain_hybrid() -> Config:
    """As `pretrain`, for the blocks of a hybrid: its frozen stem has learnt from ImageNet already.

    Not the paper's recipe: both tokens learn the teacher's probabilities over 1000 classes and its embedding.
    The teacher sees views of 160 pixels, since most collections of many photographs hold no more.

    Command: deitkit pretrain FOLDER [FOLDER ...] --out RUN --student nano-hybrid, then
      deitkit train DATA --recipe hybrid --init RUN
    Cost: about 90 views a second on two CPU cores that have other work.
    """
    plain = pretrain()
    return replace(
        plain,
        recipe="pretrain-hybrid",
        student=replace(plain.student, name="nano-hybrid", image_size=(128, 128)),
        data=replace(plain.data, eval_crop=0.875),
        augment=replace(plain.augment, view_size=(160, 160), crop_scale=(0.35, 1.0)),
        distillation=replace(plain.distillation, token="both", features="embedding", feature_weight=4.0),
        optim=replace(plain.optim, clip_grad=1.0),
    )


def deit() -> Config:
    """DeiT without distillation, as in the paper's table 9.

    Paper: Touvron et al., arXiv 2012.12877, section 6 and table 9.
    Command: deitkit train IMAGENET --out RUN --recipe deit --student base
    Cost: B 424 GPU-hours (53 hours on eight V100), Ti and S less than three days on four (section 5.6).
    Published on ImageNet-1k, top-1 in %: Ti 72.2, S 79.8, B 81.8 (table 5).
    """
    return Config(
        recipe="deit",
        student=StudentConfig(image_size=(224, 224), patch_size=(16, 16), drop_path_rate=0.1),
        data=DataConfig(repeats=3, eval_crop=0.875),
        augment=AugmentConfig(),
        distillation=DistillationConfig(mode="none"),
        optim=OptimConfig(),
        train=TrainConfig(epochs=300, batch_size=1024, label_smoothing=0.1),
    )


def deit_distilled() -> Config:
    """DeiT with hard distillation through the distillation token.

    Paper: Touvron et al., arXiv 2012.12877, section 4; otherwise as `deit`.
    Command: deitkit train IMAGENET --out RUN --recipe deit-distilled --student base
      --teacher timm:regnety_160.deit_in1k
    Cost: that of `deit` plus the teacher's forward passes, which the paper does not report separately.
    Published on ImageNet-1k under RegNetY-16GF (82.9), top-1 in %: Ti 74.5, S 81.2, B 83.4
      (table 5); after 1000 epochs 76.6, 82.6, 84.2 (--epochs 1000).
    """
    return replace(deit(), recipe="deit-distilled", distillation=DistillationConfig(mode="hard", alpha=0.5))


def deit_384() -> Config:
    """Fine-tunes a DeiT from 224 to 384 pixels with distillation, the teacher at 384 as well.

    Paper: Touvron et al., arXiv 2012.12877, sections 3, 4 and 5.5; learning rates, weight decay and
    epochs are those of the published command for DeiT-B.
    Command: deitkit train IMAGENET --out RUN384 --recipe deit-384 --student base --init RUN
      --teacher timm:regnety_160.deit_in1k
    Cost: B 160 GPU-hours (20 hours on eight V100 for 25 epochs, section 5.6).
    Published on ImageNet-1k, top-1 in %: B 84.5, after 1000 epochs of training 85.2 (table 5).
    """
    return Config(
        recipe="deit-384",
        student=StudentConfig(
            image_size=(384, 384), patch_size=(16, 16), drop_path_rate=0.1, initial_weights="auto"
        ),
        data=DataConfig(repeats=3, eval_crop=0.875),
        augment=AugmentConfig(),
        teacher=TeacherConfig(image_size=384),
        distillation=DistillationConfig(mode="hard", alpha=0.5),
        optim=OptimConfig(lr=5e-6, lr_batch=512, min_lr=5e-6, weight_decay=1e-8),
        train=TrainConfig(epochs=30, batch_size=512),
    )


def deit3() -> Config:
    """DeiT III: 3-Augment, LayerScale, BCE and LAMB, without a teacher, at 192 pixels.

    Paper: Touvron et al., arXiv 2204.07118; the values are those of the published command for ViT-B.
    ViT-S was trained at 224 (--image-size 224 --set optim.lr=4e-3 --set student.drop_path_rate=0.05).
    After 192 come 20 epochs at 224, with RandAugment in 3-Augment's place: the second command.
    Command: deitkit train IMAGENET --out RUN192 --recipe deit3 --student base
      deitkit train IMAGENET --out RUN --recipe finetune --distillation none --student base
      --init RUN192 --image-size 224 --patch-size 16 --epochs 20 --batch-size 512
      --set optim.lr=1e-5 --set optim.lr_batch=512 --set optim.weight_decay=0.1
      --set optim.warmup_epochs=5 --set student.drop_path_rate=0.2 --set augment.randaugment_ops=2
      --set augment.crop_scale=0.08,1 --set augment.mixup=0.8 --set augment.cutmix=1
    Cost: eight GPUs of 256 images each for 800 epochs; the GPU hours are not published.
    Published on ImageNet-1k at 224, top-1 in %: S 81.4, B 83.8.
    """
    return Config(
        recipe="deit3",
        student=StudentConfig(
            image_size=(192, 192), patch_size=(16, 16), drop_path_rate=0.2, layer_scale=1e-4
        ),
        data=DataConfig(repeats=3, eval_crop=1.0),
        augment=AugmentConfig(randaugment_ops=0, three_augment=True, color_jitter=0.3, erasing=0.0),
        distillation=DistillationConfig(mode="none"),
        optim=OptimConfig(name="lamb", lr=3e-3, lr_batch=2048),
        train=TrainConfig(epochs=800, batch_size=2048, loss="bce", label_smoothing=0.0),
    )


def transfer() -> Config:
    """Transfers ImageNet weights to another data set as the paper does, with distillation.

    Paper: Touvron et al., arXiv 2012.12877, section 5.4 and table 7, which gives no values:
    these are what its authors reported for iNaturalist in their repository's discussions. There, CIFAR-10
    and Cars took 1000 epochs without random erasing and stochastic depth. For a small folder use `finetune`.
    Command: deitkit train DATA --out RUN --recipe transfer --student base
    Cost: not published.
    Published for the distilled B at 384 pixels, top-1 in %: iNaturalist-18 80.1, iNaturalist-19 83.0,
      CIFAR-10 99.2, CIFAR-100 91.4, Flowers 98.9, Cars 93.9.
    """
    return Config(
        recipe="transfer",
        student=StudentConfig(
            image_size=(224, 224), patch_size=(16, 16), drop_path_rate=0.1, initial_weights="auto"
        ),
        data=DataConfig(repeats=3, eval_crop=0.875),
        augment=AugmentConfig(erasing=0.1),
        distillation=DistillationConfig(mode="hard", alpha=0.5),
        optim=OptimConfig(lr=7.5e-5, lr_batch=768),
        train=TrainConfig(epochs=360, batch_size=768),
    )


def finetune() -> Config:
    """Fine-tunes trained weights with distillation, on a short and gentle schedule.

    Not the paper's recipe (those are `deit-384` and `transfer`). Both heads learn from a teacher at the
    target resolution (arXiv 2012.12877, section 4, "Fine-tuning with distillation").

    Command: deitkit train DATA --out RUN --recipe finetune --init OTHER_RUN
    Cost: minutes on two CPU cores for a small folder; --budget sets it.
    """
    return Config(
        recipe="finetune",
        student=StudentConfig(drop_path_rate=0.1, initial_weights="auto"),
        augment=AugmentConfig(crop_scale=(0.35, 1.0), erasing=0.0, mixup=0.0, cutmix=0.0),
        distillation=DistillationConfig(mode="hard", alpha=0.5),
        optim=OptimConfig(lr=2e-4, lr_batch=64, min_lr=1e-6, warmup_epochs=1, ema_decay=0.998, clip_grad=1.0),
        train=TrainConfig(epochs=30, batch_size=64),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "small-data": small_data,
    "hybrid": hybrid,
    "pretrain": pretrain,
    "pretrain-hybrid": pretrain_hybrid,
    "deit": deit,
    "deit-distilled": deit_distilled,
    "deit-384": deit_384,
    "deit3": deit3,
    "transfer": transfer,
    "finetune": finetune,
}


def get(name: str) -> Config:
    """The recipe called `name`. Raises SettingError, with the nearest name, if there is none."""
    if name not in RECIPES:
        also = did_you_mean(name, RECIPES)
        raise SettingError(f"there is no recipe {name!r}, only {', '.join(RECIPES)}{also}")
    return RECIPES[name]()
