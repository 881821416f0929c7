"""The model by itself: sizes, shapes, errors, initial values. tests/parity compares it with others."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from deitkit.errors import DeitkitError
from deitkit.models.blocks import in_four_dimensions, resize_positions, sincos_positions
from deitkit.models.deit import VARIANTS, DeiT, DeiTOutput, create_model, joint_logits, joint_probabilities


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
    with pytest.raises(DeitkitError, match=r"unknown student 'huge'.*nano, nano-hybrid, tiny, small, base"):
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


def ones(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_stochastic_depth_drops_each_sample_with_its_rate(rate):
    block = little(drop_path_rate=rate).blocks[-1].train()
    torch.manual_seed(0)
    size, rounds = 7, 4000
    drawn = torch.stack([block.add_branch(torch.zeros(size, 2, 3), ones) for _ in range(rounds)])
    assert (drawn.amax((2, 3)) == drawn.amin((2, 3))).all()  # whole samples
    drawn = drawn[..., 0, 0]
    assert drawn.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    dropped = (drawn == 0).float()
    # As a mask of independent draws has it, for each place in the batch.
    error = math.sqrt(rate * (1 - rate) / rounds)
    assert dropped.mean(0).tolist() == pytest.approx([rate] * size, abs=4 * error)
    assert drawn.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(rate / (1 - rate) / rounds / size))
    # Unlike it, the number that is dropped is the mean, rounded down or up.
    counts = dropped.sum(1)
    assert counts.min() >= math.floor(size * rate) and counts.max() <= math.ceil(size * rate)


def test_stochastic_depth_is_a_mask_that_saves_the_work():
    block = little(drop_path_rate=0.5).blocks[-1].train()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, worked = torch.randn(6, 5, 16, requires_grad=True), []

    def branch(x: torch.Tensor) -> torch.Tensor:
        worked.append(len(x))
        return block.mlp(block.norm2(x))

    torch.manual_seed(3)
    out = block.add_branch(x, branch)
    torch.manual_seed(3)
    mask = block.add_branch(torch.zeros_like(x), ones)
    gradients = torch.autograd.grad(out.square().sum(), [x, *block.mlp.parameters()])
    expected = x + mask * branch(x)
    torch.testing.assert_close(out, expected)
    again = torch.autograd.grad(expected.square().sum(), [x, *block.mlp.parameters()])
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b)
    assert worked == [3, 6]


def test_stochastic_depth_of_a_single_sample_leaves_it_or_doubles_its_branch():
    """A last batch may hold one image; with its branch dropped, gradients are zeros and not missing."""
    block = little(drop_path_rate=0.5).blocks[-1].train()
    x, seen = torch.randn(1, 5, 16), set()
    for seed in range(20):
        torch.manual_seed(seed)
        block.zero_grad()
        block(x).sum().backward()
        seen.add(bool(block.mlp.fc2.bias.grad.any()))
    assert seen == {True, False}


def test_a_student_in_training_compiles_to_one_graph():
    """No graph break, so no kernel waits for a number: with stochastic depth, dropped patches, and tokens."""
    model = little(drop_path_rate=0.3, patch_drop_rate=0.25).train()
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(torch.rand(4, 3, *model.image_size), tokens_after=(0,))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_compiled_stochastic_depth_drops_a_fixed_number():
    block = little(drop_path_rate=0.3).blocks[-1].train()
    torch._dynamo.reset()
    add = torch.compile(lambda x: block.add_branch(x, ones), backend="eager", fullgraph=True)
    drawn = torch.stack([add(torch.zeros(7, 2, 3))[:, 0, 0] for _ in range(300)])
    assert ((drawn > 0).sum(1) == 5).all()  # 7 x 0.7, rounded
    assert drawn.mean(1).tolist() == pytest.approx([1.0] * 300)  # so the branch's mean is kept
    assert drawn.mean(0).tolist() == pytest.approx([1.0] * 7, abs=0.2)  # whichever the sample


def test_drop_path_grows_linearly_and_rests_in_evaluation():
    model = little(drop_path_rate=0.3)
    assert [b.drop_path_rate for b in model.blocks] == pytest.approx([0.0, 0.15, 0.3])
    x = torch.randn(4, 2, 3)
    torch.testing.assert_close(model.blocks[-1].add_branch(x, ones), x + 1, rtol=0, atol=0)


@pytest.mark.parametrize("distilled", [False, True])
def test_patch_dropping_keeps_the_prefix_and_says_which_patches_stayed(distilled):
    model = little(patch_drop_rate=0.5, distilled=distilled).train()
    P = model.num_prefix_tokens
    x = torch.randn(3, P + 12, 16)
    kept, which = model.drop_patches(x)
    assert kept.shape == (3, P + 6, 16)
    assert torch.equal(kept[:, :P], x[:, :P])
    for image in range(3):
        assert which[image].unique().numel() == 6
        assert torch.equal(kept[image, P:], x[image, P + which[image]])
    assert not torch.equal(which[0], which[1]) or not torch.equal(which[1], which[2])
    output = model(torch.randn(3, 3, 16, 24), tokens_after=(0,))
    assert output.patch_tokens[0].shape == (3, 6, 16) and output.kept_patches.shape == (3, 6)


def test_patch_dropping_is_fair_and_rests_in_evaluation():
    model, images = little(patch_drop_rate=0.75), torch.randn(2, 3, 16, 24)
    x = torch.zeros(4000, 14, 16)
    same, which = model.drop_patches(x)
    assert same is x and which is None
    torch.testing.assert_close(model(images), little_like(model)(images), rtol=0, atol=0)
    torch.manual_seed(0)
    _, which = model.train().drop_patches(x)
    shares = which.flatten().bincount(minlength=12) / 4000
    assert shares.tolist() == pytest.approx([0.25] * 12, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert little(patch_drop_rate=0.99).train().drop_patches(x)[1].shape == (4000, 1)


def little_like(model: DeiT) -> DeiT:
    """The same weights without patch dropping."""
    same = little()
    same.load_state_dict(model.state_dict())
    return same


def test_smaller_images_in_training_see_resized_positions():
    model, images = little(), torch.randn(2, 3, 8, 16)
    torch.nn.init.normal_(model.pos_embed)
    same = little(image_size=(8, 16))
    positions = resize_positions(model.pos_embed.detach(), 2, (4, 3), (2, 2), antialias=True)
    same.load_state_dict(model.state_dict() | {"pos_embed": positions})
    output = model.train()(images)
    assert output.grid_size == (2, 2)
    torch.testing.assert_close(output.class_logits, same(images).class_logits)
    output.class_logits.sum().backward()
    assert (model.pos_embed.grad.abs().sum(-1) > 0).all()  # every position learns
    with pytest.raises(DeitkitError, match="takes images of 16x24"):
        model(torch.randn(2, 3, 10, 16))
    with pytest.raises(DeitkitError, match="takes images of 16x24"):
        model.eval()(images)


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
    model.init_structured()
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
    model.fold_layer_scale()
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model(images), before)


def test_in_four_dimensions_it_computes_the_same():
    """Patches as a convolution, for runtimes that have no tensors of five or six dimensions."""
    model = create_model("nano", num_classes=3, image_size=(16, 24), patch_size=8).eval()
    images, largest = torch.rand(2, 3, 16, 24), []

    class Dimensions(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.ndim)
            return result

    with torch.no_grad(), Dimensions():
        found = in_four_dimensions(model)(images)
    assert max(largest) == 4
    with torch.no_grad():
        torch.testing.assert_close(found.class_logits, model(images).class_logits)
