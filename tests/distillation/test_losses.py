"""Every loss against a NumPy reference in float64, written from the paper's formula."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from deitkit.distillation import losses


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def numpy_of(*tensors):
    return [t.detach().double().numpy() for t in tensors]


def assert_agrees(loss, expected, tolerance=1e-5):
    """Equal up to a relative difference, which `pytest -rP` shows."""
    difference = abs(loss.item() - expected) / abs(expected)
    print(f"relative difference: {difference:.1e}")
    assert difference < tolerance


@pytest.fixture
def pair():
    """Student logits that want gradients, teacher logits, soft targets: each (6, 5)."""
    g = torch.Generator().manual_seed(0)
    student = (3 * torch.randn(6, 5, generator=g)).requires_grad_()
    teacher = 3 * torch.randn(6, 5, generator=g)
    return student, teacher, torch.randn(6, 5, generator=g).softmax(-1)


def test_soft_target_cross_entropy(pair):
    z, _, t = pair
    zn, tn = numpy_of(z, t)
    expected = np.mean([-sum(tn[b, k] * log_softmax(zn)[b, k] for k in range(5)) for b in range(6)])
    assert_agrees(losses.soft_target_cross_entropy(z, t), expected)


def test_smooth_leaves_a_row_without_a_label():
    targets = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert losses.smooth(targets, 0.3)[1].tolist() == [0, 0, 0]


def test_smooth(pair):
    _, _, t = pair
    smoothed = losses.smooth(t, 0.1)
    np.testing.assert_allclose(smoothed.numpy(), 0.9 * t.numpy() + 0.02, rtol=1e-6)
    np.testing.assert_allclose(smoothed.sum(-1).numpy(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation(pair, temperature):
    zs, zt, _ = pair
    s, t = (log_softmax(z / temperature) for z in numpy_of(zs, zt))
    total = temperature**2 * (np.exp(t) * (t - s)).sum()
    assert_agrees(losses.soft_distillation(zs, zt, temperature), total / 6)
    published = losses.soft_distillation(zs, zt, temperature, reduction="batch_and_classes")
    assert_agrees(published, total / 30)


def test_soft_distillation_does_not_weaken_with_the_number_of_classes():
    """Padding with classes that nobody believes in must leave the paper's term alone."""
    zs, zt = torch.randn(4, 5), torch.randn(4, 5)
    wide_s, wide_t = (nn.functional.pad(z, (0, 995), value=-1e4) for z in (zs, zt))
    narrow, wide = losses.soft_distillation(zs, zt, 3.0), losses.soft_distillation(wide_s, wide_t, 3.0)
    assert wide.item() == pytest.approx(narrow.item(), rel=1e-5)


def test_soft_distillation_gradient_keeps_its_size_across_temperatures(pair):
    """What T^2 is for (arXiv 1503.02531, section 2): at high T the gradient tends to (zs - zt) / (B K)."""
    zs, zt, _ = pair
    zs_centred, zt_centred = zs - zs.mean(-1, keepdim=True), zt - zt.mean(-1, keepdim=True)
    (gradient,) = torch.autograd.grad(losses.soft_distillation(zs, zt, 1000.0), zs)
    torch.testing.assert_close(gradient, (zs_centred - zt_centred).detach() / 30, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_distillation(pair, smoothing):
    zs, zt, _ = pair
    s, t = numpy_of(zs, zt)
    target = np.eye(5)[t.argmax(-1)] * (1 - smoothing) + smoothing / 5
    expected = -(target * log_softmax(s)).sum(-1).mean()
    assert_agrees(losses.hard_distillation(zs, zt, smoothing), expected)


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_dist(pair, beta, gamma):
    zs, zt, _ = pair
    s, t = (np.exp(log_softmax(z / 4.0)) for z in numpy_of(zs, zt))
    inter = np.mean([1 - np.corrcoef(s[b], t[b])[0, 1] for b in range(6)])
    intra = np.mean([1 - np.corrcoef(s[:, k], t[:, k])[0, 1] for k in range(5)])
    expected = 16 * (beta * inter + gamma * intra)
    assert_agrees(losses.dist(zs, zt, 4.0, beta, gamma), expected)


def test_dist_sees_classes_of_tiny_probability():
    """With many classes a column's spread is small; a guard on the product of norms would hide it."""
    zs = torch.randn(8, 1000)
    zs[:, 0] += 15
    assert losses.dist(zs, zs, 1.0).item() == pytest.approx(0.0, abs=1e-4)


def test_standardise(pair):
    z = numpy_of(pair[0])[0]
    expected = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    np.testing.assert_allclose(losses.standardise(pair[0]).detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        losses.standardise(7 * pair[0] - 3).detach().numpy(), expected, atol=1e-5
    )  # scale and shift are what it removes


def test_binary_cross_entropy(pair):
    z, _, t = pair
    zn, tn = numpy_of(z, t)
    p = 1 / (1 + np.exp(-zn))
    expected = -(tn * np.log(p) + (1 - tn) * np.log(1 - p)).mean()
    assert_agrees(losses.binary_cross_entropy(z, t), expected)


def test_binary_cross_entropy_keeps_smoothed_targets():
    """Smoothing 0.1 leaves every target above 0; only a threshold would make them all 1."""
    targets = losses.smooth(torch.eye(4), 0.1)
    optimum = torch.logit(targets)
    entropy = -(targets * targets.log() + (1 - targets) * (1 - targets).log()).mean().item()
    assert losses.binary_cross_entropy(optimum, targets).item() == pytest.approx(entropy, rel=1e-5)


def resize_axis(x, size, axis):
    """Average pooling into `size` bins where x is longer along `axis`, else bilinear, half-pixel centres."""
    n = x.shape[axis]
    x = np.moveaxis(x, axis, 0)
    rows = []
    for i in range(size):
        if n >= size:
            rows.append(x[math.floor(i * n / size) : math.ceil((i + 1) * n / size)].mean(0))
        else:
            at = max((i + 0.5) * n / size - 0.5, 0)
            low = int(at)
            high = min(low + 1, n - 1)
            rows.append(x[low] * (1 - (at - low)) + x[high] * (at - low))
    return np.moveaxis(np.stack(rows), 0, axis)


@pytest.mark.parametrize("map_size", [(4, 6), (8, 12), (7, 9), (2, 3), (9, 3)])
def test_feature_loss(map_size):
    g = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 24, 5, generator=g)
    features = 4 * torch.randn(2, 5, *map_size, generator=g) + 1
    t, f = numpy_of(tokens, features)
    f = resize_axis(resize_axis(f, 4, 2), 6, 3).reshape(2, 5, 24).transpose(0, 2, 1)

    def normalise(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    expected = ((normalise(t) - normalise(f)) ** 2).mean()
    assert_agrees(losses.feature_loss(tokens, features, (4, 6)), expected)


def test_feature_loss_is_zero_for_tokens_that_repeat_the_map_up_to_scale():
    features = torch.randn(2, 8, 3, 4)
    tokens = 5 * features.flatten(2).transpose(1, 2) + 2
    assert losses.feature_loss(tokens, features, (3, 4)).item() == pytest.approx(0.0, abs=1e-4)


def test_feature_loss_of_kept_patches_compares_those_cells_only():
    g = torch.Generator().manual_seed(1)
    tokens, features = torch.randn(2, 6, 5, generator=g), torch.randn(2, 5, 2, 3, generator=g)
    kept = torch.tensor([[0, 4], [3, 5]])
    rows = torch.stack([tokens[i, kept[i]] for i in range(2)])
    each = [
        losses.feature_loss(
            tokens[i : i + 1, [cell]], features[i : i + 1, :, row : row + 1, column : column + 1], (1, 1)
        )
        for i in range(2)
        for cell in kept[i].tolist()
        for row, column in [divmod(cell, 3)]
    ]
    torch.testing.assert_close(losses.feature_loss(rows, features, (2, 3), kept), torch.stack(each).mean())
    everything = torch.arange(6).expand(2, 6)
    assert losses.feature_loss(tokens, features, (2, 3), everything) == losses.feature_loss(
        tokens, features, (2, 3)
    )


EVERY_TERM = {
    "soft_target_cross_entropy": lambda z, t: losses.soft_target_cross_entropy(z, t.float().softmax(-1)),
    "soft": lambda z, t: losses.soft_distillation(z, t, 2.0),
    "hard": lambda z, t: losses.hard_distillation(z, t, 0.1),
    "dist": lambda z, t: losses.dist(z, t, 2.0),
    "standardised": lambda z, t: losses.soft_distillation(losses.standardise(z), losses.standardise(t), 2.0),
    "binary": lambda z, t: losses.binary_cross_entropy(z, t.float().softmax(-1)),
    "features": lambda z, t: losses.feature_loss(z[None], t.T.reshape(1, 5, 2, 3), (2, 3)),
}


@pytest.mark.parametrize("name", EVERY_TERM)
@pytest.mark.parametrize("student_scale", [0.0, 1.0, 1000.0], ids=["constant", "usual", "extreme"])
def test_gradients_are_finite(pair, name, student_scale):
    """Also where all logits are equal, as at the start, and where softmax saturates."""
    student = (pair[0].detach() * student_scale).requires_grad_()
    loss = EVERY_TERM[name](student, pair[1])
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", EVERY_TERM)
def test_half_precision_logits_are_raised_to_float32(pair, name):
    low = [x.detach().bfloat16() for x in pair[:2]]
    loss = EVERY_TERM[name](*low)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(EVERY_TERM[name](*(x.float() for x in low)).item(), rel=1e-6)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def binary_entropy_loop(z, t):
    """-mean of t log p + (1 - t) log (1 - p), one image and one class at a time."""
    p = sigmoid(z)
    terms = [t[i] * math.log(p[i]) + (1 - t[i]) * math.log(1 - p[i]) for i in np.ndindex(z.shape)]
    return -sum(terms) / len(terms)


def test_multilabel_cross_entropy(pair):
    z, _, _ = pair
    t = torch.tensor([[1.0, 0, 1, 0, 0.3], [0.0] * 5]).repeat(3, 1)
    assert_agrees(losses.multilabel_cross_entropy(z, t), binary_entropy_loop(*numpy_of(z, t)))


def test_an_image_without_labels_is_a_multilabel_target():
    """Where one class an image is asked for, a row of zeros is no label, and asks nothing."""
    z, none = torch.full((1, 3), 2.0), torch.zeros(1, 3)
    assert losses.multilabel_cross_entropy(z, none).item() == pytest.approx(math.log(1 + math.exp(2)))
    assert losses.binary_cross_entropy(z, none) == 0


def test_smooth_each_treats_a_class_as_yes_or_no():
    smoothed = losses.smooth_each(torch.tensor([[0.0, 1.0, 0.4]]), 0.2)
    torch.testing.assert_close(smoothed, torch.tensor([[0.1, 0.9, 0.42]]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_multilabel_distillation(pair, temperature):
    zs, zt, _ = pair
    s, t = numpy_of(zs, zt)
    expected = temperature**2 * binary_entropy_loop(s / temperature, sigmoid(t / temperature))
    loss = losses.soft_multilabel_distillation(zs, zt, temperature)
    assert_agrees(loss, expected)
    loss.backward()
    gradient = temperature * (sigmoid(s / temperature) - sigmoid(t / temperature)) / s.size  # of T^2 KL
    np.testing.assert_allclose(zs.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_multilabel_distillation(pair, smoothing):
    zs, zt, _ = pair
    s, t = numpy_of(zs, zt)
    decided = (sigmoid(t) > 0.5) * (1 - smoothing) + smoothing / 2
    assert_agrees(losses.hard_multilabel_distillation(zs, zt, smoothing), binary_entropy_loop(s, decided))
