"""Answers that one can act on, from a training to `predict`, `eval` and the exports, by the command line."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deitkit
from deitkit import cli
from deitkit.run_folder import read_calibration, read_student, write_calibration

from .conftest import TINY, write_images, write_labelled


def run_main(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    assert ended.value.code in (0, None)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The sentence with which a command is refused."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ of two classes, run/ trained on them, and others/ that are neither."""
    stage = tmp_path_factory.mktemp("answers")
    write_images(stage / "images", count=140)
    rng = np.random.RandomState(1)
    (stage / "others").mkdir()
    for i in range(6):
        stripes = np.zeros((24, 24, 3), np.uint8)
        stripes[:: 2 + i % 3] = 255
        stripes[..., 1] = rng.randint(0, 255)
        Image.fromarray(stripes).save(stage / "others" / f"{i}.png")
    run_main("train", stage / "images", "--out", stage / "run", *TINY)
    return stage


@pytest.fixture
def calibrated(stage: Path, tmp_path: Path) -> Path:
    """The run with a temperature that is far from 1."""
    run = tmp_path / "run"
    shutil.copytree(stage / "run", run)
    known = read_calibration(run)
    write_calibration(run, replace(known, temperature=2.5, head_temperatures={"class": 2.0, "distill": 3.0}))
    return run


def answers(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    capsys.readouterr()
    run_main("predict", *arguments, "--device=cpu", "--json")
    return json.loads(capsys.readouterr().out)


def test_training_keeps_what_validation_tells(stage):
    found = read_calibration(stage / "run")
    assert found.images == 70 and len(found.true_probabilities) == 70
    assert 0 < found.familiar_up_to < 2 and found.nll <= found.nll_before
    assert list(found.true_probabilities) == sorted(found.true_probabilities)
    assert (stage / "run" / "class_means.safetensors").exists()
    assert "How far to trust it" in (stage / "run" / "report.html").read_text()


def test_the_temperature_changes_probabilities_and_no_label(stage, calibrated, capsys):
    plain = stage.parent / "plain"
    shutil.copytree(stage / "run", plain, dirs_exist_ok=True)
    (plain / "calibration.json").unlink()
    before = answers(capsys, plain, stage / "images" / "cat", "--top=2")
    after = answers(capsys, calibrated, stage / "images" / "cat", "--top=2")
    assert [a["label"] for a in before] == [a["label"] for a in after]
    for a, b in zip(before, after, strict=True):
        odds = np.log(a["probability"] / (1 - a["probability"]))
        assert b["probability"] == pytest.approx(1 / (1 + np.exp(-odds / 2.5)), rel=1e-3)
    # A run without the file, as those of version 0.1, has no score.
    assert before[0]["unfamiliarity"] is None and before[0]["answered"]
    assert "train it again" in refused(capsys, "predict", plain, stage / "others", "--reject", "--device=cpu")
    assert "train it again" in refused(
        capsys, "predict", plain, stage / "others", "--coverage=0.9", "--device=cpu"
    )


def test_unfamiliar_images_are_unknown(stage, capsys):
    known = answers(capsys, stage / "run", stage / "images", "--reject")
    others = answers(capsys, stage / "run", stage / "others", "--reject")
    assert sum(a["answered"] for a in known) >= 0.9 * len(known)
    assert not any(a["answered"] for a in others)
    assert {a["label"] for a in others} == {"unknown"} and others[0]["labels"] == []
    limit = read_calibration(stage / "run").familiar_up_to
    assert all((a["unfamiliarity"] <= limit) == a["answered"] for a in known + others)
    run_main("predict", stage / "run", stage / "others", "--reject", "--csv", "--device=cpu")
    row = next(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert row["label1"] == "unknown" and float(row["unfamiliarity"]) > limit
    run_main("predict", stage / "run", stage / "others", "--reject", "--device=cpu")
    assert "unknown (most likely " in capsys.readouterr().out


def test_without_reject_unfamiliar_images_are_pointed_out(stage, capsys):
    run_main("predict", stage / "run", stage / "others", "--device=cpu")
    assert "look like no image of the classes" in capsys.readouterr().err
    run_main("predict", stage / "run", stage / "images", "--device=cpu")
    assert "look like no image" not in capsys.readouterr().err
    run_main("predict", stage / "run", stage / "others", "--reject", "--device=cpu")
    assert "look like no image" not in capsys.readouterr().err


def test_a_threshold_and_sets(stage, capsys):
    sure = answers(capsys, stage / "run", stage / "images", "--threshold=0.9")
    assert all((a["probability"] >= 0.9) == a["answered"] for a in sure)
    sets = answers(capsys, stage / "run", stage / "images", "--coverage=0.95")
    right = [Path(a["path"]).parent.name in a["labels"] for a in sets]
    assert np.mean(right) > 0.9 and all(1 <= len(a["labels"]) <= 2 for a in sets)
    classifier = deitkit.load(stage / "run", device="cpu").deciding(threshold=1.0)
    [prediction] = classifier.predict(stage / "others" / "0.png")
    assert not prediction.answered and prediction.label == "unknown" and prediction.labels == ()


def test_the_export_answers_as_predict_does(stage, calibrated, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    run_main("export", calibrated, "--to=onnx", "--out", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    classifier = deitkit.load(calibrated, device="cpu", backend="pytorch")
    path = stage / "images" / "cat" / "0.png"
    [expected] = classifier.predict(path)
    views = (classifier.pixels(path) / np.float32(255))[None]
    probabilities, unfamiliarity = session.run(["probabilities", "unfamiliarity"], {"views": views})
    assert probabilities.max() == pytest.approx(expected.probability, abs=1e-4)
    assert unfamiliarity[0] == pytest.approx(expected.unfamiliarity, abs=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["calibration"])["temperature"] == 2.5


def test_converted_heads_are_divided(calibrated, tmp_path, capsys):
    model, _ = read_student(calibrated)
    run_main("convert", calibrated, tmp_path / "timm", "--to=timm")
    divisor = 2.5 if model.head_dist is None else 1.0  # "mean", which the fixture leaves out
    from safetensors.torch import load_file

    converted = load_file(tmp_path / "timm" / "model.safetensors")["head.weight"]
    if model.head_dist is None:
        divisor = 2.0 if "class" in read_calibration(calibrated).head_temperatures else 2.5
    torch.testing.assert_close(converted, model.head.weight.detach() / divisor)


def test_eval_finds_the_threshold_of_a_precision(stage, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "eval.html"
    run_main(
        *("eval", stage / "run", stage / "images", "--precision=0.99", "--json", "--device=cpu"),
        *("--html", page),
    )
    found = json.loads(capsys.readouterr().out)
    point = found["operating_point"]
    assert point["target"] == 99 and [row["name"] for row in point["per_class"]] == ["cat", "dog"]
    assert point["threshold"] is None or point["all"]["precision"] >= 99
    assert found["risk_coverage"][-1]["share"] == 100
    assert found["calibration"]["nll"] <= found["calibration"]["nll_before"] + 0.05
    assert "How far to trust it" in page.read_text()
    run_main("eval", stage / "run", stage / "images", "--precision=0.99", "--device=cpu")
    assert "precision of 99 %" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--threshold=2", "--threshold is a probability from 0 to 1, not 2"),
        ("--threshold=-0.1", "--threshold is a probability from 0 to 1, not -0.1"),
        ("--threshold=nan", "--threshold is a probability from 0 to 1, not nan"),
        ("--coverage=1.5", "--coverage is a share between 0 and 1, not 1.5"),
        ("--coverage=0", "--coverage is a share between 0 and 1, not 0"),
        ("--coverage=nan", "--coverage is a share between 0 and 1, not nan"),
        ("--coverage=0.999", "needs 999 validation images or more: the model has 70"),
    ],
)
def test_values_out_of_range_are_refused(stage, capsys, option, sentence):
    assert sentence in refused(capsys, "predict", stage / "run", stage / "others", option, "--device=cpu")


def test_values_out_of_range_are_refused_before_the_run_is_opened(capsys):
    assert "from 0 to 1, not 90" in refused(capsys, "predict", "no-run", "a.png", "--threshold=90")
    assert "out.csv is no image" in refused(capsys, "predict", "no-run", "a.png", "--csv", "out.csv")


def test_contradictions_are_refused(stage, capsys):
    start = ("predict", stage / "run", stage / "others", "--device=cpu", "--coverage=0.9")
    assert "give one of them" in refused(capsys, *start, "--top=3")
    assert "give one of them" in refused(capsys, *start, "--threshold=0.5")
    for precision in ("0", "1.1", "nan"):
        evaluate = ("eval", stage / "run", stage / "images", f"--precision={precision}", "--device=cpu")
        assert "--precision is a share" in refused(capsys, *evaluate)


def test_a_damaged_calibration_is_refused(calibrated, stage, capsys):
    for content, sentence in (
        ('{"temperature": 0}', "a temperature is 0"),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
    ):
        (calibrated / "calibration.json").write_text(content)
        assert sentence in refused(capsys, "predict", calibrated, stage / "others", "--device=cpu")


def test_multilabel_is_calibrated_and_refuses_the_rest(tmp_path, capsys):
    write_labelled(tmp_path / "data", count=240)
    run_main("train", tmp_path / "data", "--out", tmp_path / "run", *TINY)
    found = read_calibration(tmp_path / "run")
    assert found.images >= 50 and found.ece is None and found.familiar_up_to is None
    start = ("predict", tmp_path / "run", tmp_path / "data" / "7.png", "--device=cpu")
    for option in ("--reject", "--threshold=0.5", "--coverage=0.9"):
        assert "needs one class per image" in refused(capsys, *start, option)
    evaluate = ("eval", tmp_path / "run", tmp_path / "data", "--precision=0.9", "--device=cpu")
    assert "needs one class per image" in refused(capsys, *evaluate)
    assert answers(capsys, *start[1:3])[0]["unfamiliarity"] is None
