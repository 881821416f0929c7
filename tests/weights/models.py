"""Small models with random weights, and how near two answers are."""

import numpy as np
import torch

from deitkit import weights
from deitkit.models.deit import DeiT


def little(seed=0, **changes) -> DeiT:
    """A small model whose parameters are all random; 4 x 4 patches, the same number as a 2 x 8 grid has."""
    settings = dict(image_size=(16, 32), patch_size=(4, 8), num_classes=5, embed_dim=32, depth=2, num_heads=4)
    model = DeiT(**(settings | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def images_for(model: DeiT) -> torch.Tensor:
    return torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


def assert_same(state, expected):
    assert set(state) == set(expected)
    for k in expected:
        torch.testing.assert_close(state[k], expected[k], rtol=0, atol=0, msg=k)


def assert_agrees(actual, expected, tolerance=1e-5):
    """Equal up to an absolute difference, which `pytest -rP` shows."""
    difference = np.abs(np.asarray(actual.detach()) - np.asarray(expected)).max()
    print(f"largest difference: {difference:.1e}")
    assert difference < tolerance


def weights_of(model: DeiT) -> weights.Weights:
    out = weights.Weights(model.state_dict())
    out.grid_size = model.grid_size
    return out
