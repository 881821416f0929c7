"""`deitkit eval`: tables with intervals, each class, confusions; CSV and JSON."""

from __future__ import annotations

import csv
import json

import pytest
from safetensors.torch import load_file, save_file

from deitkit import cli
from deitkit.evaluation.metrics import balanced_accuracy_interval, wilson_interval
from deitkit.evaluation.run_evaluation import evaluate_folder

from ..conftest import write_images


def shown(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out


@pytest.fixture
def uneven(tmp_path):
    """3 images of cats and 20 of dogs."""
    write_images(tmp_path / "uneven", ("cat",), count=3)
    return write_images(tmp_path / "uneven", ("dog",), count=20)


@pytest.fixture
def says_dog(random_run):
    """A model that always names the largest class."""
    weights = load_file(random_run / "model.safetensors")
    for head in ("head", "head_dist"):
        weights[f"{head}.weight"].zero_()
        weights[f"{head}.bias"].zero_()[1] = 1.0
    save_file(weights, random_run / "model.safetensors")
    return random_run


def test_always_naming_the_largest_class_is_not_praised(says_dog, uneven, capsys):
    found = evaluate_folder(says_dog, uneven, device="cpu")
    assert found.metrics.top1 == pytest.approx(100 * 20 / 23) and found.metrics.balanced_accuracy == 50
    assert found.confusion == [[0, 3], [0, 20]] and not found.learned and found.chance == 50
    assert found.per_class[0].recall == 0 and found.per_class[0].precision is None
    text = shown(capsys, "eval", says_dog, uneven, "--device=cpu")
    assert "balanced accuracy" in text and "macro-F1" in text
    assert "no better than always naming one class (50.0 %)" in " ".join(text.split())


def test_tables_csv_and_json(random_run, image_folder, tmp_path, capsys):
    file = tmp_path / "found.csv"
    out = shown(capsys, "eval", random_run, image_folder, "--device=cpu", "--json", "--csv", file)
    found = json.loads(out)
    low, high = found["interval"]
    assert (low, high) == pytest.approx(wilson_interval(found["top1"] / 100, 24))
    assert found["intervals"]["joint"] == found["interval"]
    assert found["intervals"]["distill"] == pytest.approx(wilson_interval(found["top1_distill"] / 100, 24))
    import torch

    table = torch.tensor(found["confusion"])
    assert found["balanced_interval"] == pytest.approx(balanced_accuracy_interval(table))
    assert table.trace() == round(found["top1"] * 24 / 100) and table.sum() == 24
    assert [row["name"] for row in found["per_class"]] == ["cat", "dog"]
    assert found["per_class"][0]["recall"] == pytest.approx(100 * table[0, 0].item() / 12)
    with open(file, newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 24 and sum(r["label"] == r["prediction"] for r in rows) == table.trace()
    text = shown(capsys, "eval", random_run, image_folder, "--device=cpu")
    for words in ("24 images, 2 classes", "top-1, %", "95 % interval", "distillation head", "precision, %"):
        assert words in text
    assert f"{low:.1f} to {high:.1f}" in text and "predicted" in text
    assert "balanced accuracy" not in text  # the classes are even


def test_a_page_on_request(random_run, image_folder, tmp_path, capsys):
    page = tmp_path / "pages" / "eval.html"
    found = json.loads(shown(capsys, "eval", random_run, image_folder, "--json", "--html", page))
    assert found["mistakes"], "random weights classify everything right"
    worst = found["mistakes"][0]
    assert {"path", "label", "prediction", "probability"} <= set(worst)
    assert [m["probability"] for m in found["mistakes"]] == sorted(
        (m["probability"] for m in found["mistakes"]), reverse=True
    )
    text = page.read_text(encoding="utf-8")
    assert f"predicted <b>{worst['prediction']}</b>" in text and worst["path"] in text
    assert text.count("data:image/jpeg") == min(24, len(found["mistakes"]))


def test_unreadable_files_are_left_out_of_the_csv(random_run, tmp_path, capsys):
    images = write_images(tmp_path / "many", count=120)
    (images / "cat" / "0.png").write_bytes(b"broken")
    found = evaluate_folder(random_run, images, device="cpu", csv_file=tmp_path / "found.csv")
    assert found.skipped == ("cat/0.png",) and found.metrics.images == 239
    text = (tmp_path / "found.csv").read_text()
    assert len(text.splitlines()) == 240 and "cat/0.png" not in text
