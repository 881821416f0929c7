"""Stored bytes give back what the loss needs of the teacher's logits."""

from __future__ import annotations

import pytest
import torch

from deitkit.distillation.losses import soft_distillation
from deitkit.errors import DeitkitError
from deitkit.soft_labels.codec import HardCodec, SoftLabelFormat, TopKCodec, make_codec

HARD, TOP_10 = SoftLabelFormat("hard"), SoftLabelFormat("top-k", 10, 1.0)


def logits(classes: int, views: int = 64, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(views, classes, generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize("classes", [2, 10, 256, 257, 1000, 21_841, 65_536])
def test_sizes_are_as_promised(classes):
    outputs = logits(classes, views=4)
    for codec, most in ((make_codec(classes, TOP_10), 30), (make_codec(classes, HARD), 3)):
        rows = codec.encode(outputs)
        assert rows[0].numel() * rows.element_size() == codec.bytes_per_view <= most


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_all_classes_kept_are_right_at_every_temperature(classes, temperature):
    outputs = logits(classes)
    again = TopKCodec(classes, classes, 2.0)
    again = again.decode(again.encode(outputs))
    expected = (outputs / temperature).softmax(1)
    torch.testing.assert_close((again / temperature).softmax(1), expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("classes", "promised"), [(11, 2e-5), (1000, 1.5e-3), (21_841, 3.2e-2)])
def test_top_k_and_the_rest_at_the_stored_temperature(classes, promised):
    outputs, codec = logits(classes), TopKCodec(classes, 10, 2.0)
    tolerance = max(1.05 * codec.step, 2e-5)  # float32 itself is not better
    assert codec.step < promised
    stored = (codec.decode(codec.encode(outputs)) / 2.0).softmax(1)
    expected = (outputs / 2.0).softmax(1)
    top, where = expected.topk(10)
    torch.testing.assert_close(stored.gather(1, where), top, rtol=tolerance, atol=0)
    others = stored.scatter(1, where, -1)
    others = others[others >= 0].view(len(outputs), -1)
    assert (others.amax(1) == others.amin(1)).all()  # what is left, shared evenly
    torch.testing.assert_close(others.sum(1), 1 - top.sum(1), rtol=2 * tolerance, atol=1e-5)


def test_soft_loss_and_its_gradient_are_the_live_ones():
    outputs, student = logits(1000), logits(1000, scale=1.0).requires_grad_()
    found = []
    for codec in (TopKCodec(1000, 1000, 3.0), TopKCodec(1000, 10, 3.0)):
        loss = soft_distillation(student, codec.decode(codec.encode(outputs)), 3.0)
        found.append((loss.item(), torch.autograd.grad(loss, student)[0]))
    loss = soft_distillation(student, outputs, 3.0)
    expected = torch.autograd.grad(loss, student)[0]
    assert found[0][0] == pytest.approx(loss.item(), rel=1e-3)
    torch.testing.assert_close(found[0][1], expected, rtol=2e-3, atol=1e-6)
    assert 0 < found[1][0] < loss.item()  # less to learn: the tail is flat


def test_a_confident_teacher_keeps_its_tail():
    outputs = torch.zeros(1, 1000)
    outputs[0, 7] = 18.0  # all others together: 1.5e-5
    codec = TopKCodec(1000, 10, 1.0)
    stored = codec.decode(codec.encode(outputs)).double().softmax(1)
    assert 1 - stored[0, 7].item() == pytest.approx(999 * 1.523e-8, rel=0.002)


@pytest.mark.parametrize("codec", [HardCodec(300), TopKCodec(300, 1, 1.0), TopKCodec(300, 10, 3.0)])
def test_the_decision_survives_ties_and_near_ties(codec):
    outputs = logits(300)
    best = outputs.amax(1)
    outputs[:20, 250] = best[:20]  # ties: argmax decides
    outputs[20:40, 3] = best[20:40] + 1e-6
    assert (codec.decode(codec.encode(outputs)).argmax(1) == outputs.argmax(1)).all()
    assert (codec.decode(codec.encode(torch.zeros(2, 300))).argmax(1) == torch.zeros(2, 300).argmax(1)).all()


def test_a_view_is_stored_alike_in_any_batch():
    outputs, codec = logits(1000), TopKCodec(1000, 10, 3.0)
    assert torch.equal(codec.encode(outputs)[5:6], codec.encode(outputs[5:6]))


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(DeitkitError, match="at most 65536"):
        make_codec(65_537, HARD)
    for codec in (HardCodec(10), TopKCodec(10, 3, 1.0)):
        with pytest.raises(DeitkitError, match="not finite"):
            codec.encode(torch.full((1, 10), torch.nan))
