"""The work of one image, against a count by hand and the published numbers."""

from __future__ import annotations

import json

import pytest

from deitkit import cli
from deitkit.evaluation.flops import multiply_adds
from deitkit.models.deit import create_model


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
