"""The same numbers as timm's DeiT: logits of both heads, every block's tokens, every gradient."""

import pytest
import timm
import torch

from deitkit.models.deit import DeiT, create_model

from .models import randomise, tokens_of

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}

CASES = [
    # timm's name, ours, image size, what to change on both sides
    pytest.param("deit_tiny_distilled_patch16_224", "tiny", 224, id="Ti-distilled"),
    pytest.param("deit_tiny_patch16_224", "tiny", 224, id="Ti"),
    pytest.param("deit_small_distilled_patch16_224", "small", 224, id="S-distilled", marks=pytest.mark.slow),
    pytest.param("deit_small_patch16_224", "small", 224, id="S", marks=pytest.mark.slow),
    pytest.param("deit_base_distilled_patch16_224", "base", 224, id="B-distilled", marks=pytest.mark.slow),
    pytest.param("deit_base_patch16_224", "base", 224, id="B", marks=pytest.mark.slow),
    pytest.param("deit_base_distilled_patch16_384", "base", 384, id="B-384", marks=pytest.mark.slow),
]


def compare(ours: DeiT, theirs: torch.nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """Largest differences: absolute for logits and tokens, relative to the largest entry for gradients."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    if ours.dist_token is not None:
        theirs.set_distilled_training(True)
    ours.train(), theirs.train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, *ours.image_size, generator=generator, dtype=dtype)
    our_tokens, their_tokens = tokens_of(ours.blocks), tokens_of(theirs.blocks)
    # The last block's tokens are asked for, else they are left out.
    mine = ours(images, tokens_after=(len(ours.blocks) - 1,))
    reference = theirs(images)
    pairs = (
        list(zip(mine[:2], reference, strict=True)) if ours.dist_token is not None else [(mine[0], reference)]
    )
    weights = [torch.randn(a.shape, generator=generator, dtype=dtype) for a, _ in pairs]
    sum((a * w).sum() for (a, _), w in zip(pairs, weights, strict=True)).backward()
    sum((b * w).sum() for (_, b), w in zip(pairs, weights, strict=True)).backward()
    gradients = {k: p.grad for k, p in theirs.named_parameters()}
    assert len(our_tokens) == len(their_tokens) == len(ours.blocks)
    return {
        "logits": max((a - b).abs().max().item() for a, b in pairs),
        "tokens": max((a - b).abs().max().item() for a, b in zip(our_tokens, their_tokens, strict=True)),
        "gradients": max(
            ((p.grad - gradients[k]).abs().max() / gradients[k].abs().max()).item()
            for k, p in ours.named_parameters()
        ),
    }


def assert_equal(ours: DeiT, theirs: torch.nn.Module, dtype: torch.dtype, record_property) -> None:
    differences = compare(ours, theirs, dtype)
    for what, difference in differences.items():
        print(f"{what}: {difference:.1e}")
        record_property(what, difference)
    assert max(differences.values()) < TOLERANCE[dtype], differences


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "variant", "image_size"), CASES)
def test_weights_of_deitkit_in_timm(name, variant, image_size, dtype, record_property):
    ours = create_model(variant, num_classes=1000, image_size=image_size, distilled="distilled" in name)
    randomise(ours)
    theirs = timm.create_model(name)
    theirs.load_state_dict(ours.state_dict())
    assert_equal(ours, theirs, dtype, record_property)


@pytest.mark.parametrize("distilled", [True, False], ids=["distilled", "plain"])
def test_weights_of_timm_in_deitkit_non_square(distilled, record_property):
    """The other way round, on a shallow model with a non-square image and non-square patches."""
    name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    theirs = timm.create_model(name, img_size=(48, 96), patch_size=(16, 8), depth=3, num_classes=7)
    randomise(theirs)
    ours = DeiT(
        image_size=(48, 96),
        patch_size=(16, 8),
        num_classes=7,
        embed_dim=192,
        depth=3,
        num_heads=3,
        distilled=distilled,
    )
    ours.load_state_dict(theirs.state_dict())
    assert_equal(ours, theirs, torch.float64, record_property)
