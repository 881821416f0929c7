"""The model by itself: sizes, shapes, errors, initial values. tests/parity compares it with others."""

import math

import pytest
import torch
import torch.nn.functional as F

from deitkit.errors import DeitkitError
from deitkit.model import (
    VARIANTS,
    DeiT,
    DeiTOutput,
    create_model,
    joint_logits,
    joint_probabilities,
    sincos_positions,
)


def little(**changes) -> DeiT:
    settings = dict(
        image_size=(16, 24),
        patch_size=(4, 8),
        num_classes=5,
        embed_dim=16,
        depth=3,
        num_heads=2,
        distilled=True,
    )
    return DeiT(**(settings | changes)).eval()


@pytest.mark.parametrize(
    ("name", "distilled", "image_size", "count"),
    [
        # The paper's table 1 says 5 M, 22 M and 86 M; these are the published models' exact counts.
        ("tiny", False, 224, 5_717_416),
        ("tiny", True, 224, 5_910_800),
        ("small", False, 224, 22_050_664),
        ("small", True, 224, 22_436_432),
        ("base", False, 224, 86_567_656),
        ("base", True, 224, 87_338_192),
        ("base", True, 384, 87_630_032),
    ],
)
def test_parameter_counts_of_the_published_models(name, distilled, image_size, count):
    with torch.device("meta"):
        model = create_model(name, num_classes=1000, image_size=image_size, distilled=distilled)
    assert sum(p.numel() for p in model.parameters()) == count


def test_both_heads_answer_for_a_distilled_model():
    output = little()(torch.randn(2, 3, 16, 24))
    assert output.class_logits.shape == output.distill_logits.shape == (2, 5)
    assert output.patch_tokens == ()


def test_a_plain_model_has_no_distillation_token():
    model = little(distilled=False)
    assert model(torch.randn(2, 3, 16, 24)).distill_logits is None
    assert model.pos_embed.shape == (1, 1 + 4 * 3, 16)
    assert not [k for k in model.state_dict() if "dist" in k]


def test_patches_run_row_by_row_on_a_non_square_image():
    """Each patch is projected alone, and lands where its row and column say."""
    model = little()
    image = torch.randn(1, 3, 16, 24)
    tokens = model.patch_embed(image)
    assert model.grid_size == (4, 3)
    row, column = 2, 1
    patch = image[:, :, 8:12, 8:16]
    expected = model.patch_embed.proj(patch).flatten()
    torch.testing.assert_close(tokens[0, row * 3 + column], expected)


def test_the_heads_read_their_own_tokens():
    """The class head must not hear of a change to the distillation head, nor the other way round."""
    model, images = little(), torch.randn(2, 3, 16, 24)
    before = model(images)
    torch.nn.init.ones_(model.head_dist.weight)
    after = model(images)
    torch.testing.assert_close(after.class_logits, before.class_logits)
    assert not torch.allclose(after.distill_logits, before.distill_logits)


@pytest.mark.parametrize("size", [(24, 16), (16, 16), (32, 48)])
def test_another_image_size_is_refused(size):
    with pytest.raises(DeitkitError, match=f"takes images of 16x24, got {size[0]}x{size[1]}"):
        little()(torch.randn(1, 3, *size))


def test_an_image_size_that_the_patches_do_not_divide_is_refused():
    with pytest.raises(DeitkitError, match="image size 18x24 is not a multiple of patch size 4x8"):
        little(image_size=(18, 24))


def test_an_unknown_variant_is_refused_with_the_known_ones():
    with pytest.raises(DeitkitError, match=r"unknown student 'huge'.*nano, tiny, small, base"):
        create_model("huge", num_classes=10)


def test_joint_probabilities_are_the_mean_of_the_softmaxes():
    a, b = torch.randn(7, 5) * 5, torch.randn(7, 5) * 5
    joined = joint_probabilities(DeiTOutput(a, b))
    torch.testing.assert_close(joined.sum(-1), torch.ones(7))
    torch.testing.assert_close(joined, (a.softmax(-1) + b.softmax(-1)) / 2)
    torch.testing.assert_close(joint_probabilities(DeiTOutput(a, None)), a.softmax(-1))


def test_joint_logits_can_disagree_with_joint_probabilities():
    """Why both exist: the published code averages logits where the paper adds softmaxes."""
    output = DeiTOutput(torch.tensor([[9.0, 0.0, 8.0]]), torch.tensor([[0.0, 2.0, 1.5]]))
    assert joint_logits(output).argmax() == 2
    assert joint_probabilities(output).argmax() == 0


def test_tokens_after_gives_the_patch_tokens_of_those_blocks():
    model, images = little(), torch.randn(2, 3, 16, 24)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    kept = model(images, tokens_after=(0, 2)).patch_tokens
    assert [tuple(t.shape) for t in kept] == [(2, 12, 16)] * 2
    torch.testing.assert_close(kept[0], seen[0][:, 2:])
    torch.testing.assert_close(kept[1], seen[2][:, 2:])


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    block = little(drop_path_rate=0.3).blocks[-1].train()
    torch.manual_seed(0)
    dropped = block.drop_path(torch.ones(20_000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (dropped.amax((1, 2)) == dropped.amin((1, 2))).all()
    standard_error = math.sqrt(0.3 / 0.7 / 20_000)
    assert dropped.mean().item() == pytest.approx(1.0, abs=4 * standard_error)


def test_drop_path_grows_linearly_and_rests_in_evaluation():
    model = little(drop_path_rate=0.3)
    assert [b.drop_path_rate for b in model.blocks] == pytest.approx([0.0, 0.15, 0.3])
    branch = torch.randn(4, 2, 3)
    assert model.blocks[-1].drop_path(branch) is branch


def test_initial_values_are_the_published_ones():
    """timm 0.3.2, which the published code builds on: only the convolution keeps PyTorch's default."""
    torch.manual_seed(0)
    model = create_model("tiny", num_classes=1000)
    conv_bound = 1 / math.sqrt(3 * 16 * 16)
    for name, p in model.named_parameters():
        if name.startswith("patch_embed."):
            assert 0.9 * conv_bound < p.abs().max() <= conv_bound, name
            assert p.std().item() == pytest.approx(conv_bound / math.sqrt(3), rel=0.1), name
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            assert p.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_divide_the_width(name):
    assert VARIANTS[name].embed_dim % VARIANTS[name].num_heads == 0


def test_sincos_positions_of_one_cell():
    row, column, quarter = 2, 5, 3
    [value] = sincos_positions((4, 7), 32)[[row * 7 + column]]
    frequency = 10_000 ** -(quarter / 8)
    expected = [math.sin(column * frequency), math.cos(column * frequency)]
    expected += [math.sin(row * frequency), math.cos(row * frequency)]
    assert value[quarter::8].tolist() == pytest.approx(expected, abs=1e-6)


def test_structured_start_makes_neighbours_alike():
    model = create_model("nano", num_classes=3, image_size=64, patch_size=8)
    model.start_structured()
    positions = F.normalize(model.pos_embed[0, 2:], dim=1)
    assert positions[0] @ positions[1] > positions[0] @ positions[4] > positions[0] @ positions[7]
    bound = math.sqrt(6 / (128 + 512))
    weight = model.blocks[3].mlp.fc1.weight
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_the_last_block_leaves_out_only_what_nobody_reads():
    """Logits and gradients are those of a last block that works on every token."""
    model, images = little(), torch.randn(2, 3, 16, 24)
    assert len(model.blocks) == 3

    def gradients(**asked) -> list[torch.Tensor]:
        output = model(images, **asked)
        loss = output.class_logits.square().sum() + output.distill_logits.square().sum()
        return [output.class_logits, output.distill_logits, *torch.autograd.grad(loss, model.parameters())]

    for short, whole in zip(gradients(), gradients(tokens_after=(2,)), strict=True):
        torch.testing.assert_close(short, whole)


def test_layer_scale_merges_into_the_projections():
    """The merged model has the published keys and answers as before; gains start where they are told."""
    model = create_model("nano", num_classes=5, image_size=32, patch_size=16, layer_scale=1e-4).double()
    gains = {k: p for k, p in model.named_parameters() if ".gamma_" in k}
    assert len(gains) == 2 * len(model.blocks)
    assert all(p.detach().numpy() == pytest.approx(1e-4) for p in gains.values())
    plain = create_model("nano", num_classes=5, image_size=32, patch_size=16)
    assert model.num_params == plain.num_params == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        for p in gains.values():
            p.uniform_(-2, 2)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = model(images)
    model.merge_layer_scale()
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model(images), before)
