"""Settings as keyword arguments `section__key`, for type checkers and completion.

Written by tests/write_keywords.py from the declarations in config.py.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from .config import BackendName
from .settings import Auto


class Keywords(TypedDict, total=False):
    """`**settings` of `train`, `pretrain` and `label`; `deitkit settings` prints them with their defaults."""

    student__name: str
    """nano, nano-hybrid, tiny, small or base; auto: by device and images."""
    student__image_size: int | tuple[int, int] | Auto
    """Height and width in pixels; auto: by device and images."""
    student__patch_size: int | tuple[int, int] | Auto
    """Height and width in pixels; auto: about 64 patches on a CPU."""
    student__drop_path_rate: float
    """Stochastic depth of the last block (arXiv 1603.09382)."""
    student__patch_drop_rate: float
    """Share of patches dropped in training (PatchDropout, arXiv 2208.07220)."""
    student__init_scheme: Literal["published", "structured"]
    """Weight initialisation scheme; structured needs less data (DeiT.init_structured)."""
    student__layer_scale: float | None
    """LayerScale init value (arXiv 2103.17239); none disables it."""
    student__init_antialias: bool
    """Resize position embeddings of initial weights with antialiasing, as timm does."""
    student__initial_weights: str
    """Initial weights: auto, none, a run folder, a file, timm:NAME, hf:NAME or deitkit:NAME."""
    data__split: Literal["stratified", "blocks"]
    """How validation images are held out; blocks keeps consecutive file names together."""
    data__split_seed: int
    """Seed of the split; independent of train.seed."""
    data__group: str
    """Images kept together by a split: none, auto (near-duplicates), folder, a column, or a regex."""
    data__relabel: str | None
    """CSV file of path and label: labels to use instead of the data's."""
    data__exclude: str | None
    """CSV file with a column path: images to leave out."""
    data__val_fraction: float
    """Share held out for validation if the folder has no val/."""
    data__train_fraction: float
    """Share of the training images to use."""
    data__eval_fraction: float
    """Share of the validation images to use."""
    data__eval_crop: float
    """Share of the shorter side kept by evaluation's centre crop."""
    data__repeats: int
    """Views of each image in a batch (repeated augmentation, arXiv 1902.05509, 1901.09335)."""
    data__views: int | Auto | None
    """Different views of an image, shown in turn; auto: 4 to 32 by images; none: new in every epoch."""
    data__unlabeled: str | None
    """Folder of unlabelled images for the teacher to label."""
    data__unlabeled_share: float
    """Share of each batch taken by unlabelled images."""
    data__max_broken: float
    """Share of images that may be unreadable and are skipped; three always may, unless it is 0."""
    data__max_pixels: int
    """Width times height that an image may have; a larger one is unreadable."""
    data__cache_gb: float
    """Decoded pixels are cached on disk up to this size."""
    data__workers: int | Auto
    """Threads that decode and augment batches ahead; auto: by device."""
    augment__view_size: int | tuple[int, int] | None
    """Height and width of a view before a larger teacher and the student resize it; none: the student's."""
    augment__crop_scale: float | tuple[float, float]
    """Area of a random crop, as a share."""
    augment__crop_ratio: float | tuple[float, float]
    """Aspect ratio (width / height) of a random crop."""
    augment__flip: float
    """Probability of a horizontal flip."""
    augment__randaugment_ops: int
    """Operations per view (RandAugment, arXiv 1909.13719); 0 disables it."""
    augment__randaugment_magnitude: float
    """Magnitude, out of 10."""
    augment__randaugment_std: float
    """Standard deviation of the magnitude."""
    augment__three_augment: bool
    """Grayscale, solarisation or blur for each view (3-Augment, arXiv 2204.07118)."""
    augment__color_jitter: float
    """Jitter of brightness, contrast and saturation."""
    augment__erasing: float
    """Probability of random erasing (arXiv 1708.04896)."""
    augment__mixup: float
    """Beta parameter of mixup (arXiv 1710.09412); 0 disables it."""
    augment__cutmix: float
    """Beta parameter of CutMix (arXiv 1905.04899); 0 disables it."""
    augment__mix_probability: float
    """Probability that a pair of views is mixed."""
    augment__cutmix_share: float
    """Share of mixed pairs that use CutMix if both are enabled."""
    teacher__spec: str
    """auto, none, SOURCE:NAME, the folder of a fitted teacher, or an ensemble such as A*2,B."""
    teacher__fit: Literal["auto", "head", "probe", "finetune", "finetune-last"]
    """Pretrained head, linear probe, or fine-tune the whole network or its last half."""
    teacher__classes: str | None
    """Outputs of the pretrained head to use: imagenet, or a file; none: match by name."""
    teacher__image_size: int | Auto
    """Input size in pixels; auto: by the student's."""
    teacher__deploy_sizes: int | tuple[int, ...] | Auto | None
    """Sizes at which the teacher may be deployed; auto: 96, 128, 160, 224; none: no size."""
    teacher__probe_views: int
    """Views of each training image that the probe is fitted on."""
    teacher__mean: float | tuple[float, float, float] | None
    """Channel means; none: the teacher's own."""
    teacher__std: float | tuple[float, float, float] | None
    """Channel standard deviations; none: the teacher's own."""
    teacher__backend: BackendName
    """Inference backend; auto: the fastest one that agrees with PyTorch."""
    teacher__soft_labels: str | None
    """Folder of stored soft labels (deitkit label) to use instead of a live teacher."""
    teacher__code: str | None
    """python:MODULE:FUNCTION that a saved teacher may run; never read from a file."""
    teacher__trust_remote_code: bool
    """Run code that comes with a model of a hub; never read from a file."""
    distillation__mode: str
    """Distillation loss, or none."""
    distillation__token: Literal["distill", "class", "both"]
    """Token that learns from the teacher; class: a plain ViT with one head."""
    distillation__alpha: float
    """Weight of the distillation loss; the label loss weighs 1 - alpha."""
    distillation__distill_until: float
    """Share of training after which distillation stops and both heads learn from labels."""
    distillation__temperature: float
    """Temperature of soft distillation (arXiv 1503.02531)."""
    distillation__standardise: bool
    """Standardise both logits before soft distillation (arXiv 2403.01427)."""
    distillation__reduction: Literal["batch", "batch_and_classes"]
    """Of soft distillation; batch_and_classes divides by the classes too, as the published code."""
    distillation__smoothing: float
    """Label smoothing of the teacher's hard labels."""
    distillation__features: Literal["maps", "embedding"]
    """What feature distillation imitates: maps (arXiv 2207.10026), or what the teacher's head reads."""
    distillation__feature_weight: float
    """Weight of feature distillation; 0 disables it."""
    distillation__feature_until: float
    """Share of training after which feature distillation stops."""
    optim__name: str
    """Optimizer; lamb suits large batches."""
    optim__lr: float
    """Learning rate at `lr_batch` images per step, scaled linearly."""
    optim__lr_batch: int
    """Global batch size that `lr` refers to."""
    optim__min_lr: float
    """Learning rate at the end of the cosine."""
    optim__warmup_lr: float
    """Learning rate at the start of the warm-up."""
    optim__warmup_epochs: float
    """Linear warm-up, at most a fifth of training."""
    optim__layer_decay: float
    """Each block's learning rate as a share of the next one's (arXiv 2106.08254)."""
    optim__stem_lr: float
    """Learning rate of a hybrid's stem as a share of the others'; 0 freezes it."""
    optim__weight_decay: float
    """Weight decay of matrices; tokens, positions, norms and biases have none."""
    optim__betas: float | tuple[float, float]
    """Adam's betas; the first one is SGD's momentum."""
    optim__clip_grad: float | None
    """Largest norm of the gradient; none disables it."""
    optim__ema_decay: float
    """EMA decay per step, warmed up as (1 + n) / (10 + n)."""
    train__epochs: int | Auto
    """Epochs; auto: by the number of images, 10 to 200."""
    train__budget_s: float | None
    """Seconds that the whole job may take; sets the epochs."""
    train__batch_size: int
    """Global batch size: images per step."""
    train__micro_batch_size: int | Auto
    """Images per forward pass; auto: by device and its memory."""
    train__loss: Literal["auto", "cross-entropy", "bce"]
    """Label loss; auto: bce if multilabel, else cross-entropy."""
    train__label_smoothing: float
    """Label smoothing."""
    train__balance: Literal["auto", "none", "sampler", "sqrt-sampler", "loss"]
    """For uneven classes: a sampler, even or by square roots, or adjusted logits (arXiv 2007.07314)."""
    train__metric: Literal["auto", "top1", "balanced", "macro-f1", "map"]
    """What weights and the recommended model are chosen by; auto: balanced if classes are uneven."""
    train__start_size: int | tuple[int, int] | None
    """Image size for the first part of training (FixRes, arXiv 1906.06423)."""
    train__start_share: float
    """Share of the steps trained at `start_size`."""
    train__patience: int | None
    """Stop after this many evaluations without a lower validation loss."""
    train__prefer: Literal["balanced", "accuracy", "speed"]
    """What the recommended model is chosen for; see docs/choosing.md."""
    train__log: str | tuple[str, ...]
    """Trackers of the curves: tensorboard (if it is installed), mlflow, wandb."""
    train__device: str
    """auto, cpu, cuda or mps."""
    train__seed: int
    """Seed of initial weights, batches and augmentation."""
    train__deterministic: bool
    """On a GPU: the same bits in every run, more slowly."""
    train__baseline: bool
    """Also train a baseline: the same student without a teacher."""
