"""Every file of a run folder is read or refused with a sentence, whatever happened to it."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deitkit import run_folder
from deitkit.errors import RunFolderError
from deitkit.io import parse_json, write_json, write_tensors
from deitkit.run_schema import (
    Comparison,
    Difference,
    ModelResult,
    RunResults,
    Speedup,
    TrainingResult,
    ValResult,
)

from .damage import damage

V01 = Path(__file__).parent / "golden" / "v01" / "finished"
MUTATIONS = 200


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of version 0.1, with a baseline."""
    folder = tmp_path / "run"
    shutil.copytree(V01, folder)
    weights = gzip.decompress((folder / "model.safetensors.gz").read_bytes())
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")


# Version 0.1


def test_a_run_of_version_0_1_is_read(run):
    info = run_folder.read_info(run)
    assert (info.task, info.classes) == ("multiclass", ("bird", "cat", "dog"))
    assert info.config is not None and info.config.student.init_scheme == "structured"
    assert info.config == run_folder.read_config(run)
    assert info.data is not None and (info.data.train, info.data.val) == (36, 12)
    assert info.teacher is not None and info.teacher.name == "test_efficientnet"
    assert run_folder.read_plan(run).epochs == 6
    split = run_folder.read_split(run)
    assert split is not None and (len(split.train), len(split.val)) == (36, 12)
    assert run_folder.read_skipped(run) == []
    assert [line.epoch for line in run_folder.read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    rows = run_folder.read_predictions(run)
    assert sorted(row["path"] for row in rows) == sorted(split.val)
    model, again = run_folder.read_student(run)
    assert again == info and model.num_params == info.student.params


def test_results_of_version_0_1_call_the_baseline_control(run):
    student = json.loads((run / "results.json").read_text())["student"]
    change(run / "results.json", lambda results: results.update(control=student | {"top1": 12.5}))
    results = run_folder.read_results(run)
    assert results.task == "multiclass" and results.baseline is not None
    assert results.baseline.scores["top1"] == 12.5 and results.student.scores["top1_distill"] > 60
    (run / "control").mkdir()
    assert run_folder.baseline_folder(run) == run / "control"
    (run / "baseline").mkdir()
    assert run_folder.baseline_folder(run) == run / "baseline"


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_results_are_read_as_they_were_written(run, task):
    scores = {"top1": 90.0, "top1_distill": None, "balanced_accuracy": 88.0}
    by_class = {"confusion": ((9, 1), (0, 10))}
    if task == "multilabel":
        scores, by_class = {"map": 80.0, "map_distill": None}, {"per_class": ({"images": 4.0, "ap": None},)}
    student = ModelResult(name="nano", params=1, images_per_s=9.0, interval=(1.0, 2.0), scores=scores)
    speedup = Speedup(value=2.0, low=1.0, high=3.0)
    difference = Difference(value=-1.0, low=-3.0, high=1.0, images=40)
    results = RunResults(
        task=task,
        student=replace(student, images_per_s_range=(8.0, 10.0), balanced_interval=(3.0, 4.0)),
        teacher=replace(student, folder="labels/teacher", how="probe"),
        baseline=replace(student, test={"images": 3.0}, **by_class),
        train=TrainingResult(epochs=1, seconds=2.0, images_per_s=3.0),
        val=ValResult(images=40),
        weights="ema",
        recommended="teacher",
        comparison=Comparison(
            metric="top1" if task == "multiclass" else "map",
            differences={"student-teacher": difference},
            speedup=speedup,
        ),
        **by_class,
    )
    content = json.loads(json.dumps(run_folder.results_to_json(results)))
    assert content["student"]["interval"] == [1.0, 2.0] and "scores" not in content["student"]
    (run / "results.json").write_text(json.dumps(content))
    assert run_folder.read_results(run) == results
    again = run_folder.model_from_json(run_folder.model_to_json(student), run)
    assert again == student


# Damage


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": run_folder.read_student,
    "settings.json": run_folder.read_config,
    "plan.json": run_folder.read_plan,
    "split.json": run_folder.read_split,
    "skipped.json": run_folder.read_skipped,
    "duplicates.json": run_folder.read_duplicates,
    "calibration.json": run_folder.read_calibration,
    "metrics.jsonl": run_folder.read_metrics,
    "predictions.csv": run_folder.read_predictions,
    "results.json": run_folder.read_results,
    "model.safetensors": run_folder.read_student,
}


MAY_LACK = {"split.json", "duplicates.json", "calibration.json", "metrics.jsonl"}


def complete(run: Path) -> None:
    """Writes what a run of version 0.1 does not have, and fills what is empty."""
    write_json(run / "skipped.json", [{"path": f"{name}.png", "reason": "cut off"} for name in "ab"])
    counts = ("groups", "images", "exact", "conflicting", "leaking_val", "leaking_test")
    write_json(run / "duplicates.json", dict.fromkeys(counts, 2))
    probabilities = {"head_temperatures": {"class": 1.1}, "true_probabilities": [0.5, 0.75]}
    write_json(run / "calibration.json", {"images": 60, "temperature": 1.5, "nll": 0.4} | probabilities)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_with_a_sentence(run, name):
    path, rng = run / name, random.Random(name)
    complete(run)
    whole, refused = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(whole)
        damage(path, rng)
        try:
            READERS[name](run)
        except RunFolderError as error:
            refused += 1
            sentence = str(error)
            assert re.search(r"(; |and give )", sentence) and "\n" not in sentence, sentence
            assert str(run) in sentence and len(sentence) < 500, sentence
    assert refused > MUTATIONS / 10


@pytest.mark.parametrize("name", sorted(READERS.keys() - MAY_LACK))
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(RunFolderError, match="holds no finished run"):
        READERS[name](run)


def test_what_a_run_may_lack(run):
    (run / "split.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert run_folder.read_split(run) is None and run_folder.read_metrics(run) == []


def test_a_line_that_was_being_written_is_dropped(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 7, "tr')
    assert len(run_folder.read_metrics(run)) == 6


def test_a_name_of_two_lines_is_quoted_on_one(run):
    path = run / "metrics.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(line | {"val": {"two\nlines": False}}) + "\n")
    with pytest.raises(RunFolderError, match=r"val\.two lines is false, not a number") as refusal:
        run_folder.read_metrics(run)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda c: c["student"].update(depth="x"), 'student.depth is "x", not an integer'),
        (lambda c: c["student"].update(depth=7), "are of different models"),
        (lambda c: c["student"].update(num_heads=3), "not a multiple of student.num_heads"),
        (lambda c: c["student"].update(image_size=[10**9, 16]), "not a size in pixels"),
        (lambda c: c["preprocessing"].update(std=[0.2, 0.2, 0]), "preprocessing.std is"),
        (lambda c: c["preprocessing"].update(crop=0), "preprocessing.crop is 0"),
        (lambda c: c["preprocessing"].update(interpolation="x"), "preprocessing.interpolation is 'x'"),
        (lambda c: c.update(classes=["bird", 2]), r"classes\[1\] is 2, not a string"),
        (lambda c: c.update(task="x"), "task is \"x\", not one of 'multiclass', 'multilabel'"),
        (lambda c: c["config"]["train"].update(epochs="many"), "'train.epochs' cannot be 'many'"),
        (lambda c: c.pop("student"), "a model of another project"),
    ],
)
def test_a_wrong_value_is_named(run, edit, sentence):
    change(run / "config.json", edit)
    with pytest.raises(RunFolderError, match=sentence):
        run_folder.read_student(run)


def test_a_shape_of_another_model_allocates_nothing(run):
    change(run / "config.json", lambda c: c["student"].update(embed_dim=4 * 2**28, num_heads=1))
    with pytest.raises(RunFolderError, match="are of different models"):
        run_folder.read_student(run)


# Files


@dataclass(frozen=True)
class Example:
    """A dataclass as a file holds it."""

    size: tuple[int, int]
    name: str = "n"
    parts: dict[str, list[float]] | None = None


def test_json_becomes_dataclasses():
    found = parse_json(Example, {"size": [1, 2], "parts": {"a": [1, 2.5]}})
    assert found == Example((1, 2), parts={"a": [1.0, 2.5]})
    assert parse_json(Example, {"size": [1, 2], "unknown": 3}, lenient=True) == Example((1, 2))
    for value, sentence in (
        ({}, "size is missing"),
        ({"size": [1]}, r"size is \[1\], not a list of 2 values"),
        ({"size": [1, True]}, r"size\[1\] is true, not an integer"),
        ({"size": [1, 2], "name": None}, "name is null, not a string"),
        ({"size": [1, 2], "parts": {"a": ["b"]}}, r'parts.a\[0\] is "b", not a number'),
        ([], r"the content is \[\], not an object"),
        ({"size": [1, 2], "more": 3}, "the content has an unknown entry 'more'"),
        ({"size": [1, 2], "parts": {"a": [math.inf]}}, r"parts.a\[0\] is Infinity, not a number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            parse_json(Example, value)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_usual_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
        np.save(tmp_path / "plain.npy", np.zeros(2))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes
