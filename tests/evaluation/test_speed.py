"""Images/s, latency, peak memory, and multiply-adds against a count by hand and the published numbers."""

from __future__ import annotations

import json
import time

import pytest

from deitkit import cli
from deitkit.evaluation.speed import images_per_s, multiply_adds, peak_memory_mb, summarise, time_calls
from deitkit.models.deit import create_model


def test_counts_images_a_second():
    assert images_per_s(lambda: time.sleep(0.01), 32, seconds=0.2) == pytest.approx(3200, rel=0.35)


def test_one_stall_does_not_move_the_median():
    calls = iter(range(10**6))
    rate = images_per_s(lambda: time.sleep(0.2 if next(calls) == 6 else 0.01), 32, seconds=0.3)
    assert rate == pytest.approx(3200, rel=0.35)


def test_a_slow_first_call_does_not_count():
    calls = iter(range(10**6))
    rate = images_per_s(lambda: time.sleep(0.3 if next(calls) == 0 else 0.01), 32, seconds=0.2)
    assert rate == pytest.approx(3200, rel=0.35)


def test_a_pass_longer_than_the_time_is_still_measured():
    calls = []
    images_per_s(lambda: (calls.append(1), time.sleep(0.02)), 1, seconds=0.01)
    assert len(calls) == 5  # two of warm-up, three measured


def test_percentiles_are_times_that_occurred():
    found = summarise([t / 1000 for t in range(1, 101)], batch_size=4)
    assert [found.p50_ms, found.p90_ms, found.p99_ms] == pytest.approx([50, 90, 99])
    assert found.images_per_s == pytest.approx(4 / 0.05) and found.calls == 100
    assert summarise([0.5], 1).p99_ms == 500


def test_a_slow_call_is_measured_three_times():
    assert len(time_calls(lambda: time.sleep(0.01), 0.0)) == 3


def test_peak_memory_remembers_what_is_gone():
    before = peak_memory_mb()
    block = bytearray(b"x") * 200_000_000
    del block
    assert peak_memory_mb() - before > 100 or before > 1000


@pytest.mark.parametrize("image_size", [(32, 48), (64, 64)])
def test_multiply_adds_by_hand(image_size):
    """Every matrix product of the model, written out."""
    model = create_model("nano", num_classes=7, image_size=image_size, patch_size=16)
    D, depth, patches = 128, 6, image_size[0] * image_size[1] // 256
    N = patches + 2
    before = model.head.weight.clone()
    block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * 4 * D
    assert multiply_adds(model) == patches * 3 * 256 * D + depth * block + 2 * 7 * D
    assert model.head.weight.equal(before)  # the weights stay where they were


def test_the_command_line_lists_the_students(capsys):
    cli.app(["models", "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    found = {(row["student"], row["image_size"], row["distilled"]): row for row in rows}
    base = found["base", 224, False]
    assert base["params"] == 86_567_656 and base["top1"] == 81.8
    # Publications count 17.6 and 4.6; timm's table 1.26 for Ti.
    for key, published in {
        ("base", 224, False): 17.6,
        ("small", 224, False): 4.6,
        ("tiny", 224, False): 1.26,
    }.items():
        assert found[key]["multiply_adds"] / 1e9 == pytest.approx(published, rel=0.02)
    assert found["tiny", 224, True]["init"] == [
        "timm:deit_tiny_distilled_patch16_224.fb_in1k",
        "hf:facebook/deit-tiny-distilled-patch16-224",
    ]
    assert [row["init"] for row in rows if row["student"] == "nano"] == [["deitkit:nano"]]
    cli.app(["models"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("nano", "tiny", "small", "base"))
