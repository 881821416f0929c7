import math

import pytest
import torch

from deitkit.decision import Decision, conformal_rank, decide, least_in_set
from deitkit.errors import SettingError
from deitkit.run_schema import CalibrationInfo

KNOWN = CalibrationInfo(
    images=99, familiar_up_to=0.6, true_probabilities=tuple(i / 100 for i in range(1, 100))
)


def test_without_options_everything_is_answered_with_one_class():
    decision = decide(CalibrationInfo(), "multilabel")
    assert decision == Decision() and decision.is_answer(0.0, 1e9) and decision.count([0.4, 0.3]) == 1


def test_a_threshold_and_unfamiliarity_have_to_be_met_both():
    decision = decide(KNOWN, "multiclass", threshold=0.8, reject=True)
    assert decision.is_answer(0.8, 0.6)
    assert not decision.is_answer(0.79, 0.1) and not decision.is_answer(0.9, 0.61)


def test_a_set_names_the_classes_that_are_probable_enough_and_one_at_least():
    decision = decide(KNOWN, "multiclass", coverage=0.9)
    assert decision.least_in_set == 0.1  # 90 of 99 true classes are as probable, and 90 = ceil(100 * 0.9)
    assert decision.count([0.5, 0.3, 0.1, 0.09, 0.01]) == 3
    assert decision.count([0.05, 0.04]) == 1


@pytest.mark.parametrize(
    ("n", "coverage", "rank"), [(99, 0.9, 90), (19, 0.95, 19), (18, 0.95, None), (0, 0.5, None)]
)
def test_the_conformal_rank(n, coverage, rank):
    assert conformal_rank(n, coverage) == rank


@pytest.mark.parametrize("coverage", [0.8, 0.95])
@pytest.mark.parametrize("true_temperature", [1.0, 3.0])
def test_sets_hold_the_true_class_over_random_splits(coverage, true_temperature):
    """Also where the probabilities are wrong: of labels drawn at another temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1000, 6, generator=generator)
    p = logits.softmax(-1)
    labels = torch.multinomial((logits / true_temperature).softmax(-1), 1, generator=generator).flatten()
    covered = []
    for _ in range(100):
        order = torch.randperm(1000, generator=generator)
        kept, held = order[:500], order[500:]
        least = least_in_set(p[kept, labels[kept]].sort().values.tolist(), coverage)
        covered.append((p[held, labels[held]] >= least).double().mean().item())
    mean = sum(covered) / 100
    # n = 500 gives between coverage and coverage + 1 / 501 in expectation; 100 halves of one sample vary.
    assert coverage - 0.01 < mean < coverage + 0.015
    assert min(covered) > coverage - 0.12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "--threshold is a probability from 0 to 1, not 1.5"),
        ({"threshold": -0.1}, "--threshold"),
        ({"threshold": math.nan}, "--threshold"),
        ({"coverage": 0.0}, "--coverage is a share between 0 and 1"),
        ({"coverage": 1.0}, "--coverage is a share between 0 and 1"),
        ({"coverage": math.nan}, "--coverage is a share between 0 and 1"),
        ({"coverage": 0.995}, "needs 199 validation images or more: the model has 99"),
        ({"coverage": 0.9, "threshold": 0.5}, "give one of them"),
    ],
)
def test_refused_in_one_sentence(options, message):
    with pytest.raises(SettingError, match=message) as error:
        decide(KNOWN, "multiclass", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"reject": True}, {"coverage": 0.9}])
def test_a_model_that_was_not_calibrated_is_told_apart(options):
    with pytest.raises(SettingError, match="train it again"):
        decide(CalibrationInfo(), "multiclass", **options)


@pytest.mark.parametrize("options", [{"reject": True}, {"coverage": 0.9}, {"threshold": 0.5}])
def test_multilabel_is_refused(options):
    with pytest.raises(SettingError, match="needs one class per image"):
        decide(KNOWN, "multilabel", **options)
