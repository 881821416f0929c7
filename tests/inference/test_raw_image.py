"""An image resized inside the graph is the view that an evaluation makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from deitkit.data.decode import center_crop
from deitkit.inference.joint_classifier import ClassifierGraph
from deitkit.inference.raw_image import RawImageGraph


class Nothing(ClassifierGraph):
    output_names = ("probabilities",)

    def forward(self, views):
        return (views,)


def difference(size: tuple[int, int], crop: float) -> torch.Tensor:
    """Of each pixel's value, between the graph and an evaluation."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = center_crop(Image.fromarray(pixels), (16, 24), crop)
    found = RawImageGraph(Nothing(), (16, 24), crop)(torch.from_numpy(pixels))[0]
    assert found.shape == (1, 3, 16, 24) and found.min() >= 0 and found.max() <= 1
    return ((found[0] * 255).round().int() - torch.from_numpy(expected.copy()).int()).abs()


@pytest.mark.parametrize("size", [(16, 24), (17, 26), (20, 300), (90, 50), (640, 480), (2, 2)])
@pytest.mark.parametrize("crop", [0.9, 1.0])
def test_views_are_those_of_an_evaluation(size, crop):
    found = difference(size, crop)
    assert found.max() <= 1 and (found != 0).float().mean() < 0.01


@pytest.mark.parametrize("size", [(300, 20), (5, 7), (1000, 2)])
def test_extreme_shapes_differ_where_noise_saturates(size):
    """Pillow 13 resizes columns first in some, so that other values are clipped between the passes."""
    assert difference(size, 0.9).float().mean() < 1
