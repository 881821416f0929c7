"""A run, or a fitted teacher, put to use: which model, and images in every form."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import deitkit
from deitkit import cli
from deitkit.classifier import StudentClassifier, TeacherClassifier, load, model_folder
from deitkit.data.decode import UnreadableImage
from deitkit.errors import DataError, DeitkitError, RunFolderError
from deitkit.evaluation.run_evaluation import evaluate_folder
from deitkit.report.run_page import write_report
from deitkit.run_folder import read_results

from .teachers.models import timm_file

TRAIN = [
    "--image-size=16",
    "--patch-size=8",
    "--epochs=1",
    "--batch-size=8",
    "--device=cpu",
    "--student=nano",
]


@pytest.fixture
def classifier(random_run):
    return load(random_run, device="cpu")


def same(found, expected) -> None:
    assert [p.label for p in found] == [p.label for p in expected]
    for a, b in zip(found, expected, strict=True):
        assert list(a.probabilities.values()) == pytest.approx(list(b.probabilities.values()), abs=1e-6)


def test_one_image_in_every_form(classifier, image_folder):
    path = image_folder / "cat" / "0.png"
    [expected] = classifier.predict([path])
    assert expected.source == str(path)
    image = Image.open(path)
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [
        path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image, pixels,
        pixels.astype(np.float32) / 255, tensor, tensor.float() / 255, tensor.double() / 255,
    ]  # fmt: skip
    for form in forms:
        same(classifier.predict(form), [expected])
    same(classifier.predict(forms), [expected] * len(forms))
    assert classifier.predict(pixels)[0].source == "image"


def test_many_images_in_every_form(classifier, image_folder):
    paths = sorted((image_folder / "cat").iterdir())
    expected = classifier.predict(paths)
    same(classifier.predict(image_folder / "cat"), expected)
    same(classifier.predict(f"{image_folder}/cat/*.png"), expected)
    same(classifier.predict(path for path in paths), expected)
    square = [Image.open(path).resize((24, 24)) for path in paths]
    batch = np.stack([np.asarray(image) for image in square])
    expected = classifier.predict(square)
    same(classifier.predict(batch), expected)
    same(classifier.predict(torch.from_numpy(batch).permute(0, 3, 1, 2)), expected)
    assert classifier.predict([]) == []


def test_grey_and_transparent_arrays(classifier):
    grey = np.full((20, 30), 200, np.uint8)
    expected = classifier.predict(np.repeat(grey[..., None], 3, 2))
    same(classifier.predict(grey), expected)
    same(classifier.predict(grey[..., None]), expected)
    same(classifier.predict(torch.from_numpy(grey)[None]), expected)
    seen_through = np.concatenate([np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30, 1), np.uint8)], 2)
    same(classifier.predict(seen_through), classifier.predict(np.full((20, 30, 3), 255, np.uint8)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros(7, np.uint8), r"array \(7,\); give \(H, W, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((0, 8, 3), np.uint8), "channels last"),
        (np.zeros((8, 8, 3), np.int64), "int64; give uint8"),
        (np.full((8, 8, 3), 255.0), r"from 255 to 255; give floats in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"give floats in \[0, 1\]"),
        (torch.zeros(8, 8, 3), r"tensor \(8, 8, 3\); give \(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64; give uint8"),
        (7, "cannot classify a int; give a path"),
        ("gone.png", "there is no file gone.png"),
    ],
)
def test_what_is_no_image_is_refused(classifier, wrong, words):
    with pytest.raises(DataError, match=words):
        classifier.predict(wrong)


def test_bytes_that_are_no_image_keep_their_place(classifier, image_folder):
    path = image_folder / "cat" / "0.png"
    found = list(classifier.predict_all([path, b"nothing", path]))
    assert isinstance(found[1], UnreadableImage) and found[0].label == found[2].label
    with pytest.raises(UnreadableImage, match="image: not an image"):
        classifier.predict(b"nothing")


def command(capsys, *arguments) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out, printed.err


def test_predict_reads_stdin(random_run, image_folder, capsys, monkeypatch):
    path = image_folder / "dog" / "1.png"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    out, _ = command(capsys, "predict", random_run, "-", path, "--device=cpu", "--json")
    from_stdin, from_file = json.loads(out)
    assert from_stdin["path"] == "-" and from_stdin["probability"] == from_file["probability"]


def test_predict_reads_a_video_and_a_camera(random_run, tmp_path, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 2, (32, 32))
    for value in (0, 80, 160, 240):
        writer.write(np.full((32, 32, 3), value, np.uint8))
    writer.release()
    out, _ = command(capsys, "predict", random_run, clip, "--device=cpu", "--json")
    assert [row["path"] for row in json.loads(out)] == [f"{clip} at 0.0 s", f"{clip} at 1.0 s"]

    recording = cv2.VideoCapture(str(clip))
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: recording)
    with pytest.raises(SystemExit):  # a recording ends, a camera does not
        cli.main(["predict", str(random_run), "--camera=0", "--device=cpu"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4 and "camera 0 gives no more frames" in printed.err


@pytest.mark.parametrize("arguments", [[], ["a.png", "--camera=0"]])
def test_predict_wants_images_or_a_camera(random_run, arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main(["predict", str(random_run), *arguments])
    assert "give images, folders or video files, or --camera" in capsys.readouterr().err


# Which model


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run with a teacher and a baseline, and its images."""
    from .conftest import write_images

    folder = tmp_path_factory.mktemp("taught")
    images = write_images(folder / "images", ("cat", "dog", "bird"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        with pytest.raises(SystemExit) as ended:
            flags = ["--teacher", timm_file(folder), "--set=teacher.image_size=32", "--baseline", *TRAIN]
            cli.main(["train", str(images), "--out", str(folder / "run"), *flags])
        assert ended.value.code == 0
    return folder / "run", images


def recommend(run, role, monkeypatch) -> None:
    content = json.loads((run / "results.json").read_text()) | {"recommended": role}
    (run / "results.json").write_text(json.dumps(content))


def test_a_teacher_is_loaded_like_a_student(taught):
    run, images = taught
    student, teacher = load(run, "cpu", model="student"), load(run / "teacher", "cpu")
    assert isinstance(student, StudentClassifier) and isinstance(teacher, TeacherClassifier)
    assert teacher.classes == student.classes and teacher.image_size == student.image_size
    same(load(run, "cpu", model="teacher").predict(images), teacher.predict(images))
    same(deitkit.load_teacher(run / "teacher", "cpu").predict(images), teacher.predict(images))
    baseline = load(run, "cpu", model="baseline")
    same(baseline.predict(images), load(run / "baseline", "cpu").predict(images))
    with pytest.raises(DeitkitError, match="only a student merges tokens"):
        load(run / "teacher", merge=1)
    with pytest.raises(RunFolderError, match="holds a fitted teacher and no baseline"):
        model_folder(run / "teacher", "baseline")


def test_the_teacher_at_its_own_sizes(taught, capsys, monkeypatch):
    """It sees the crop that it was trained for, is measured as `eval` measures it, and may be recommended."""
    run, images = taught
    results = read_results(run)
    assert set(results.candidates) == {"teacher-96", "teacher-128", "teacher-160", "teacher-224"}
    for name, found in results.candidates.items():
        size = int(name.removeprefix("teacher-"))
        model = load(run, "cpu", model=name)
        assert model.image_size == found.image_size == (size, size) and model.crop == 0.95
    measured = evaluate_folder(run, images, model="teacher-96").metrics.to_dict()
    assert measured["images"] == 9  # those of training are left out
    assert measured["top1"] == pytest.approx(results.candidates["teacher-96"].scores["top1"])
    recommend(run, "teacher-96", monkeypatch)
    assert model_folder(run, "recommended") == run / "candidates" / "teacher-96"
    _, err = command(capsys, "predict", run, images / "cat", "--device=cpu", "--json")
    assert "candidates/teacher-96, the best model" in err
    page = write_report(run).read_text(encoding="utf-8")
    assert (
        "Teacher at 96 px" in page
        and "Up is more accurate" in page
        and "By the teacher at 96 px, which is recommended" in page
    )
    for name in ("../teacher", "teacher-97", "candidates/teacher-96"):
        with pytest.raises(RunFolderError, match="has no model"):
            model_folder(run, name)


def test_a_model_that_is_not_there_is_refused(random_run):
    for model, words in (("teacher", "keeps no teacher"), ("baseline", "has no baseline")):
        with pytest.raises(RunFolderError, match=words):
            load(random_run, model=model)
    assert model_folder(random_run, "recommended") == random_run  # without results, as in version 0.1


def test_predict_uses_what_is_recommended_and_says_so(taught, capsys, monkeypatch):
    run, images = taught
    arguments = ("predict", run, images / "cat", "--device=cpu", "--json")
    for role in ("teacher", "student", "baseline"):
        recommend(run, role, monkeypatch)
        folder = model_folder(run, "recommended")
        assert folder == (run if role == "student" else run / role)
        out, err = command(capsys, *arguments)
        expected = [p.probability for p in load(folder, "cpu", model="student").predict(images / "cat")]
        assert [row["probability"] for row in json.loads(out)] == pytest.approx(expected, abs=1e-5)
        assert (f"using {folder}" in err) == (role != "student")
    out, err = command(capsys, "predict", run / "baseline", *arguments[2:])  # which has no verdict
    assert [row["probability"] for row in json.loads(out)] == pytest.approx(expected, abs=1e-5)
    out, err = command(capsys, *arguments, "--model=student")
    expected = [p.probability for p in load(run, "cpu", model="student").predict(images / "cat")]
    assert [row["probability"] for row in json.loads(out)] == pytest.approx(expected, abs=1e-5)
    assert "using" not in err
    recommend(run, None, monkeypatch)
    out, err = command(capsys, *arguments)
    assert "warning: no model of" in err and "is recommended" in err and json.loads(out)
    results = read_results(run)
    best = max(model.scores["top1"] for model in results.models.values())
    role = next(
        role
        for role, model in results.models.items()
        if model_folder(run, role) == model_folder(run, "recommended")
    )
    assert results.models[role].scores["top1"] == best
    with pytest.raises(SystemExit):
        cli.main(["predict", str(run), str(images), "--model=best"])
    assert "has no model 'best'; choose student, teacher, baseline, teacher-128" in capsys.readouterr().err


def test_every_verb_takes_a_teacher(taught, tmp_path, capsys):
    run, images = taught
    teacher = run / "teacher"
    out, _ = command(capsys, "eval", teacher, images, "--device=cpu", "--json")
    found, results = json.loads(out), json.loads((run / "results.json").read_text())
    assert found["images"] == results["val"]["images"] and "trained on are left out" in found["notes"][0]
    assert found["top1"] == pytest.approx(results["teacher"]["top1"])
    assert found["intervals"].keys() == {"joint"} and found["interval"] == results["teacher"]["interval"]
    out, _ = command(capsys, "analyze", teacher, images, "--json")
    found = json.loads(out)
    assert found["main"] == "teacher" and found["tokens"] is None and found["attention"] is None
    assert list(found["accuracy"]) == ["teacher"] and (run / "teacher-analysis" / "analysis.html").exists()
    page = (run / "teacher-analysis" / "analysis.html").read_text(encoding="utf-8")
    assert "Where it looks" not in page and "Common corruptions" in page
    with pytest.raises(SystemExit):
        cli.main(["convert", str(teacher), str(tmp_path / "converted"), "--to=timm"])
    assert "holds a fitted teacher, which is no DeiT" in capsys.readouterr().err


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_a_teacher_is_exported_with_its_preprocessing_inside(taught, tmp_path, to, suffix, capsys):
    pytest.importorskip("onnxruntime" if to == "onnx" else "openvino")
    from deitkit.inference.backends import open_file

    run, images = taught
    file = tmp_path / f"teacher{suffix}"
    command(capsys, "export", run, f"--to={to}", "--model=teacher", "--out", file)
    backend = open_file("onnxruntime" if to == "onnx" else "openvino", file)
    teacher = load(run / "teacher", "cpu", backend="pytorch")
    pixels = torch.from_numpy(np.stack([teacher.pixels(p) for p in sorted((images / "cat").iterdir())]))
    probabilities, logits = backend(pixels.float() / 255)
    torch.testing.assert_close(logits, teacher.forward(pixels).class_logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(probabilities, logits.softmax(1), atol=1e-4, rtol=1e-3)
    with pytest.raises(SystemExit):
        cli.main(["export", str(run / "teacher"), f"--to={to}", "--precision=int8", "--out", str(file)])
    assert "int8 is for students" in capsys.readouterr().err


def test_a_teacher_is_benchmarked_in_turns(taught):
    from deitkit.deploy.benchmark import bench

    run, _ = taught
    rows = bench(
        str(run / "teacher"), batches=[2], backends=["pytorch"], device="cpu", rounds=1, seconds=0.01
    )
    [row] = rows
    results = json.loads((run / "results.json").read_text())
    assert row.turns.latency.images_per_s > 0 and row.score == pytest.approx(results["teacher"]["top1"])


def test_a_classifier_is_shown_in_two_lines(random_run):
    classifier = deitkit.load(random_run)
    what, how = repr(classifier).splitlines()
    assert what == "StudentClassifier: 2 classes (cat, dog)"
    assert how == "24 x 16 pixels, pytorch on cpu"
    odd = dataclasses.replace(classifier, classes=("<b>", *"abcdefg"))
    assert repr(odd).startswith("StudentClassifier: 8 classes (<b>, a, b, c, d, e, ...)")
    assert odd._repr_html_().startswith("<b>StudentClassifier: 8 classes (&lt;b&gt;, a")


def test_functions_of_the_package_are_those_of_the_verbs(random_run, image_folder, tmp_path):
    found = deitkit.evaluate(random_run, image_folder)
    assert found.to_dict()["images"] == 24
    assert repr(found).startswith("Evaluation: top-1 ") and repr(found).endswith("on 24 images of 2 classes")
    [prediction, *_] = deitkit.load(random_run).predict(image_folder / "cat")
    assert "probabilities" not in repr(prediction)
    with pytest.raises(DeitkitError, match="parquet"):
        deitkit.export(random_run, "parquet", tmp_path / "x.onnx")
    assert all(callable(getattr(deitkit, name)) for name in deitkit.__all__)
    assert dir(deitkit) == sorted([*deitkit.__all__, "__version__"])
