"""`deitkit explain`: overlays at the images' own size, arrays, and one sentence for a mistake."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import deitkit
from deitkit.cli import main
from deitkit.data.decode import UnreadableImage, center_crop, seen_box
from deitkit.report.overlay import overlay

from ..teachers.models import fitted_folder


def test_each_image_gets_a_folder(random_run, tmp_path, capsys):
    images = [tmp_path / name for name in ("a.png", "b.png", "broken.png")]
    for i, path in enumerate(images[:2]):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 100 - 30 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    images[2].write_bytes(b"no image")
    out = tmp_path / "why"
    with pytest.raises(SystemExit) as end:
        main(["explain", str(random_run), *map(str, images), "--out", str(out), "--label=dog"])
    assert end.value.code == 1  # one cannot be read
    said = capsys.readouterr().out
    assert "a.png: dog" in said and "broken.png: cannot be read" in said
    assert sorted(path.name for path in out.iterdir()) == ["001-a", "002-b"]
    for folder, size in (("001-a", (100, 40)), ("002-b", (70, 40))):
        for method in ("attention", "rollout", "gradient-rollout"):
            assert Image.open(out / folder / f"{method}.png").size == size
            assert np.load(out / folder / f"{method}.npy").shape == (2, 2, 3)
        assert np.load(out / folder / "attention-heads.npy").shape == (2, 2, 2, 2, 3)
        assert (out / folder / "attention-heads-distillation-token.png").exists()
        told = json.loads((out / folder / "explanation.json").read_text())
        assert told["label"] == "dog" and told["tokens"] == ["class token", "distillation token"]
        assert 0 < told["seen"][0] < told["seen"][2] < size[0]  # the crop of a wide image


def test_in_python_nothing_is_written(random_run, image_folder):
    found = deitkit.explain(random_run, [image_folder / "cat" / "0.png", b"no image"])
    assert found[0].label == found[0].predicted and isinstance(found[1], UnreadableImage)
    predicted = deitkit.load(random_run).predict(image_folder / "cat" / "0.png")[0]
    assert (found[0].label, found[0].probability) == (
        predicted.label,
        pytest.approx(predicted.probability, abs=1e-5),
    )


def test_a_teacher_is_explained_by_grad_cam(tmp_path, image_folder):
    pytest.importorskip("captum", reason='needs pip install "deitkit[explain]"')
    teacher = fitted_folder(tmp_path, side=64)
    deitkit.explain(teacher, image_folder / "cat" / "0.png", tmp_path / "why")
    assert {path.name for path in (tmp_path / "why" / "001-0").iterdir()} == {
        "explanation.json",
        "grad-cam.npy",
        "grad-cam.png",
    }


def test_mistakes_end_in_one_sentence(random_run, image_folder, tmp_path, capsys):
    image = str(image_folder / "cat" / "0.png")
    for arguments, sentence in (
        ([image, "--out", str(random_run)], "is not empty"),
        ([image, "--out", str(tmp_path / "why"), "--label=cow"], "no class 'cow'"),
        ([str(tmp_path / "gone.png"), "--out", str(tmp_path / "why")], "there is no file"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["explain", str(random_run), *arguments])
        assert end.value.code == 2 and sentence in capsys.readouterr().err
    assert not (tmp_path / "why").exists()


def test_the_seen_box_is_what_the_view_shows():
    """White where the box is, black elsewhere: the view is white."""
    for size in ((130, 60), (50, 200), (64, 64)):
        left, top, right, bottom = seen_box(size, (16, 24), 0.9)
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        inside = (slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right))))
        pixels[inside] = 255
        assert center_crop(Image.fromarray(pixels), (16, 24), 0.9)[:, 1:-1, 1:-1].min() > 200
        pixels[inside] = 0
        assert pixels.max() == 0 or center_crop(Image.fromarray(pixels), (16, 24), 0.9).max() == 0


def test_an_overlay_is_brightest_where_the_weight_is():
    image = Image.new("RGB", (80, 40), "grey")
    weights = np.array([[0, 0, 0, 1.0]], np.float32)
    shown = np.asarray(overlay(image, weights, (40, 0, 80, 40))).astype(int).sum(2)
    assert shown[20, 75] > 2 * shown[20, 45] and shown[20, 45] == shown[20, 5]
