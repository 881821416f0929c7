"""The same numbers as transformers' DeiT and ViT: logits of both heads, blocks' tokens, gradients."""

import pytest
import torch

from deitkit.models.deit import DeiT, create_model
from deitkit.weights import published_keys, transformers_keys

from .models import randomise, tokens_of

transformers = pytest.importorskip("transformers")

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}


def reference_model(model: DeiT, num_heads: int) -> torch.nn.Module:
    """transformers' model of the same shape, with random weights."""
    config = dict(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=num_heads,
        intermediate_size=4 * model.embed_dim,
        layer_norm_eps=1e-6,
        image_size=model.image_size,
        patch_size=model.patch_embed.patch_size,
        num_labels=model.num_classes,
        attn_implementation="sdpa",
    )
    if model.dist_token is None:
        return transformers.ViTForImageClassification(transformers.ViTConfig(**config))
    return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**config))


def assert_equal(ours: DeiT, theirs: torch.nn.Module, dtype: torch.dtype, record_property) -> None:
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, *ours.image_size, generator=generator, dtype=dtype)
    encoder = theirs.vit if ours.dist_token is None else theirs.deit
    our_tokens, their_tokens = tokens_of(ours.blocks), tokens_of(encoder.layers)
    # The last block's tokens are asked for, else they are left out.
    mine = ours(images, tokens_after=(len(ours.blocks) - 1,))
    reference = theirs(images)
    pairs = [(mine.class_logits, reference.logits)]
    if ours.dist_token is not None:
        pairs = [
            (mine.class_logits, reference.cls_logits),
            (mine.distill_logits, reference.distillation_logits),
        ]
    weights = [torch.randn(a.shape, generator=generator, dtype=dtype) for a, _ in pairs]
    sum((a * w).sum() for (a, _), w in zip(pairs, weights, strict=True)).backward()
    sum((b * w).sum() for (_, b), w in zip(pairs, weights, strict=True)).backward()
    gradients = published_keys({k: p.grad for k, p in theirs.named_parameters()})
    assert set(gradients) == {k for k, _ in ours.named_parameters()}
    differences = {
        "logits": max((a - b).abs().max().item() for a, b in pairs),
        "tokens": max((a - b).abs().max().item() for a, b in zip(our_tokens, their_tokens, strict=True)),
        "gradients": max(
            ((p.grad - gradients[k]).abs().max() / gradients[k].abs().max()).item()
            for k, p in ours.named_parameters()
        ),
    }
    for what, difference in differences.items():
        print(f"{what}: {difference:.1e}")
        record_property(what, difference)
    assert max(differences.values()) < TOLERANCE[dtype], differences


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("variant", "image_size", "num_heads", "distilled"),
    [
        pytest.param("tiny", 224, 3, True, id="Ti-distilled"),
        pytest.param("tiny", 224, 3, False, id="Ti"),
        pytest.param("small", 224, 6, True, id="S-distilled", marks=pytest.mark.slow),
        pytest.param("base", 224, 12, True, id="B-distilled", marks=pytest.mark.slow),
        pytest.param("base", 384, 12, True, id="B-384", marks=pytest.mark.slow),
    ],
)
def test_weights_of_transformers_in_deitkit(
    variant, image_size, num_heads, distilled, dtype, record_property
):
    ours = create_model(variant, num_classes=1000, image_size=image_size, distilled=distilled)
    theirs = reference_model(ours, num_heads)
    randomise(theirs)
    ours.load_state_dict(published_keys(theirs.state_dict()))
    assert_equal(ours, theirs, dtype, record_property)


@pytest.mark.parametrize("distilled", [True, False], ids=["distilled", "plain"])
def test_weights_of_deitkit_in_transformers_non_square(distilled, tmp_path, record_property):
    """The other way round through a file, which transformers itself renames to its present keys."""
    from safetensors.torch import save_file

    ours = DeiT(
        image_size=(48, 96),
        patch_size=(16, 8),
        num_classes=7,
        embed_dim=192,
        depth=3,
        num_heads=3,
        distilled=distilled,
    )
    randomise(ours)
    shape = reference_model(ours, num_heads=3)
    shape.config.save_pretrained(tmp_path)
    save_file(transformers_keys(ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = type(shape).from_pretrained(tmp_path, attn_implementation="sdpa", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_equal(ours, theirs, torch.float64, record_property)
