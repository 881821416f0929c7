"""A whole study on generated images: its files, going on after a stop, shards, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deitkit.cli import main
from deitkit.errors import DeitkitError, Interrupted
from deitkit.preprocessing import InputSize
from deitkit.study import catalogue, plan, runner
from deitkit.study.description import Arm, Row, Study
from deitkit.study.plan import StudyJob
from deitkit.study.runner import run_study
from deitkit.teachers.spec import open_member, parse
from deitkit.training.labelling import label

from ..conftest import write_images
from .studies import TINY

TWO = Study(
    name="two",
    title="Two arms",
    source="a table",
    sizes=TINY.sizes,
    held=TINY.held,
    arms=TINY.arms[:2],
    rows=TINY.rows[:2],
    claims=TINY.claims[:1],
)


def job(study: Study, data: Path, out: Path, seeds: tuple[int, ...], **more: Any) -> StudyJob:
    return StudyJob(study=study, preset="quick", data=data, out=out, seeds=seeds, **more)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("study") / "images")


@pytest.fixture(scope="module")
def done(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(data.parent / "cache"))
        return run_study(job(TINY, data, data.parent / "done", (0,)))


def runs_of(folder):
    with open(folder / "runs.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_there(done):
    for name in ("study.json", "runs.csv", "summary.md", "summary.json", "figure.svg", "figure.png"):
        assert (done.folder / name).stat().st_size > 0
    assert not list(done.folder.rglob("checkpoints")) and not list(done.folder.rglob("*.part"))
    rows = runs_of(done.folder)
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm.name, "0") for arm in TINY.arms]
    assert "4 of 4 runs are finished" in (done.folder / "summary.md").read_text()


def test_rows_are_what_the_arms_ask_for(done):
    smooth, sharp, fine, peer = runs_of(done.folder)
    assert (smooth["train_images"], peer["train_images"]) == ("12", "6")
    assert (smooth["epochs"], fine["epochs"]) == ("2", "2")
    assert (smooth["image_size"], fine["image_size"]) == ("16", "24")
    assert int(peer["params"]) > 4e6 > int(smooth["params"]) == int(sharp["params"])
    assert all(0 <= float(row["top1"]) <= 100 and row["val_images"] == "6" for row in (smooth, fine, peer))


def test_a_convnet_can_teach_afterwards(done):
    weights = done.folder / "runs" / "peer" / "seed-0" / "model.safetensors"
    convnet = open_member(parse(f"timm:resnet10t@{weights}")[0], InputSize())
    assert convnet.head is not None and convnet.outputs is None


def test_one_seed_claims_nothing(done):
    assert done.finding.startswith("Nothing can be claimed")
    assert json.loads((done.folder / "summary.json").read_text())["finding"] == done.finding


def test_finished_runs_are_passed_over(done, data, monkeypatch):
    monkeypatch.setattr(runner, "_train", lambda run: pytest.fail(f"{run.arm.name} was made again"))
    again = run_study(job(TINY, data, done.folder, (0,)))
    assert again.finding == done.finding


def test_goes_on_after_a_stop(done, data, tmp_path, monkeypatch):
    train, trained = runner._train, []

    def stopped(run):
        trained.append(run.arm.name)
        if len(trained) == 2:
            raise Interrupted
        train(run)

    monkeypatch.setattr(runner, "_train", stopped)
    with pytest.raises(Interrupted):
        run_study(job(TWO, data, tmp_path / "s", (0,)))
    run_study(job(TWO, data, tmp_path / "s", (0,)))
    assert trained == ["smooth", "sharp", "sharp"]
    for kept, again in zip(runs_of(done.folder)[:2], runs_of(tmp_path / "s"), strict=True):
        assert kept["top1"] == again["top1"]


def test_shards_make_the_whole(data, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "_train", lambda run: made.append((run.arm.name, run.seed)))
    for part in (1, 2):
        run_study(job(TWO, data, tmp_path / "s", (0, 1)), shard=(part, 2))
    assert sorted(made) == [("sharp", 0), ("sharp", 1), ("smooth", 0), ("smooth", 1)]


def test_an_arm_without_its_teacher_is_left_out(data, tmp_path, monkeypatch):
    arms = (
        Arm(name="taught", settings={"distillation.mode": "hard", "teacher.spec": "timm:resnet18@none.pth"}),
        Arm(name="after", starts_from="taught"),
    )
    rows = tuple(Row(name=arm.name, arm=arm.name) for arm in arms)
    study = Study(name="s", title="S", source="x", sizes=TWO.sizes, arms=arms, rows=rows, claims=())
    monkeypatch.setattr(runner, "_train", lambda run: pytest.fail("it has no teacher"))
    sizes = {"student.image_size": 16, "student.patch_size": 8}
    run_study(job(study, data, tmp_path / "s", (0,), settings=sizes))
    page = (tmp_path / "s" / "summary.md").read_text()
    assert "Left out: taught" in page and "none.pth" in page and "needs the arm 'taught'" in page


def test_one_pass_of_a_teacher_serves_all_that_share_its_views(data, tmp_path, monkeypatch):
    """And their students are those of a teacher that answers each of them."""
    held = {
        **TINY.held,
        "distillation.mode": "hard",
        "teacher.spec": "python:tests.teachers.models:mean_colour",
    }
    arms = (
        Arm(name="hard"),
        Arm(name="longer", epochs=2.0),
        Arm(name="soft", settings={"distillation.mode": "soft"}),
    )
    rows = tuple(Row(name=arm.name, arm=arm.name) for arm in arms)
    study = Study(
        name="s", title="S", source="x", sizes=TINY.sizes, held=held, arms=arms, rows=rows, claims=()
    )
    passes = []

    def counted(*arguments, **settings):
        passes.append(settings["epochs"])
        return label(*arguments, **settings)

    monkeypatch.setattr(runner, "label", counted)
    run_study(job(study, data, tmp_path / "stored", (0,)))
    assert passes == [4]
    monkeypatch.setattr(plan, "share_soft_labels", lambda runs, out: runs)
    run_study(job(study, data, tmp_path / "live", (0,)))
    assert passes == [4]
    for arm in ("hard", "longer", "soft"):
        stored, live = (
            load_file(tmp_path / side / "runs" / arm / "seed-0" / "model.safetensors")
            for side in ("stored", "live")
        )
        rounding = 1e-5 if arm == "soft" else 0  # of a stored probability; a weight went some thousandths
        for name in live:
            torch.testing.assert_close(stored[name], live[name], rtol=0, atol=rounding)


def test_another_study_in_the_folder(done, data, tmp_path):
    with pytest.raises(DeitkitError, match="holds a study whose study was tiny"):
        run_study(job(TWO, data, done.folder, (0,)))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "letter.txt").write_text("x")
    with pytest.raises(DeitkitError, match="holds no study"):
        run_study(job(TWO, data, tmp_path / "s", (0,)))


def test_command_line(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(catalogue.STUDIES, "two", TWO)
    arguments = ["study", "two", str(data), "--out", str(tmp_path / "s"), "--seeds", "0"]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--dry-run"])
    shown = capsys.readouterr().out
    assert "deitkit train" in shown and "train.label_smoothing=0.0" in shown and "2 runs, about" in shown
    assert not (tmp_path / "s").exists()
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--set", "train.epochs=1"])
    assert "Nothing can be claimed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["two"], "give DATA and --out"),
        (["tow", "d", "--out", "o"], "did you mean 'two'"),
        (["two", "d", "--out", "o", "--seeds", "0,0"], "no seeds"),
        (["two", "d", "--out", "o", "--shard", "3"], "no shard"),
        (["two", "d", "--out", "o", "--set", "x"], "has no value"),
        (["two", "nowhere", "--out", "o"], "there is no folder"),
    ],
)
def test_mistakes(arguments, said, capsys, monkeypatch):
    monkeypatch.setitem(catalogue.STUDIES, "two", TWO)
    with pytest.raises(SystemExit, match="2"):
        main(["study", *arguments])
    assert said in capsys.readouterr().err


def test_list(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["study", "list"])
    assert len(capsys.readouterr().out.splitlines()) == len(catalogue.STUDIES) >= 9
