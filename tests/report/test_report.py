"""A run folder with a tiny random model: loaded, asked, judged and shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from deitkit.classifier import load
from deitkit.cli import prediction_output as predict
from deitkit.data.decode import UnreadableImage, center_crop, open_rgb
from deitkit.data.image_inputs import expand
from deitkit.errors import DeitkitError
from deitkit.models.deit import DeiT, joint_probabilities
from deitkit.report import page as pages
from deitkit.report.run_page import write_report

CLASSES = ["cat", "<script>dog</script>", "bird"]
SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2, "distilled": True}
SIZES = {"image_size": (16, 24), "patch_size": (8, 8)}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def model(name: str = "nano", top1: float = 90.0, speed: float = 500.0, half_width: float = 2.0) -> dict:
    return {
        **{"name": name, "top1": top1, "top1_class": top1 - 1, "top1_distill": top1 - 2, "top5": 100.0},
        "interval": [top1 - half_width, top1 + half_width],
        **{
            "params": 1_000_000,
            "images_per_s": speed,
            "bytes": 4_000_000,
            "backend": "pytorch",
            "how": "probe",
        },
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run folder, not square, its images beside it."""
    torch.manual_seed(0)
    student = DeiT(num_classes=3, **SIZES, **SHAPE)
    for p in student.parameters():
        torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(student.state_dict(), folder / "model.safetensors")
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (20 + 9 * i, 40, 3), dtype=np.uint8)).save(root / f"{i}.png")
    files = {
        "config.json": {
            "config": {"recipe": "small-data"},
            "classes": CLASSES,
            "preprocessing": {"image_size": [16, 24], "mean": MEAN, "std": STD, "crop": 0.9},
            "student": {"name": "nano", "params": 1, **{k: list(v) for k, v in SIZES.items()}, **SHAPE},
            "versions": {"torch": "2"},
            "data": {
                "root": str(root),
                "train": 8,
                "val": 4,
                "test": 0,
                "how": "stratified",
                "fingerprint": "f",
            },
            "plan": {"epochs": 2, "steps": 4, "why_student": "it is small"},
        },
        "results.json": {
            "student": model(),
            "teacher": model("lite0", 92.0, 100.0),
            "baseline": None,
            "train": {"seconds": 1.0, "images_per_s": 9.0, "epochs": 2, "images": 16},
            **{"val": {"images": 4}, "test": None, "weights": "ema", "machine": "m", "date": "2026-01-01"},
            **{"verdict": "Deploy <this> one.", "confusion": [[1, 1, 0], [1, 1, 0], [0, 0, 0]]},
        },
        "skipped.json": [{"path": "bad<b>.png", "reason": "broken"}],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    heads = {"top1": 80.0, "top1_class": 79.0, "top1_distill": 78.0, "loss": 0.5}
    line = {"train": {"loss": 1.0, "class": 0.5}, "val": heads, "val_ema": heads}
    guided = {"epoch": 1, "train": line["train"] | {"guidance": 0.5}}  # for the first epoch only
    lines = [json.dumps(line | changed) + "\n" for changed in (guided, {"epoch": 2})]
    (folder / "metrics.jsonl").write_text("".join(lines))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "probability", "teacher_prediction"])
        writer.writerow(["0.png", "cat", CLASSES[1], "0.61", "cat"])
        writer.writerow(["1.png", "cat", "cat", "0.99", "cat"])
        writer.writerow(["2.png", CLASSES[1], "cat", "0.93", ""])
        writer.writerow(["gone.png", CLASSES[1], "cat", "0.55", ""])
    return folder


def test_preprocessing_is_the_runs_own(run, tmp_path):
    path = tmp_path / "images" / "3.png"
    view = torch.from_numpy(center_crop(open_rgb(path), (16, 24), 0.9).copy()).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    classifier = load(run, device="cpu")
    with torch.inference_mode():
        output = classifier.model(((view - mean) / std)[None])
    [answer] = classifier.predict([path])
    expected = joint_probabilities(output)[0]
    assert [answer.probabilities[c] for c in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.label == CLASSES[expected.argmax()] and answer.probability == pytest.approx(
        expected.max().item()
    )
    assert answer.class_label == CLASSES[output.class_logits.argmax()]
    assert answer.distill_label == CLASSES[output.distill_logits.argmax()]


def test_batches_do_not_change_or_reorder_answers(run, tmp_path):
    paths = [tmp_path / "images" / f"{i}.png" for i in (3, 1, 0, 2)]
    classifier = load(run, device="cpu")
    one, all_ = classifier.predict(paths, batch_size=1), classifier.predict(paths, batch_size=3)
    assert [a.source for a in all_] == [str(p) for p in paths]
    for a, b in zip(one, all_, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_unreadable_pictures_keep_their_place(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [tmp_path / "images" / "0.png", tmp_path / "bad.png", tmp_path / "images" / "1.png"]
    classifier = load(run, device="cpu")
    kinds = [isinstance(a, UnreadableImage) for a in classifier.predict_all(paths, batch_size=2)]
    assert kinds == [False, True, False]
    with pytest.raises(UnreadableImage):
        classifier.predict(paths)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_run_that_is_not_whole_is_refused(run, name):
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DeitkitError, match="cannot be read"):
        load(run)
    (run / name).unlink()
    with pytest.raises(DeitkitError, match="no finished run"):
        load(run)


def test_expand_takes_files_folders_and_patterns(tmp_path):
    for name in ("b.PNG", "deep/a.jpg", "deep/notes.txt", "[1].png", "._b.png", ".thumbs/t.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = lambda *texts: [p.name for p in expand([str(tmp_path / t) for t in texts])]  # noqa: E731
    assert names("") == ["[1].png", "b.PNG", "a.jpg"]
    assert names("**/*.jpg") == ["a.jpg"]
    assert names("[1].png") == ["[1].png"]  # a name that is there is no pattern
    assert names("deep/notes.txt") == ["notes.txt"]  # named by hand: reading it tells what is wrong
    with pytest.raises(DeitkitError, match="there is no file"):
        names("*.webp")


def test_csv_and_json_carry_answers_and_errors(run, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    answers = list(load(run, device="cpu").predict_all([tmp_path / "images" / "0.png", tmp_path / "bad.png"]))
    predict.write_csv(answers, 5)  # more than there are classes
    good, bad = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [good[f"label{k}"] for k in (1, 2, 3)] == list(answers[0].probabilities)
    assert float(good["probability1"]) == pytest.approx(answers[0].probability, abs=1e-4)
    assert good["label4"] == good["error"] == "" and bad["label1"] == "" and bad["error"]
    predict.write_json(answers, 2)
    good, bad = json.loads(capsys.readouterr().out)
    assert good["label"] == answers[0].label and len(good["top"]) == 2
    assert bad == {"path": str(tmp_path / "bad.png"), "error": answers[1].reason}


def test_report_escapes_names_and_shows_mistakes_worst_first(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page and "bad<b>" not in page and "Deploy &lt;this&gt; one." in page
    mistakes = page[page.index("The worst mistakes") :]
    assert mistakes.index("2.png") < mistakes.index("0.png") < mistakes.index("gone.png")
    assert "1.png" not in mistakes  # that one was right
    assert (
        mistakes.count("data:image/jpeg;base64,") == 4
    )  # with what they were taken by; the third file is gone


def test_a_report_without_explanations_is_whole(run, monkeypatch):
    def fails(*arguments):
        raise DeitkitError("no gradients")

    monkeypatch.setattr("deitkit.report.run_page.explain_views", fails)
    page = write_report(run).read_text(encoding="utf-8")
    assert "evidence for" not in page and page.count("data:image/jpeg;base64,") > 2


def test_report_shows_balanced_accuracy_of_uneven_classes_and_what_is_recommended(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "balanced accuracy" not in page and "(recommended)" not in page
    results = json.loads((run / "results.json").read_text())
    results["confusion"] = [[9, 1, 0], [1, 1, 0], [0, 0, 0]]
    results["student"] |= {"balanced_accuracy": 70.0, "balanced_interval": [40.0, 80.0], "macro_f1": 69.0}
    (run / "results.json").write_text(json.dumps(results | {"recommended": "teacher"}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "balanced accuracy, %" in page and "70.0" in page and "(40.0 to 80.0)" in page
    assert page.index("Teacher: lite0 (recommended)") < page.index("Student: DeiT nano")


def test_report_shows_the_classes_of_a_recommended_teacher(run):
    with open(run / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["path", "label", "prediction", "probability", "teacher_prediction", "teacher_probability"]
        )
        writer.writerow(["0.png", "cat", "cat", "0.61", "bird", "0.77"])
        writer.writerow(["1.png", "bird", "cat", "0.99", "bird", "0.88"])
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"recommended": "teacher"}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "By the teacher, which is recommended." in page and "They use the recommended model" in page
    mistakes = page[page.index("The worst mistakes") :]
    assert "predicted <b>bird</b> (77 %)" in mistakes and "labelled cat" in mistakes
    assert "0.png" in mistakes and "1.png" not in mistakes  # the student's mistake


def test_report_of_version_0_1_has_its_control(run):
    results = json.loads((run / "results.json").read_text())
    results |= {"task": "classes", "control": model(top1=70.0)}
    (run / "results.json").write_text(json.dumps({k: v for k, v in results.items() if k != "baseline"}))
    (run / "control").mkdir()
    line = {"epoch": 1, "train": {"loss": 1.0}, "val": {"top1": 60.0}, "val_ema": {"top1": 70.0}}
    (run / "control" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Baseline: no teacher" in page and "70.0" in page and ">baseline<" in page


def test_report_puts_the_teacher_beside_the_student(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "Teacher: lite0" in page and "distillation head alone" in page and "Baseline" not in page
    assert page.count("<svg") == 4 and "bird" in page  # a class without a validation image divides nothing


def test_axes_have_whole_epochs_and_a_legend_that_covers_nothing():
    figure = Figure()
    axes = figure.add_subplot()
    pages.epoch_axis(axes)
    axes.plot([1, 2, 3], [1, 2, 3], label="a line")
    pages.legend_above(axes)
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1, 2, 3]
    assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())
