"""A teacher that is adjusted for uneven classes: what it answers, what it teaches, what is saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from deitkit.classifier import load
from deitkit.config import TeacherConfig
from deitkit.distillation.class_balance import adjustment, taken_off_teacher
from deitkit.evaluation.temperature import calibrate
from deitkit.models import DeiTOutput
from deitkit.teachers.fit import pretrained_head_teacher
from deitkit.teachers.saved import read_teacher, save_teacher
from deitkit.teachers.teacher_graph import TeacherGraph

from .models import fitted_folder, timm_file

CPU = torch.device("cpu")
SHARES = torch.tensor([0.9, 0.1])
VIEWS = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return read_teacher(fitted_folder(tmp_path_factory.mktemp("fitted")), device=CPU, keep_backbones=True)


def test_log_shares_are_taken_off_and_a_student_learns_without_that(teacher):
    adjusted, plain = teacher.adjusted(SHARES.log()), teacher(VIEWS)
    answer = adjusted(VIEWS)
    torch.testing.assert_close(answer.logits, plain.logits - SHARES.log())
    assert torch.equal(answer.embedding, plain.embedding)
    assert torch.equal(adjusted.unadjusted()(VIEWS).logits, plain.logits)  # bit for bit
    assert torch.equal(adjusted.adjusted(None)(VIEWS).logits, plain.logits)
    assert "adjusted for uneven classes" in adjusted.card.how
    assert adjusted.unadjusted().card == teacher.card


def test_classes_in_another_order(teacher):
    plain = teacher(VIEWS).logits.flip(1)
    other = teacher.for_classes(("dog", "cat"))
    torch.testing.assert_close(other.adjusted(SHARES.log())(VIEWS).logits, plain - SHARES.log())
    there = teacher.adjusted(SHARES.log()).for_classes(("dog", "cat"))
    torch.testing.assert_close(there(VIEWS).logits, plain - SHARES.log().flip(0))


def test_a_pretrained_head_stays_as_it_is(tmp_path):
    (tmp_path / "classes.csv").write_text("cat,0\ndog,1\n")
    named = str(tmp_path / "classes.csv")
    config = TeacherConfig(spec=timm_file(tmp_path, num_classes=2), backend="pytorch", classes=named)
    teacher = pretrained_head_teacher(config, ("cat", "dog"), student_size=(32, 32), device=CPU)
    adjusted = teacher.adjusted(SHARES.log())
    assert torch.equal(adjusted(VIEWS).logits, teacher(VIEWS).logits) and adjusted.card == teacher.card


def test_saved_loaded_and_exported_it_answers_the_same(teacher, tmp_path):
    adjusted = teacher.adjusted(SHARES.log())
    save_teacher(tmp_path / "plain", teacher)
    save_teacher(tmp_path / "adjusted", adjusted)
    heads = [load_file(tmp_path / name / "teacher.safetensors") for name in ("plain", "adjusted")]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])  # as it was fitted
    assert "adjustment" not in json.loads((tmp_path / "plain/teacher.json").read_text())["members"][0]

    again = read_teacher(tmp_path / "adjusted", device=CPU, keep_backbones=True)
    logits = adjusted(VIEWS).logits
    assert torch.equal(again(VIEWS).logits, logits)
    assert torch.equal(again.unadjusted()(VIEWS).logits, teacher(VIEWS).logits)
    torch.testing.assert_close(TeacherGraph(again, (32, 32))(VIEWS)[1], logits)
    classifier = load(tmp_path / "adjusted", backend="pytorch")
    torch.testing.assert_close(classifier.backend(VIEWS)[0], logits.softmax(1))


def test_what_is_taken_off_is_what_a_student_is_told():
    counts = torch.tensor([90, 10])
    for balance, power in (("loss", 0.0), ("sampler", 0.0), ("sqrt-sampler", 0.5)):
        off = taken_off_teacher(balance, counts)
        torch.testing.assert_close(off, (1 - power) * SHARES.log())
        assert torch.equal(adjustment(balance, counts, "soft", fitted_teacher=True).distillation, off)
    assert taken_off_teacher("none", counts) is None


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_a_temperature_never_makes_adjusted_probabilities_worse(scale):
    """Of logits that are too sure or not sure enough, with and without log pi, on uneven images."""
    generator = torch.Generator().manual_seed(0)
    log_shares = torch.tensor([0.8, 0.15, 0.05]).log()
    labels = torch.multinomial(log_shares.exp(), 300, replacement=True, generator=generator)
    evidence = 2 * torch.nn.functional.one_hot(labels, 3) + torch.randn(300, 3, generator=generator)
    for logits in (scale * evidence, scale * (evidence + log_shares)):
        found = calibrate(DeiTOutput(logits, None), labels)
        assert found.nll <= found.nll_before
        if found.nll == found.nll_before:
            assert found.temperature == 1.0
        else:
            assert found.ece <= found.ece_before
    assert found.nll < found.nll_before or scale == 1.0
