"""What is read inside a student is what its forward pass computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deitkit.evaluation.attention import (
    layers,
    mean_distance,
    patch_distances,
    patch_maps,
    rollout,
    token_cosines,
)
from deitkit.models.deit import DeiT


@pytest.fixture(params=[True, False], ids=["distilled", "plain"])
def model(request) -> DeiT:
    torch.manual_seed(0)
    student = DeiT(
        image_size=(16, 24), patch_size=(8, 8), num_classes=3, embed_dim=16, depth=3, num_heads=2,
        distilled=request.param,
    )  # fmt: skip
    for p in student.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return student.eval()


def test_the_last_layer_leads_to_the_logits(model):
    images = torch.randn(4, 3, 16, 24)
    found = list(layers(model, images))
    assert len(found) == 1 + 3 + 1  # the input, the blocks, the final norm
    with torch.inference_mode():
        assert torch.allclose(model.head(found[-1].tokens[:, 0]), model(images).class_logits, atol=1e-6)
    assert torch.equal(found[0].tokens, model.embed(images))


def test_attention_is_the_softmax_of_scaled_products(model):
    images = torch.randn(2, 3, 16, 24)
    found = list(layers(model, images))
    attn, width = model.blocks[1].attn, 16 // 2
    with torch.inference_mode():
        x = model.blocks[1].norm1(found[1].tokens).numpy()
    qkv = x @ attn.qkv.weight.detach().numpy().T + attn.qkv.bias.detach().numpy()
    for head in range(2):
        q = qkv[0, :, head * width : (head + 1) * width]
        k = qkv[0, :, 16 + head * width : 16 + (head + 1) * width]
        products = np.exp(q @ k.T / np.sqrt(width))
        expected = products / products.sum(1, keepdims=True)
        np.testing.assert_allclose(found[2].attention[0, head].numpy(), expected, atol=1e-5)


def test_attention_probabilities_weigh_the_values_as_forward_does(model):
    attn, x = model.blocks[0].attn, torch.randn(2, 8, 16)
    with torch.inference_mode():
        values = attn.qkv(x)[..., 32:].reshape(2, 8, 2, 8).transpose(1, 2)
        mixed = (attn.probabilities(x) @ values).transpose(1, 2).reshape(2, 8, 16)
        assert torch.allclose(attn.proj(mixed), attn(x), atol=1e-5)


def test_token_cosines_agree_with_numpy():
    tokens = torch.randn(5, 6, 16, generator=torch.Generator().manual_seed(0))
    a, b = tokens[:, 0].numpy().astype(float), tokens[:, 1].numpy().astype(float)
    expected = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    np.testing.assert_allclose(token_cosines(tokens).numpy(), expected, rtol=1e-12)


def test_token_cosine_of_the_embeddings(model):
    if model.dist_token is None:
        assert model.token_cosine() is None
        return
    a, b = (t.detach().numpy().ravel() for t in (model.cls_token, model.dist_token))
    assert model.token_cosine() == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def random_attention(batch=2, heads=3, tokens=8, seed=0):
    scores = torch.randn(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return scores.softmax(-1)


def test_distances_are_between_centres_in_pixels():
    # Two patches down of 10 pixels, three across of 4: counted in rows.
    distances = patch_distances((2, 3), (10, 4))
    assert distances.shape == (6, 6) and distances.diagonal().eq(0).all()
    assert distances[0, 2] == 8 and distances[0, 3] == 10
    assert distances[0, 5].item() == pytest.approx(np.hypot(10, 8))


@pytest.mark.parametrize("prefix", [1, 2])
def test_mean_distance_agrees_with_a_loop(prefix):
    attention, distances = random_attention(tokens=6 + prefix), patch_distances((2, 3), (10, 4))
    found = mean_distance(attention, distances)
    for b in range(2):
        for h in range(3):
            means = []
            for query in range(6):
                weights = attention[b, h, prefix + query, prefix:].numpy().astype(float)
                means.append((weights * distances[query].numpy()).sum() / weights.sum())
            assert found[b, h].item() == pytest.approx(np.mean(means))


def test_mean_distance_of_the_two_extremes():
    distances = patch_distances((2, 2), (8, 8))
    own, every = torch.eye(6)[None, None], torch.full((1, 1, 6, 6), 1 / 6)
    assert mean_distance(own, distances).item() == 0
    assert mean_distance(every, distances).item() == pytest.approx(distances.mean().item())


def test_attention_to_prefix_tokens_alone_has_no_distance():
    attention = torch.zeros(1, 1, 6, 6)
    attention[..., 0] = 1
    assert mean_distance(attention, patch_distances((2, 2), (8, 8))).item() == 0


def test_rollout_agrees_with_numpy():
    blocks = [random_attention(seed=s) for s in range(3)]
    found = rollout(blocks)
    for b in range(2):
        expected = np.eye(8)
        for block in blocks:
            expected = (0.5 * block[b].numpy().mean(0) + 0.5 * np.eye(8)) @ expected
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 8), atol=1e-5)


def test_rollout_of_nothing_is_refused():
    with pytest.raises(ValueError, match="one block"):
        rollout([])


def test_patch_maps_keep_rows_and_leave_prefix_tokens_out():
    attention = torch.arange(8 * 8).float().reshape(1, 8, 8)
    maps = patch_maps(attention, (2, 3))
    assert maps[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]  # the class token's row
    assert maps[0, 1].tolist() == [[10, 11, 12], [13, 14, 15]]  # the distillation token's row
