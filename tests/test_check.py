"""`deitkit check` on folders with planted faults, its lists given to `train`, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import deitkit
from deitkit.cli import main as command_line
from deitkit.run_folder import read_duplicates

from .conftest import TINY, write_images, write_labelled
from .data.test_near_duplicates import jpeg, scene
from .teachers.models import timm_file
from .test_bad_input import main, refusal


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of 20 scenes, with val/; one image of val/ is one of train/, saved again."""
    for s, split in enumerate(("train", "val")):
        for k, name in enumerate(("a", "b")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(20 if split == "train" else 5):
                scene(1000 * s + 100 * k + i).save(tmp_path / "data" / split / name / f"{i:02}.png")
    jpeg(scene(3), 60).save(tmp_path / "data" / "val" / "b" / "again.jpg")
    return tmp_path / "data"


def status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command_line([str(a) for a in arguments])
    return int(stop.value.code or 0)


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def test_a_leak_is_found_and_listed(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert status("check", data, "--out", out, "--strict") == 1
    printed = capsys.readouterr().out
    assert "1 image outside training looks the same as a training image" in printed
    assert "groups with several labels: 1" in printed
    [row] = rows(out / "duplicates.csv")
    assert row == {
        "path": "val/b/again.jpg",
        "label": "b",
        "split": "val",
        "same_as": "train/a/03.png",
        "exact": "False",
    }
    found = json.loads((out / "check.json").read_text(encoding="utf-8"))
    assert found["leaking"] == ["val/b/again.jpg"] and found["wrong_labels"] is None
    assert found["classes"] == {"a": {"train": 20, "val": 5}, "b": {"train": 20, "val": 6}}
    assert found["sizes"]["width"] == {"min": 160, "median": 160, "max": 160} and found["modes"] == {
        "RGB": 51
    }
    page = (out / "check.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 2 and "http" not in page.split("</style>")[1]
    # The list as it is keeps the image out, and then there is no leak.
    assert status("check", data, "--strict", "--exclude", out / "duplicates.csv") == 0


def test_json_and_a_second_time_into_the_same_folder(data, tmp_path, capsys):
    main(["check", str(data), "--json", "--out", str(tmp_path / "out")])
    first = json.loads(capsys.readouterr().out)
    main(["check", str(data), "--json", "--out", str(tmp_path / "out")])
    assert json.loads(capsys.readouterr().out) == first
    assert deitkit.check(data).to_dict() == first | {"data": str(data)}


def test_few_and_unreadable_images_are_problems(tmp_path, capsys):
    data = write_images(tmp_path / "data", count=25)
    assert status("check", data, "--strict") == 0
    (data / "cat" / "broken.png").write_bytes(b"x")
    for i in range(10):
        (data / "dog" / f"{i}.png").unlink()
    found = deitkit.check(data)
    assert found.unreadable[0][0] == "cat/broken.png" and found.few == ("dog",)
    assert "1 file cannot be read: cat/broken.png (" in repr(found)
    assert status("check", data) == 0 and status("check", data, "--strict") == 1
    page = tmp_path / "out" / "check.html"
    main(["check", str(data), "--out", str(page.parent)])
    assert "cat/broken.png" in page.read_text(encoding="utf-8")


def test_names_are_escaped_in_the_page(tmp_path):
    data = write_images(tmp_path / "data", ("<script>cat", "dog"), count=4)
    shutil.copy(data / "dog" / "0.png", data / "<script>cat" / "<b>.png")
    main(["check", str(data), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;cat" in page


def test_multilabel_images(tmp_path, capsys):
    data = write_labelled(tmp_path / "data")
    main(["check", str(data), "--json", "--out", str(tmp_path / "out")])
    assert json.loads(capsys.readouterr().out)["task"] == "multilabel"
    assert "one class per image" in refusal(capsys, "check", data, "--labels")


def test_labels_by_a_teacher(tmp_path, capsys):
    pytest.importorskip("cleanlab")
    data = write_images(tmp_path / "data", count=30)
    for i in range(3):
        (data / "cat" / f"{i}.png").rename(data / "dog" / f"wrong-{i}.png")
    teacher, out = timm_file(tmp_path), tmp_path / "out"
    size = "--set=teacher.image_size=32"
    main(["check", str(data), "--labels", "--teacher", teacher, size, "--out", str(out), "--device=cpu"])
    found = rows(out / "wrong-labels.csv")
    assert {f"dog/wrong-{i}.png" for i in range(3)} <= {row["path"] for row in found}
    assert {(row["given"], row["label"]) for row in found if "wrong" in row["path"]} == {("dog", "cat")}
    assert "looks like <b>cat</b>" in (out / "check.html").read_text(encoding="utf-8")
    relabelled = deitkit.check(data, data__relabel=str(out / "wrong-labels.csv"))
    assert relabelled.class_counts["cat"]["train"] + relabelled.class_counts["cat"]["val"] >= 30


def test_labels_without_cleanlab(image_folder, tmp_path, capsys, monkeypatch):
    """Said before the images are looked at."""
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    teacher = timm_file(tmp_path)
    assert "deitkit[check]" in refusal(capsys, "check", tmp_path / "none", "--labels", "--teacher", teacher)
    assert "cannot read the teacher" in refusal(capsys, "check", image_folder, "--labels", "--teacher=x:y")


def test_labels_without_a_teacher(image_folder, capsys):
    pytest.importorskip("cleanlab")
    assert "none" in refusal(capsys, "check", image_folder, "--labels", "--teacher=none")


def test_what_is_refused(image_folder, tmp_path, capsys):
    assert "there is no folder" in refusal(capsys, "check", tmp_path / "none")
    assert "lies inside" in refusal(capsys, "check", image_folder, "--out", image_folder / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    assert "is not empty" in refusal(capsys, "check", image_folder, "--out", tmp_path / "full")
    assert "no regular expression" in refusal(capsys, "check", image_folder, "--group-by", "(")
    assert "no table with such a column" in refusal(capsys, "check", image_folder, "--group-by", "day")
    for path in image_folder.glob("*/*.png"):
        path.write_bytes(b"x")
    assert "no image in" in refusal(capsys, "check", image_folder)


def test_train_warns_of_leaks_and_says_so_in_its_report(data, tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", str(data), "--out", str(run), *TINY, "--epochs=1"])
    warning = "1 of 11 validation images look the same as a training image"
    told = capsys.readouterr().err
    assert warning in told and "% of the 1 validation images that look the same as a training image" in told
    found = read_duplicates(run)
    assert (found.groups, found.images, found.conflicting, found.leaking_val) == (1, 2, 1, 1)
    assert found.top1_leaking in (0, 100) and 0 <= found.top1_others <= 100
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "Images that look the same" in report and "The student is right on" in report
    assert "Groups with several labels: 1" in report


def test_train_with_groups_and_corrections(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deitkit.training.run.duplicates_of", lambda *_: pytest.fail("looked twice"))
    images = data / "train"
    jpeg(Image.open(images / "a" / "03.png"), 60).save(images / "a" / "again.jpg")
    relabel, exclude = tmp_path / "relabel.csv", tmp_path / "exclude.csv"
    relabel.write_text("path,label\na/05.png,b\n")
    exclude.write_text("path\nb/07.png\n")
    flags = ["--group-by=auto", f"--relabel={relabel}", f"--exclude={exclude}"]
    run = tmp_path / "run"
    main(["train", str(images), "--out", str(run), *TINY, "--epochs=1", *flags])
    assert "look the same as a training image" not in capsys.readouterr().err
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    listed = {*split["train"], *split["val"]}
    assert "b/07.png" not in listed and len(listed) == 40
    assert ("a/03.png" in split["train"]) == ("a/again.jpg" in split["train"])
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))["data"]
    assert (settings["group"], settings["relabel"]) == ("auto", str(relabel))
