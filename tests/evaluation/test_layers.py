"""What is read off a student's inside is what its forward pass computes."""

import numpy as np
import pytest
import torch

from deitkit.evaluation.layers import layers
from deitkit.evaluation.tokens import token_cosines
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
