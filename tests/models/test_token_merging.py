"""Token merging against a reference that works token by token, in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from deitkit.errors import DeitkitError
from deitkit.models.deit import DeiT
from deitkit.models.token_merging import TokenMerging, attend, match, merge


def little(**changes) -> DeiT:
    settings = dict(image_size=(16, 24), patch_size=(4, 4), num_classes=5, embed_dim=16, depth=3, num_heads=2)
    torch.manual_seed(0)
    model = DeiT(**(settings | changes)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def naive_merge(tokens, sizes, metric, r):
    """One image: lists of tokens (D,), sizes and metrics (C,) -> tokens and sizes after merging r of A."""
    a, b = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    edges = []
    for i in a:
        likeness = [torch.cosine_similarity(metric[i], metric[j], dim=0).item() for j in b]
        edges.append((max(likeness), i, b[likeness.index(max(likeness))]))
    merged = sorted(edges, reverse=True)[:r]
    total = {j: tokens[j] * sizes[j] for j in b}
    size = {j: sizes[j] for j in b}
    for _, i, j in merged:
        total[j] = total[j] + tokens[i] * sizes[i]
        size[j] += sizes[i]
    gone = {i for _, i, _ in merged}
    kept = [i for i in a if i not in gone]
    return (
        [tokens[i] for i in kept] + [total[j] / size[j] for j in b],
        [sizes[i] for i in kept] + [size[j] for j in b],
    )


def naive_forward(model: DeiT, image: torch.Tensor, r: int) -> torch.Tensor:
    """The class head's logits of one image, every block and token in loops."""
    x, P = model.embed(image[None])[0], model.num_prefix_tokens
    sizes = [1.0] * len(x)
    for block in model.blocks:
        q, k, v = block.attn.queries_keys_values(block.norm1(x[None]))
        heads = []
        for h in range(q.shape[1]):
            scores = q[0, h] @ k[0, h].T / math.sqrt(q.shape[-1]) + torch.tensor(sizes).log()
            heads.append(scores.softmax(-1) @ v[0, h])
        x = x + block.attn.proj(torch.cat(heads, dim=-1))
        if block is not model.blocks[-1]:
            n = len(x) - P
            patches, patch_sizes = naive_merge(list(x[P:]), sizes[P:], list(k[0].mean(0)[P:]), min(r, n // 2))
            x, sizes = torch.stack([*x[:P], *patches]), sizes[:P] + patch_sizes
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x[0]))


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("r", [0, 1, 3, 4])
def test_merge_is_the_naive_one(n, r):
    generator = torch.Generator().manual_seed(n + r)
    x = torch.randn(3, n, 6, generator=generator)
    size = torch.randint(1, 5, (3, n, 1), generator=generator).float()
    metric = torch.randn(3, n, 4, generator=generator)
    got, sizes = merge(x, size, match(metric, r))
    for i in range(3):
        tokens, expected = naive_merge(list(x[i]), size[i, :, 0].tolist(), list(metric[i]), r)
        torch.testing.assert_close(got[i], torch.stack(tokens))
        assert sizes[i, :, 0].tolist() == expected


def test_several_tokens_may_merge_into_one():
    """All of A is nearest to the first of B: its mean weighs each by its size, and no size is lost."""
    metric = torch.tensor([[[1.0, 0], [1, 0.1], [1, 0.2], [-1, 0], [1, 0.1], [-1, 0]]])
    x = torch.tensor([[[1.0], [2], [3], [40], [5], [60]]])
    size = torch.tensor([[[1.0], [2], [1], [1], [4], [1]]])
    merged, sizes = merge(x, size, match(metric, 3))
    assert sizes.flatten().tolist() == [8, 1, 1]
    assert merged.flatten().tolist() == pytest.approx([(1 + 2 * 2 + 3 + 4 * 5) / 8, 40, 60])


def test_proportional_attention_counts_a_token_as_often_as_its_size():
    """A token of size 3 is three equal tokens."""
    attn = little().blocks[0].attn
    x = torch.randn(1, 4, 16)
    thrice = torch.cat([x, x[:, 3:], x[:, 3:]], dim=1)
    got, _ = attend(attn, x, torch.tensor([1.0, 1, 1, 3]).view(1, 4, 1), None)
    torch.testing.assert_close(got, attn(thrice)[:, :4])


@pytest.mark.parametrize("r", [1, 3, 50])
@pytest.mark.parametrize("distilled", [True, False])
def test_the_model_is_the_naive_one(r, distilled):
    model = little(distilled=distilled)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        got = TokenMerging(model, r)(images)
        for i in range(2):
            torch.testing.assert_close(got.class_logits[i], naive_forward(model, images[i], r))
    assert (got.distill_logits is not None) == distilled


def test_nothing_merged_is_the_model_itself():
    model, images = little(), torch.randn(2, 3, 16, 24)
    for a, b in zip(TokenMerging(model, 0)(images)[:2], model(images)[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_prefix_tokens_never_merge():
    """Patches all alike to the class token still leave it and the distillation token as they are."""
    model = little()
    seen = []
    model.blocks[1].norm1.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    model.blocks[0].mlp.register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
    with torch.no_grad():
        images = torch.randn(2, 3, 16, 24)
        x = model.embed(images)
        expected = x + model.blocks[0].attn(model.blocks[0].norm1(x))
        TokenMerging(model, 8)(images)
    torch.testing.assert_close(seen[0][:, :2], expected[:, :2])
    assert seen[0].shape[1] == x.shape[1] - 8


def test_a_negative_number_is_refused():
    with pytest.raises(DeitkitError, match="cannot merge -1 tokens"):
        TokenMerging(little(), -1)


def test_ties_do_not_lose_tokens():
    x = torch.ones(1, 10, 3)
    merged, sizes = merge(x, torch.ones(1, 10, 1), match(x, 3))
    assert sizes.sum() == 10 and merged.shape == (1, 7, 3)
    assert F.mse_loss(merged, torch.ones(1, 7, 3)) == 0


def test_gains_of_layer_scale_count():
    model, images = little(layer_scale=0.5), torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        assert_close = torch.testing.assert_close
        assert_close(TokenMerging(model, 0)(images).class_logits, model(images).class_logits)
        merged = TokenMerging(model, 2)(images).class_logits
        model.fold_layer_scale()
        assert_close(TokenMerging(model, 2)(images).class_logits, merged)
