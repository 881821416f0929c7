"""Whether images are like those that an ImageNet teacher has learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import torch

from ..config import TeacherConfig
from ..data.cache import Decoder
from ..data.decode import UnreadableImage
from ..data.stored import ImageFile
from .fit import pretrained_head_teacher

_VIEW = (224, 224)
_CPU = torch.device("cpu")


def recognition(files: Iterable[ImageFile], max_pixels: int) -> float:
    """The mean probability of the class that EfficientNet-Lite0 names first, of ImageNet's 1000.

    Of the centre crops of `files` at 224 pixels; those that cannot be read are left out, and 0 is returned if
    none can. About 25 ms per image. Raises WeightsError if the network's package is not installed.
    """
    config = TeacherConfig(spec="lite0", image_size=_VIEW[0], backend="pytorch")
    teacher = pretrained_head_teacher(config, None, student_size=None, device=_CPU)
    decode, first = Decoder(_VIEW, "center_crop", 0.875, max_pixels), []
    for file in files:
        with suppress(UnreadableImage):
            pixels, _ = decode(file)
            logits = teacher(torch.tensor(pixels)[None] / 255).logits
            first.append(float(logits.softmax(1).max()))
    return sum(first) / len(first) if first else 0.0
