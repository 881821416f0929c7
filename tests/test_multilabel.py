"""Multilabel images, from labels.csv to a prediction, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import deitkit
from deitkit.classifier import load
from deitkit.cli import main as command_line
from deitkit.config import Config, DataConfig
from deitkit.data.dataset import open_dataset
from deitkit.data.sampler import plan_epoch
from deitkit.data.splits import load_splits
from deitkit.deploy import exporter as delivery_export
from deitkit.deploy.export_format import metadata

from .conftest import TINY, write_images, write_labelled
from .test_bad_input import refusal

LABELS = ("blue", "green", "red")


def run_main(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        command_line([str(a) for a in arguments])
    assert stop.value.code == 0


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """data/ with labels.csv, run/ trained on it by the command line under a teacher, with a baseline."""
    folder = tmp_path_factory.mktemp("multilabel")
    write_labelled(folder / "data", count=64)
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        run_main("train", folder / "data", "--out", folder / "run", *settings(folder))
    return folder


def settings(folder: Path) -> list[str]:
    return [
        *("--image-size=16", "--patch-size=8", "--batch-size=8", "--epochs=12", "--device=cpu", "--baseline"),
        f"--teacher=timm:test_efficientnet@{folder / 'teacher.safetensors'}",
        *("--set=teacher.image_size=32", "--set=teacher.backend=pytorch", "--set=teacher.probe_views=2"),
        *("--set=optim.lr=3e-3", "--set=optim.lr_batch=8", "--set=student.initial_weights=none"),
    ]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_student_learns_every_label(stage):
    found = read(stage / "run" / "results.json")
    student = found["student"]
    assert found["task"] == "multilabel" and "confusion" not in found and "top1" not in student
    chance = 50.0  # each label is on about half of the images
    for name in ("map", "map_class", "map_distill"):
        assert student[name] > chance + 30
    assert student["f1_micro"] > 80 and student["f1_macro"] > 80
    assert student["interval"][0] <= student["map"] <= student["interval"][1]
    assert all(
        row["images"] == pytest.approx(found["val"]["images"] / 2, abs=2) for row in found["per_class"]
    )
    assert np.mean([row["ap"] for row in found["per_class"]]) == pytest.approx(student["map"])
    assert found["teacher"]["map"] > chance and found["baseline"]["map"] > chance
    assert "mAP" in found["verdict"] and found["verdict"].startswith("Deploy the ")


def test_the_run_says_how_it_was_trained(stage, capsys):
    settings, described = read(stage / "run" / "settings.json"), read(stage / "run" / "config.json")
    assert settings["train"]["loss"] == "bce"  # by itself: nothing asked for it
    assert described["task"] == "multilabel" and described["classes"] == list(LABELS)
    assert "bce" in described["plan"]["why_student"]
    assert "linear probe over 2 views, a loss of" in described["teacher"]["how"]


def test_predictions_list_labels_and_every_probability(stage):
    with open(stage / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == read(stage / "run" / "split.json")["val"]
    labels = dict(line.split(",") for line in (stage / "data" / "labels.csv").read_text().splitlines()[1:])
    for row in rows:
        assert set(row["label"].split(";")) == set(labels[row["path"]].split(";"))
        said = [name for name in LABELS if float(row[f"p({name})"]) > 0.5]
        assert row["prediction"] == ";".join(said)
    assert any(row["label"] == "" for row in rows)


def test_the_report_shows_labels_in_place_of_confusion(stage):
    page = (stage / "run" / "report.html").read_text(encoding="utf-8")
    assert "mAP, %" in page and "average precision" in page and "top-1" not in page
    assert "Class by class" in page and "Which classes are confused" not in page


def test_eval_measures_a_folder_and_a_part_of_it(stage, capsys):
    student = ("eval", stage / "run", stage / "data", "--model", "student")  # which is recommended is timing
    run_main(*student, "--json")
    found = json.loads(capsys.readouterr().out)
    split = read(stage / "run" / "split.json")
    assert found["notes"] == [f"{len(split['train'])} images that the run was trained on are left out."]
    assert found["images"] == len(split["val"])
    assert [row["name"] for row in found["per_class"]] == list(LABELS)
    run_main(*student)
    shown = capsys.readouterr().out
    lines = [line.replace("│", " ").split() for line in shown.splitlines()]
    assert f"{len(split['val'])} images, 3 classes" in shown and "mAP, %" in shown
    low, high = (f"{bound:.1f}" for bound in found["interval"])
    assert ["both", "heads", f"{found['map']:.1f}", low, "to", high] in lines
    assert ["micro", "F1", "at", "50", "%", f"{found['f1_micro']:.1f}"] in lines
    row, red = next(line for line in lines if line[:1] == ["red"]), found["per_class"][0]
    assert row[1:4] == [str(red["images"]), f"{red['ap']:.1f}", f"{red['recall']:.1f}"]


def test_eval_of_the_validation_images_gives_the_runs_own_numbers(stage, tmp_path, capsys):
    split = read(stage / "run" / "split.json")
    part = {path: name for name in ("train", "val") for path in split[name]}
    lines = (stage / "data" / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text(
        "path,labels,split\n" + "\n".join(f"{line},{part[line.split(',')[0]]}" for line in lines[1:])
    )
    for picture in (stage / "data").glob("*.png"):
        (tmp_path / picture.name).symlink_to(picture)
    run_main("eval", stage / "run", tmp_path, "--part", "val", "--model=student", "--json")
    found, student = json.loads(capsys.readouterr().out), read(stage / "run" / "results.json")["student"]
    assert found["images"] == len(split["val"])
    for name in ("map", "map_class", "map_distill", "f1_micro", "f1_macro"):
        assert found[name] == pytest.approx(student[name], abs=1e-3)
    sentence = refusal(capsys, "eval", stage / "run", tmp_path, "--part", "test")
    assert "no row of" in sentence and "the split 'test'" in sentence


def test_predict_names_every_label_above_a_half(stage, capsys):
    classifier = load(stage / "run", device="cpu")
    answers = classifier.predict([stage / "data" / f"{i}.png" for i in range(8)])
    for answer in answers:
        assert set(answer.labels) == {name for name, p in answer.probabilities.items() if p > 0.5}
    right = sum(
        set(a.labels) == {name for k, name in enumerate(("red", "green", "blue")) if (i >> k) % 2}
        for i, a in enumerate(answers)
    )
    assert right >= 6
    run_main("predict", stage / "run", stage / "data" / "0.png", stage / "data" / "7.png", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["labels"] for row in rows] == [list(answers[0].labels), list(answers[7].labels)]
    run_main("predict", stage / "run", stage / "data" / "7.png")
    assert capsys.readouterr().out.count("%") == len(answers[7].labels)
    run_main("predict", stage / "run", stage / "data" / "0.png", "--top", "2")
    assert capsys.readouterr().out.count("%") == 2


def test_predictions_can_serve_as_labels(stage, capsys):
    run_main("predict", stage / "run", stage / "data" / "7.png", "--csv")
    [row] = csv.DictReader(capsys.readouterr().out.splitlines())
    answer = load(stage / "run", device="cpu").predict([stage / "data" / "7.png"])[0]
    assert tuple(row["labels"].split(";")) == answer.labels and row["error"] == ""
    assert len(row["probabilities"].split(";")) == len(answer.labels)


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_an_exported_graph_answers_with_sigmoids(stage, tmp_path, to, suffix):
    classifier = load(stage / "run", device="cpu", model="student", backend="pytorch")
    out = tmp_path / f"model{suffix}"
    delivery_export.export_run(stage / "run", to, out, model="student")
    backend = delivery_export.FORMATS[to].open(out)
    views = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    probabilities, class_logits, distill_logits = backend(views)
    expected = (class_logits.sigmoid() + distill_logits.sigmoid()) / 2
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-5)
    assert metadata(classifier)["task"] == '"multilabel"'


def test_mixed_views_have_mixed_labels(stage):
    config = Config().override({"augment.cutmix": 0, "augment.mixup": 1.0})
    splits = load_splits(stage / "data", DataConfig())
    opened = open_dataset(splits, (16, 16), config.data)
    n = len(opened.train.images)
    [batch] = plan_epoch(n, batch_size=n, repeats=1, seed=0, epoch=0)
    made = opened.views(config.augment, (16, 16), torch.device("cpu")).make(batch)
    own = torch.from_numpy(splits.train.labels[batch.indices]).float()
    assert made.labelled_share == 1.0  # also of the images that show none of the labels
    for a in range(0, n - 1, 2):
        pair, mixed = own[a : a + 2], made.targets[a : a + 2]
        torch.testing.assert_close(mixed.sum(0), pair.sum(0))
        differ = pair[0] != pair[1]
        weights = torch.where(pair[0] > 0, mixed[0], 1 - mixed[0])[differ]
        torch.testing.assert_close(weights, weights[:1].expand_as(weights))  # one weight per pair
    assert ((made.targets > 0.01) & (made.targets < 0.99)).any()


def test_a_stopped_run_ends_in_the_same_weights(stage, tmp_path, monkeypatch):
    from deitkit.errors import Interrupted
    from deitkit.training.trainer import Trainer

    monkeypatch.setenv("DEITKIT_CACHE", str(stage / "cache"))
    plain, end = settings(stage), Trainer._end_epoch

    def stop_after_four(self, epoch, *rest):
        end(self, epoch, *rest)
        if epoch == 3:
            raise Interrupted

    monkeypatch.setattr(Trainer, "_end_epoch", stop_after_four)
    with pytest.raises(SystemExit) as stop:
        command_line(["train", str(stage / "data"), "--out", str(tmp_path / "run"), *plain])
    assert stop.value.code == 130
    monkeypatch.setattr(Trainer, "_end_epoch", end)
    run_main("train", stage / "data", "--out", tmp_path / "run", *plain, "--resume")
    first, second = (load_file(f / "run" / "model.safetensors") for f in (stage, tmp_path))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set=train.loss=cross-entropy"], "train.loss cross-entropy is for one class per image; use bce"),
        (["--teacher=auto", "--distillation=dist"], "distillation.mode dist compares softmaxes"),
        (["--set=train.balance=sampler"], "train.balance sampler needs one class per image"),
        (["--set=train.balance=loss"], "train.balance loss needs one class per image"),
        (["--metric=top1"], "train.metric top1 is for one class per image"),
        (["--metric=balanced"], "train.metric balanced is for one class per image"),
        (["--metric=macro-f1"], "train.metric macro-f1 is for one class per image"),
        (["--set=distillation.standardise=true"], "distillation.standardise ranks classes"),
        (["--teacher=auto", "--unlabeled={data}"], "data.unlabeled needs one class per image"),
    ],
)
def test_multiclass_settings_are_refused(tmp_path, capsys, more, message):
    data = write_labelled(tmp_path / "data")
    more = [flag.format(data=data) for flag in more]
    sentence = refusal(capsys, "train", data, "--out", tmp_path / "run", *TINY, *more)
    assert "the images are multilabel, and " + message in sentence
    assert not (tmp_path / "run").exists()


def test_multiclass_verbs_say_so(stage, tmp_path, capsys):
    needed = "needs one class per image"
    assert needed in refusal(capsys, "label", stage / "data", "--epochs", 1, "--out", tmp_path / "labels")
    assert needed in refusal(capsys, "analyze", stage / "run", stage / "data")
    folders = write_images(tmp_path / "folders", LABELS)
    assert "has no labels.csv" in refusal(capsys, "eval", stage / "run", folders)
    study = ("study", "distillation", stage / "data", "--out", tmp_path / "study")
    assert needed in refusal(capsys, *study)


def test_bad_tables_are_refused_before_anything_is_written(tmp_path, capsys):
    data = write_labelled(tmp_path / "data")
    with open(data / "labels.csv", "a") as table:
        table.write("gone.png,red\n")
    sentence = refusal(capsys, "train", data, "--out", tmp_path / "run", *TINY)
    assert "line 50" in sentence and "names gone.png" in sentence
    assert not (tmp_path / "run").exists()


def test_python_takes_such_a_folder_too(tmp_path):
    run = deitkit.train(
        write_labelled(tmp_path / "data", labels=("red",), count=24),
        tmp_path / "run",
        teacher__spec="none",
        student__image_size=16,
        student__patch_size=8,
        train__epochs=1,
        train__device="cpu",
    )
    assert run.results["student"]["map_distill"] is None and len(run.results["per_class"]) == 1
