"""A view reaches the teacher at its own size; whole images as timm's own pipeline would cut them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from deitkit.data.decode import center_crop
from deitkit.preprocessing import InputSize, Preprocessing


def test_sizes():
    assert InputSize(None, (96, 96)).resolve(224) == (128, 128)
    assert InputSize(None, (160, 96)).resolve(224) == (160, 160)
    assert InputSize(None, (384, 384)).resolve(224) == (224, 224)
    assert InputSize(None, None).resolve(240) == (240, 240)
    assert InputSize(300, (96, 96)).resolve(224) == (300, 300)


def test_a_view_of_the_right_size_is_left_alone():
    views = torch.rand(2, 3, 32, 32)
    assert Preprocessing((32, 32)).resize(views) is views


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_view_is_resized_the_teachers_way(mode):
    views = torch.rand(2, 3, 20, 20)
    larger = Preprocessing((32, 32), interpolation=mode).resize(views)
    expected = torch.nn.functional.interpolate(views, (32, 32), mode=mode).clamp(0, 1)
    torch.testing.assert_close(larger, expected)
    smaller = Preprocessing((8, 8), interpolation=mode).resize(views)
    assert smaller.std() < 0.7 * views.std()  # averaged, not picked


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_pictures_are_cut_as_timm_cuts_them(interpolation):
    rng = np.random.RandomState(0)
    coarse = Image.fromarray(rng.randint(0, 255, (4, 6, 3), dtype=np.uint8))
    picture = coarse.resize((360, 240), Image.Resampling.BICUBIC)
    plain = {"mean": (0,) * 3, "std": (1,) * 3}
    theirs = create_transform((3, 64, 64), crop_pct=0.875, interpolation=interpolation, **plain)
    ours = torch.tensor(center_crop(picture, (64, 64), 0.875, interpolation=interpolation)).float() / 255
    other = torch.tensor(center_crop(picture, (64, 64), 1.0, interpolation=interpolation)).float() / 255
    cut = theirs(picture)
    # Both round to whole pixels in their own way, so that the cuts lie within half a pixel.
    assert (cut - ours).abs().mean() < 4 / 255 < (cut - other).abs().mean() / 2
