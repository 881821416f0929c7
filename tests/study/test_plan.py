"""Plans: settings of arms, shares of shards, and studies that fit into their half hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitkit import recipes
from deitkit.config import Config
from deitkit.errors import DeitkitError
from deitkit.study import catalogue, plan
from deitkit.study.cost import imagenet_cost
from deitkit.study.plan import DataSize, StudyJob, command_of, plan_runs
from deitkit.study.runner import share_of

from .studies import TINY


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder holds more images than a preset uses."""
    monkeypatch.setattr(plan, "_count", lambda folder, config: DataSize(folder, 50_000, 10_000, 10))


def planned(study, preset: str = "quick", **more):
    return plan_runs(StudyJob(study=study, preset=preset, data=Path("data"), out=Path("out"), **more))


@pytest.mark.parametrize("name", catalogue.STUDIES)
@pytest.mark.parametrize("preset", ["quick", "standard"])
def test_half_an_hour(large, name, preset):
    runs = planned(catalogue.get(name), preset, target=Path("other") if name == "transfer" else None)
    assert 600 < sum(run.seconds for run in runs) <= 1800
    assert {run.seed for run in runs} == {0, 1, 2}
    assert len({run.config.data.split_seed for run in runs}) == 1


@pytest.mark.parametrize("name", catalogue.STUDIES)
def test_every_claim_can_be_decided_at_every_size(name):
    study = catalogue.get(name)
    for preset in study.sizes:
        assert study.claims_of(preset)


@pytest.mark.parametrize("name", catalogue.STUDIES)
def test_arms_differ_by_more_than_their_names(large, name):
    study = catalogue.get(name)
    for preset in study.sizes:
        runs = planned(study, preset, seeds=(0,), target=Path("other") if name == "transfer" else None)
        kinds = [(run.config, run.data, run.arm.convnet) for run in runs]
        assert all(kinds.index(kind) == i for i, kind in enumerate(kinds))


def test_published_settings(large):
    runs = {run.arm.name: run.config for run in planned(catalogue.get("distillation"), "full", seeds=(0,))}
    deit = recipes.get("deit-distilled").override(
        {
            "student.name": "base",
            "teacher.spec": "timm:regnety_160.deit_in1k",
            "teacher.deploy_sizes": None,  # of no interest to a study
        }
    )
    assert runs["token"] == deit
    assert runs["soft"].distillation.alpha == 0.1 and runs["soft"].distillation.token == "class"
    assert runs["none"].teacher.spec == "none"


def test_factors_of_an_arm(large):
    runs = {run.arm.name: run.config for run in planned(TINY, seeds=(4,))}
    assert runs["smooth"].data.train_fraction == pytest.approx(12 / 50_000)
    assert runs["peer"].data.train_fraction == pytest.approx(6 / 50_000)
    assert runs["smooth"].data.eval_fraction == pytest.approx(0.1)
    assert runs["fine"].student.image_size == (24, 24)
    assert runs["fine"].student.initial_weights == str(Path("out/runs/smooth/seed-4"))
    assert runs["smooth"].train.epochs == 2
    assert runs["sharp"].train.label_smoothing == 0.0


def test_an_arm_without_a_teacher_has_no_unlabelled_images(large):
    runs = planned(catalogue.get("losses"), settings={"data.unlabeled": "more"}, seeds=(0,))
    assert {run.config.distillation.mode != "none": run.config.data.unlabeled for run in runs} == {
        True: "more",
        False: None,
    }


def test_a_student_that_starts_from_another_has_fewer_epochs(large):
    runs = planned(catalogue.get("transfer"), target=Path("other"), seeds=(0,))
    epochs = {run.arm.name: run.config.train.epochs for run in runs}
    assert (epochs["scratch"], epochs["trained-plain"], epochs["plain-plain"]) == (12, 12, 9)


def test_settings_over_what_is_held(large):
    runs = planned(TINY, settings={"train.epochs": "5", "data.eval_fraction": "0.5"}, seeds=(0,))
    assert runs[0].config.train.epochs == 5 and runs[0].config.data.eval_fraction == 0.5


@pytest.mark.parametrize(
    ("key", "said"), [("train.label_smoothing", "varies"), ("train.seed", "--seeds"), ("optim.lr", "varies")]
)
def test_settings_that_a_study_varies(large, key, said):
    with pytest.raises(DeitkitError, match=said):
        planned(TINY, settings={key: "0.1"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("student.name", "auto", "no student 'auto'; choose nano, nano-hybrid, tiny"),
        ("student.name", "tinny", "no student 'tinny'"),
        ("student.image_size", "auto", "give student.image_size in pixels"),
        ("student.patch_size", None, "give student.patch_size in pixels"),
        ("student.patch_size", 0, r"student.patch_size is \[0, 0\]; give 1 or more"),
    ],
)
def test_a_student_is_named_with_its_sizes(large, key, value, said):
    with pytest.raises(DeitkitError, match=said):
        planned(TINY, settings={key: value})


def test_target_is_asked_for_where_it_is_needed(large):
    with pytest.raises(DeitkitError, match="add --target"):
        planned(catalogue.get("transfer"))
    with pytest.raises(DeitkitError, match="takes no --target"):
        planned(TINY, target=Path("other"))


def test_names_that_do_not_exist(large):
    with pytest.raises(DeitkitError, match="'losses'"):
        catalogue.get("loses")
    with pytest.raises(DeitkitError, match="no preset"):
        planned(TINY, "tiny")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards(large, count):
    runs = planned(TINY)
    shares = [share_of(runs, i + 1, count) for i in range(count)]
    assert sorted(runs.index(run) for share in shares for run in share) == list(range(len(runs)))
    for share in shares:
        for i, run in enumerate(share):  # what a run needs comes before it, in the same share
            before = {(other.arm.name, other.seed) for other in share[:i]}
            assert {(name, run.seed) for name in run.arm.needs} <= before
    loads = [sum(run.seconds for run in share) for share in shares]
    assert max(loads) - min(loads) <= max(loads) / 2
    with pytest.raises(DeitkitError, match="no shard"):
        share_of(runs, count + 1, count)


def test_runs_share_the_soft_labels_of_the_same_views(large):
    runs = {run.arm.name: run for run in planned(catalogue.get("losses"), seeds=(0, 1))}
    assert runs.pop("none").soft_labels is None
    [shared] = {run.soft_labels for run in runs.values()}
    assert shared.folder == Path("out/soft-labels/hard/seed-1")
    assert (shared.epochs, shared.top_k) == (runs["hard"].config.train.epochs, 10)
    lengths = {run.arm.name: run for run in planned(catalogue.get("epochs"), seeds=(0,))}
    assert lengths["distilled-short"].soft_labels == lengths["distilled-long"].soft_labels
    assert lengths["distilled-short"].soft_labels.epochs == lengths["distilled-long"].config.train.epochs
    assert lengths["distilled-short"].soft_labels.top_k is None  # all of them take hard ones


@pytest.mark.parametrize("name", ["teachers", "data", "ablation"])
def test_other_views_or_teachers_share_nothing(large, name):
    assert {run.soft_labels for run in planned(catalogue.get(name))} == {None}


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        ({"distillation.feature_weight": 1}, 10),
        ({"train.start_size": 32}, 10),
        ({"teacher.spec": "none"}, 10),
        ({}, 101),
    ],
)
def test_what_no_store_can_serve_has_a_live_teacher(monkeypatch, settings, classes):
    monkeypatch.setattr(plan, "_count", lambda folder, config: DataSize(folder, 5000, 1000, classes))
    assert {run.soft_labels for run in planned(catalogue.get("losses"), settings=settings)} == {None}


def test_runs_that_share_soft_labels_are_in_one_shard(large):
    runs = planned(catalogue.get("losses"))
    for i in range(4):
        mine = share_of(runs, i + 1, 4)
        seeds = [run.seed for run in mine if run.soft_labels]
        assert len(set(seeds)) <= 1 and len(seeds) in (0, 6)


def test_command_makes_the_same_run(large):
    run = planned(TINY, seeds=(3,))[2]
    words = command_of(run)
    changes = dict(word.split("=", 1) for word in words if "=" in word)
    assert words[:2] == ["deitkit", "train"]
    assert recipes.get(words[words.index("--recipe") + 1]).override(changes) == run.config
    assert Config.from_dict(run.config.to_dict()) == run.config


def test_imagenet_cost():
    one, eight = imagenet_cost(0.5, 500, epochs=300, gpus=(1, 8), scaling=0.5)
    assert one["hours"] == pytest.approx(1_281_167 * 300 / 1000 / 3600)
    assert eight["images_per_s"] == pytest.approx(4000)
    assert eight["gpu_hours"] == pytest.approx(2 * one["gpu_hours"])
