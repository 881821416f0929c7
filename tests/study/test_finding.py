"""The paragraph follows the numbers, and nothing but the numbers."""

from __future__ import annotations

from deitkit.study.finding import decide, paragraph
from deitkit.study.records import measure_rows
from deitkit.study.summary import table

from .studies import TINY, record


def found(smooth: list[float], sharp: list[float], fine: list[float]) -> tuple[list, str]:
    records = [
        record(arm, seed, top1)
        for arm, values in (("smooth", smooth), ("sharp", sharp), ("fine", fine))
        for seed, top1 in enumerate(values)
    ]
    rows = measure_rows(TINY.rows_of("quick"), records)
    decisions = decide(TINY.claims_of("quick"), rows)
    return decisions, paragraph(TINY, decisions)


def test_a_win_and_a_loss():
    decisions, text = found([80.0, 82.0, 84.0], [70.0, 72.1, 73.9], [60.0, 62.2, 63.8])
    assert [d.verdict for d in decisions] == ["holds", "fails"]
    assert "“Smoothing helps” holds here: +10.0 (" in text and "the paper: +1.5" in text
    assert "“Fine-tuning helps” does not hold here" in text and "-20.0" in text
    assert "hold: 1, do not hold: 1" in text


def test_undecided():
    decisions, text = found([80.0, 82.0, 84.0], [81.0, 80.0, 84.5], [81.0, 85.0, 86.5])
    assert [d.verdict for d in decisions] == ["undecided", "leans"]
    assert "undecided here" in text and "not settled" in text
    assert "holds here" not in text


def test_pairs_are_made_within_a_seed():
    """The spread between seeds is large and the same in both arms; only differences count."""
    decisions, _ = found([10.0, 50.0, 90.0], [8.0, 48.1, 87.9], [10.0, 50.0, 90.0])
    assert decisions[0].verdict == "holds"


def test_two_seeds_claim_nothing():
    decisions, text = found([80.0, 82.0], [10.0, 12.0], [80.0, 82.0])
    assert [d.verdict for d in decisions] == ["unknown", "unknown"]
    assert text.startswith("Nothing can be claimed") and "+70.0 on 2 seeds" in text
    assert "holds here" not in text


def test_a_missing_arm():
    decisions, text = found([80.0, 82.0, 84.0], [70.0, 72.1, 73.9], [])
    assert [d.verdict for d in decisions] == ["holds", "unknown"]
    assert "a run that it needs is missing" in text


def test_seeds_that_one_arm_lacks_do_not_count():
    decisions, _ = found([80.0, 82.0, 84.0], [70.0, 72.1], [60.0, 62.2, 63.8])
    assert decisions[0].seeds == (0, 1) and decisions[0].verdict == "unknown"


def test_table_has_mean_and_spread():
    records = [record("smooth", seed, top1) for seed, top1 in enumerate((80.0, 82.0, 84.0))]
    [_, _, line] = table(measure_rows(TINY.rows_of("quick"), records)).splitlines()
    assert line == "| smoothed | 82.0 ± 2.0 | 3 | 80.0 |"
