"""Weights fitted to models of another shape."""

import math

import numpy as np
import pytest
import torch
from timm.layers import resample_abs_pos_embed

from deitkit import weights
from deitkit.errors import DeitkitError
from deitkit.models.blocks import resize_positions

from .models import assert_agrees, assert_same, images_for, little, weights_of


def test_weights_that_fit_are_loaded_without_a_word():
    source, target = little(0), little(1)
    assert weights.load_into(target, source.state_dict()) == []
    assert_same(target.state_dict(), source.state_dict())


def test_plain_to_distilled_copies_the_class_token():
    source, target = little(0, distilled=False), little(1)
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence == "the distillation token, its position and its head are copied from the class token"
    torch.testing.assert_close(target.dist_token, source.cls_token)
    torch.testing.assert_close(target.pos_embed[:, 1], source.pos_embed[:, 0])
    torch.testing.assert_close(target.pos_embed[:, 2:], source.pos_embed[:, 1:])
    output = target(images_for(target))
    torch.testing.assert_close(output.class_logits, output.distill_logits)


def test_distilled_to_plain_leaves_the_token_out():
    source, target = little(0), little(1, distilled=False)
    [sentence] = weights.load_into(target, weights_of(source))
    assert "are dropped" in sentence
    torch.testing.assert_close(target.pos_embed[:, 0], source.pos_embed[:, 0])
    torch.testing.assert_close(target.pos_embed[:, 1:], source.pos_embed[:, 2:])
    torch.testing.assert_close(target.head.weight, source.head.weight)


@pytest.mark.parametrize("distilled", [True, False])
def test_other_classes_start_the_heads_afresh(distilled):
    source, target = little(0, distilled=distilled), little(1, num_classes=300)
    sentences = weights.load_into(target, source.state_dict())
    assert [s for s in sentences if s.startswith("head is initialised anew for 300 classes")]
    assert [s for s in sentences if s.startswith("head_dist is initialised anew for 300 classes")]
    assert target.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(target.head.weight, target.head_dist.weight)
    assert (target.head_dist.bias == 0).all()
    torch.testing.assert_close(target.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)


def test_the_grid_counts_even_where_the_number_of_patches_agrees():
    """4 x 4 and 2 x 8 patches are 16 both; copied over, every row would land in the wrong place."""
    source, target = little(0), little(1, image_size=(8, 64))
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence == "the position embeddings are resized from 4x4 to 2x8 patches"
    expected = resize_positions(source.pos_embed, 2, (4, 4), (2, 8))
    torch.testing.assert_close(target.pos_embed, expected)


def test_an_untold_grid_is_taken_as_square_and_says_so():
    source, target = little(0), little(1, image_size=(32, 64))
    [sentence] = weights.load_into(target, source.state_dict())
    assert sentence == (
        "the position embeddings are resized from 4x4 (assumed from their number) to 8x8 patches"
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new_grid", [(24, 24), (8, 12), (14, 14)])
def test_resize_positions_as_timm_does(new_grid, antialias):
    positions = torch.randn(1, 2 + 14 * 14, 8)
    expected = resample_abs_pos_embed(
        positions, list(new_grid), [14, 14], num_prefix_tokens=2, antialias=antialias
    )
    actual = resize_positions(positions, 2, (14, 14), new_grid, antialias)
    assert_agrees(actual, expected)


def bicubic(x, size):
    """Along the first axis: Keys' kernel with a = -0.75, half-pixel centres, the border repeated."""

    def kernel(t):
        t = abs(t)
        near = 1.25 * t**3 - 2.25 * t**2 + 1
        return near if t <= 1 else (-0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0)

    n, out = len(x), []
    for i in range(size):
        at = (i + 0.5) * n / size - 0.5
        taps = range(math.floor(at) - 1, math.floor(at) + 3)
        out.append(sum(kernel(at - tap) * x[min(max(tap, 0), n - 1)] for tap in taps))
    return np.stack(out)


@pytest.mark.parametrize("new_grid", [(8, 12), (3, 7)])
def test_resize_positions_of_a_non_square_grid(new_grid):
    positions = torch.randn(1, 1 + 4 * 6, 5)
    grid = positions[0, 1:].double().numpy().reshape(4, 6, 5)
    expected = bicubic(bicubic(grid, new_grid[0]).swapaxes(0, 1), new_grid[1]).swapaxes(0, 1)
    resized = resize_positions(positions, 1, (4, 6), new_grid)
    torch.testing.assert_close(resized[:, 0], positions[:, 0])
    assert_agrees(resized[0, 1:], expected.reshape(-1, 5))


@pytest.mark.parametrize("patch_size", [(8, 16), (2, 4), (4, 4)])
def test_another_patch_size_keeps_the_size_of_the_tokens(patch_size):
    """An even kernel on an even image must give the same token whatever the number of its pixels."""
    source = little(0)
    with torch.no_grad():
        source.patch_embed.proj.weight.copy_(torch.randn(32, 3, 1, 1).expand(32, 3, 4, 8))
    target = little(1, patch_size=patch_size, image_size=(patch_size[0] * 4, patch_size[1] * 4))
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence == f"the patch kernels are resized from 4x8 to {patch_size[0]}x{patch_size[1]} pixels"
    grey = torch.tensor([0.3, -0.5, 0.9]).view(1, 3, 1, 1)
    tokens = [m.patch_embed(grey.expand(1, 3, *m.image_size))[0, 0] for m in (source, target)]
    torch.testing.assert_close(tokens[1], tokens[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 64}, "width 32 and depth 2, the student has width 64 and depth 2; choose"),
        ({"depth": 3}, "width 32 and depth 2, the student has width 32 and depth 3; choose"),
        ({"mlp_ratio": 2.0}, r"'blocks\.0\.mlp\.fc1\.weight' is \(128, 32\) in the weights and \(64, 32\)"),
        ({"in_channels": 1}, r"'patch_embed\.proj\.weight' is \(32, 3\) in the weights and \(32, 1\)"),
    ],
)
def test_another_body_is_refused(changes, message):
    with pytest.raises(DeitkitError, match=message):
        weights.load_into(little(**changes), little().state_dict())


def test_layers_that_the_model_lacks_are_refused():
    state = little().state_dict() | {"blocks.0.attn.q_norm.weight": torch.ones(8)}
    with pytest.raises(DeitkitError, match=r"an extra 'blocks\.0\.attn\.q_norm\.weight'"):
        weights.load_into(little(), state)
    state = little().state_dict()
    del state["norm.bias"]
    with pytest.raises(DeitkitError, match=r"no 'norm\.bias'"):
        weights.load_into(little(), state)


def test_layer_scale_starts_at_one_on_weights_without_it():
    source, target = little(0), little(1, layer_scale=1e-4)
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence.startswith("LayerScale is initialised to 1")
    images = images_for(source)
    torch.testing.assert_close(target(images), source(images))
