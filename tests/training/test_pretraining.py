"""Pre-training on unlabelled images: what it writes, and a student that starts from it."""

from __future__ import annotations

import json

import pytest
import torch

import deitkit
from deitkit import cli, weights
from deitkit.errors import DeitkitError
from tests.conftest import write_images

TINY = {
    "student.name": "nano",
    "student.image_size": 16,
    "student.patch_size": 8,
    "teacher.image_size": 32,
    "train.epochs": 1,
    "train.batch_size": 8,
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Pre-trained on two folders, with one file that is no image."""
    root = tmp_path_factory.mktemp("start")
    folders = [write_images(root / name, count=count) for name, count in (("one", 6), ("other", 50))]
    (folders[0] / "broken.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(root / "cache"))
        return deitkit.pretrain(folders, root / "run", **TINY)


def test_it_learns_the_teachers_thousand_classes(start):
    config = json.loads((start.folder / "config.json").read_text())
    assert (config["data"]["train"], config["data"]["val"]) == (110, 2)
    assert len(config["classes"]) == 1000 and config["classes"][0] == "n01440764"  # tench
    assert config["student"]["distilled"] is False
    [line] = map(json.loads, (start.folder / "metrics.jsonl").read_text().splitlines())
    assert line["train"]["class"] == 0 and line["train"]["distill"] > 0 and line["train"]["features"] > 0
    assert line["train"]["loss"] == pytest.approx(line["train"]["distill"] + 16 * line["train"]["features"])


def test_its_results_are_small(start):
    """Without a confusion matrix of a thousand classes, of the student or the teacher."""
    assert (start.folder / "results.json").stat().st_size < 20_000


def test_it_lists_its_images_and_those_left_out(start):
    split, skipped = (
        json.loads((start.folder / f"{name}.json").read_text()) for name in ("split", "skipped")
    )
    assert (len(split["train"]), len(split["val"])) == (111, 2) and "2 held out" in split["how"]
    [(path, reason)] = ((one["path"], one["reason"]) for one in skipped)
    assert path in split["train"] and path.endswith("broken.png") and reason


def test_a_student_starts_from_it(start, image_folder, tmp_path):
    settings = TINY | {"teacher.spec": "none", "student.initial_weights": str(start.folder)}
    run = deitkit.train(image_folder, tmp_path / "run", **settings)
    assert run.results["student"]["top1"] > 0
    begun = weights.read(start.folder)
    trained = weights.read(run.folder)
    key = "blocks.0.attn.qkv.weight"
    assert torch.nn.functional.cosine_similarity(begun[key].flatten(), trained[key].flatten(), dim=0) > 0.99


def test_mistakes_are_refused(image_folder, tmp_path):
    for changes, words in (
        ({"teacher.spec": "none"}, "need a teacher"),
        ({"teacher.spec": "timm:resnet81"}, "did you mean"),
        ({"train.epochs": 0}, "train.epochs is 0; give 1 or more"),
        ({"train.baseline": True}, "does not use train.baseline: a baseline learns from labels alone"),
        ({"data.train_fraction": 0.5}, "all images are used"),
        ({"data.eval_fraction": 0.5}, "2 % of the images, at most 1000, are held out; leave it out"),
        ({"data.val_fraction": 0.5}, "does not use data.val_fraction"),
        ({"data.split": "blocks"}, "does not use data.split:"),
        ({"data.unlabeled": "more"}, "give that folder beside the others"),
        ({"data.unlabeled_share": 0.1}, "does not use data.unlabeled_share"),
        ({"teacher.soft_labels": "labels"}, "the teacher is live"),
        ({"teacher.fit": "probe"}, "the teacher uses its pretrained head"),
        ({"teacher.probe_views": 2}, "does not use teacher.probe_views"),
    ):
        with pytest.raises(DeitkitError, match=words):
            deitkit.pretrain([image_folder], tmp_path / "out", **TINY | changes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeitkitError, match="holds no images"):
        deitkit.pretrain([tmp_path / "empty"], tmp_path / "out", **TINY)


def test_the_command_line_continues_only_with_resume(start, capsys):
    command = ["pretrain", str(start.folder.parent / "one"), "--out", str(start.folder)]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 2 and "add --resume" in capsys.readouterr().err
