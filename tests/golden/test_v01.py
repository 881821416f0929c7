"""What version 0.1 wrote is read: a finished run, a stopped one, stored labels, a packed start.

write_v01.py says how the folders in v01/ came about. Weights are compared bit for bit in the environment that
they were written in, and roughly elsewhere.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import deitkit

from . import record

V01 = Path(__file__).with_name("v01")
EXPECTED = json.loads((V01 / "expected.json").read_text(encoding="utf-8"))
START = "--init=start/nano.safetensors"
TRAIN = ["train", "pictures", *record.STUDENT, *record.TEACHER, START, "--epochs=6"]
# An update moves a weight by the learning rate, 1e-3 at most, whatever rounding made of a small gradient.
ROUGHLY = 2e-2


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> record.Stage:
    """The pictures and the teacher, with the folders of version 0.1 beside them."""
    stage = record.Stage.build(tmp_path_factory.mktemp("v01"))
    for path in sorted(V01.rglob("*")):
        copy = stage.folder / path.relative_to(V01)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif path.suffix == ".gz":
            copy.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        elif path.name == "manifest.json" or path.suffix != ".json":
            shutil.copyfile(path, copy)  # the labels name the hash of their manifest
        else:
            text = path.read_text(encoding="utf-8")
            copy.write_text(text.replace("/data/", f"{stage.folder.as_posix()}/"), encoding="utf-8")
    return stage


@pytest.fixture(scope="module")
def same_environment() -> bool:
    return record.environment() == EXPECTED["environment"]


def assert_alike(found, expected) -> None:
    assert not list(record.differences({"onnx": expected}, {"onnx": found}))


def test_finished_run_predicts(stage):
    assert_alike(stage.predict("finished", "more", "--top=3"), EXPECTED["predict"])
    assert_alike(stage.evaluate("finished", "pictures"), EXPECTED["eval"])


def test_finished_run_is_loaded(stage):
    [expected, *_] = EXPECTED["predict"]
    [found] = deitkit.load(stage.folder / "finished", "cpu").predict([stage.folder / expected["path"]])
    assert found.label == expected["label"]
    assert found.probability == pytest.approx(expected["probability"], abs=1e-4)


def test_fitted_teacher_predicts(stage):
    assert_alike(stage.predict("finished/teacher", "more", "--top=3"), EXPECTED["predict_teacher"])


@pytest.mark.slow
def test_finished_run_starts_another(stage):
    run = [*record.STUDENT, "--teacher=finished/teacher", "--init=finished", "--epochs=1"]
    stage.deitkit("train", "pictures", "--out=next", *run, "--set=teacher.backend=pytorch")
    assert (stage.folder / "next" / "model.safetensors").exists()


def test_stopped_run_goes_on(stage, same_environment):
    stage.deitkit(*TRAIN, "--out=interrupted", "--resume")
    if same_environment:
        assert stage.hash_of("interrupted/model.safetensors") == EXPECTED["finished"]
    lines = (stage.folder / "interrupted" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 7))
    found, expected = (
        load_file(stage.folder / run / "model.safetensors") for run in ("interrupted", "finished")
    )
    assert found.keys() == expected.keys()
    assert all((found[key] - expected[key]).abs().max() < ROUGHLY for key in expected)


def test_stopped_run_refuses_other_settings(stage):
    with pytest.raises(RuntimeError, match="cannot resume"):
        stage.deitkit(*TRAIN, "--out=interrupted", "--resume", "--set=optim.lr=0.5")


def test_stored_labels_are_read(stage, same_environment):
    stored = ["--labels=labels", START, "--patch-size=8", "--device=cpu"]
    stage.deitkit("train", "pictures", *stored, "--out=from-labels")
    if same_environment:
        assert stage.hash_of("from-labels/model.safetensors") == EXPECTED["from_labels"]


@pytest.mark.slow
def test_packed_start_is_read(stage, same_environment):
    run = [*record.STUDENT, "--teacher=none", START, "--epochs=2"]
    stage.deitkit("train", "pictures", *run, "--out=begun")
    if same_environment:
        assert stage.hash_of("begun/model.safetensors") == EXPECTED["from_start"]
