import numpy as np
import pytest
import torch

from deitkit.evaluation.agreement import agreement_with_teacher, disagreement


def test_disagreement_agrees_with_numpy():
    rng = np.random.default_rng(0)
    decisions = rng.integers(0, 4, (3, 97))
    table = disagreement([torch.from_numpy(d) for d in decisions])
    for i in range(3):
        for j in range(3):
            assert table[i][j] == pytest.approx(100 * np.mean(decisions[i] != decisions[j]))
    assert [table[i][i] for i in range(3)] == [0, 0, 0]


def test_labels_as_a_classifier_give_error_rates():
    labels, decided = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0])
    assert disagreement([labels, decided])[0][1] == 25


def test_agreement_apart_where_the_teacher_is_right_and_wrong():
    labels = torch.tensor([0, 0, 0, 0, 0])
    teacher = torch.tensor([0, 0, 0, 1, 1])  # right, right, right, wrong, wrong
    student = torch.tensor([0, 0, 2, 1, 0])  # as it, as it, lost, as it, mended
    found = agreement_with_teacher(student, teacher, labels)
    assert found.overall == pytest.approx(60)
    assert found.where_right == pytest.approx(200 / 3) and found.where_wrong == 50
    assert found.corrects == 50 and found.breaks == pytest.approx(100 / 3)


def test_a_teacher_without_mistakes_leaves_shares_of_them_open():
    labels = torch.tensor([0, 1])
    found = agreement_with_teacher(torch.tensor([0, 0]), labels, labels)
    assert found.where_wrong is None and found.corrects is None and found.where_right == 50
