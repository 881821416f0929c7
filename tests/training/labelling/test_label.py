"""`deitkit label`: soft labels are appended to, never mixed, and refused if no run could use them."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file, save_file

import deitkit
from deitkit import DeitkitError
from tests.training.labelling.conftest import EPOCHS, VIEWS, label, shards, teacher_settings, train


def test_appending_gives_the_same_soft_labels(stage, tmp_path, soft):
    label(stage, tmp_path / "grown", epochs=1)
    deitkit.label(
        stage / "images", tmp_path / "grown", epochs=EPOCHS
    )  # the other settings come from the manifest
    assert shards(tmp_path / "grown") == shards(soft)


def test_fewer_epochs_leave_all_there(stage, soft):
    before = shards(soft)
    assert label(stage, soft, epochs=1).epochs() == EPOCHS
    assert shards(soft) == before


def test_a_teacher_inside_out_is_not_overwritten(stage, tmp_path):
    write = tmp_path / "work" / "teacher"
    write.mkdir(parents=True)
    (write / "teacher.json").write_text("{}")
    with pytest.raises(DeitkitError, match="lies inside --out"):
        deitkit.label(stage / "images", tmp_path / "work", epochs=1, **VIEWS | {"teacher.spec": str(write)})
    assert (write / "teacher.json").exists()


def test_soft_labels_that_no_epoch_would_use_are_refused(stage, tmp_path):
    with pytest.raises(DeitkitError, match="no soft label would be read"):
        label(stage, tmp_path / "labels", **{"distillation.distill_until": 0})


def test_the_same_command_may_be_given_again(stage, tmp_path):
    as_typed = VIEWS | {"train.batch_size": 1024, "student.image_size": "auto"}
    for _ in range(2):
        store = deitkit.label(
            stage / "images", tmp_path / "labels", epochs=1, **as_typed | teacher_settings(stage)
        )
    assert store.epochs() == 1 and store.manifest.config.train.batch_size < 1024


def test_start_size_needs_a_live_teacher(stage, tmp_path, soft):
    settings = VIEWS | {"train.start_size": 8, "student.patch_size": 8}
    with pytest.raises(DeitkitError, match=r"train\.start_size needs a live teacher"):
        train(stage, tmp_path / "stored", **{"teacher.soft_labels": str(soft), "train.start_size": 8})
    with pytest.raises(DeitkitError, match=r"train\.start_size needs a live teacher"):
        deitkit.label(stage / "images", tmp_path / "labels", epochs=1, **settings | teacher_settings(stage))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train.seed": 1}, "train.seed 0, and 1"),
        ({"recipe": "deit-distilled", "student.image_size": 16}, "augment.crop_scale"),
        ({"hard": True}, "top-3 soft labels, and hard"),
        ({"top_k": 2}, "top-3 soft labels, and top-2"),
        ({"top_k": 2, "hard": True}, "give one of them"),
        ({"teacher.spec": "none"}, "teacher.spec timm:.*, and none"),
    ],
)
def test_labels_are_not_mixed(stage, soft, more, words):
    before = shards(soft)
    with pytest.raises(DeitkitError, match=words):
        deitkit.label(stage / "images", soft, epochs=EPOCHS + 1, **more)
    assert shards(soft) == before


def test_another_teacher_in_the_folder_is_refused(stage, tmp_path, soft):
    shutil.copytree(soft, tmp_path / "labels")
    head = load_file(tmp_path / "labels" / "teacher" / "teacher.safetensors")
    changed = {k: v + 1 for k, v in head.items()}
    save_file(changed, tmp_path / "labels" / "teacher" / "teacher.safetensors")
    with pytest.raises(DeitkitError, match="is not the one"):
        deitkit.label(stage / "images", tmp_path / "labels", epochs=EPOCHS + 1)


def test_labels_need_a_teacher(stage, tmp_path):
    for settings in ({"teacher.spec": "none"}, {"distillation.mode": "none"}):
        with pytest.raises(DeitkitError, match="need a live teacher"):
            deitkit.label(stage / "images", tmp_path / "labels", epochs=1, **settings)


def test_a_folder_with_other_files_is_left_alone(stage, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DeitkitError, match="is not empty"):
        label(stage, tmp_path)
    with pytest.raises(DeitkitError, match="is a file"):
        label(stage, tmp_path / "thesis.txt")
