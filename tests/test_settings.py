"""Every setting is declared with its allowed values, and a value outside them is refused before any work."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest

import deitkit
from deitkit import DeitkitError, cli, recipes
from deitkit.config import OF_THIS_CALL, RENAMED, Config, ResolvedConfig, describe_settings, flatten
from deitkit.errors import SettingError
from deitkit.keywords import Keywords
from deitkit.recipes import RECIPES
from deitkit.settings import AUTO, Range
from deitkit.training import run
from deitkit.training.session import open_session

from .write_keywords import FILE, keywords


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes_the_checks(name):
    RECIPES[name]().check()


# Refused beside the data or the other settings that they depend on, or free.
_CHECKED_ELSEWHERE = {"data.val_fraction", "train.start_share", "teacher.mean"}


def test_every_number_has_a_range():
    """A new setting that is a number cannot be forgotten."""
    numbers = {
        f"{section}.{field.name}"
        for section, group in get_type_hints(Config).items()
        if dataclasses.is_dataclass(group)
        for field in dataclasses.fields(group)
        if {"int", "float"} & set(re.findall(r"\w+", str(field.type)))
    }
    ranged = {
        f"{section}.{field.name}"
        for section, group in get_type_hints(Config).items()
        if dataclasses.is_dataclass(group)
        for field in dataclasses.fields(group)
        if isinstance(field.metadata["allowed"], Range)
    }
    assert ranged | _CHECKED_ELSEWHERE == numbers <= set(flatten(Config().to_dict()))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("student.patch_drop_rate", 1.0, "is 1.0; give a share from 0 up to, but not including, 1"),
        ("student.patch_drop_rate", -0.1, "is -0.1"),
        ("student.drop_path_rate", float("nan"), "is nan"),
        ("student.image_size", 0, r"is \[0, 0\]; give 1 or more"),
        ("train.epochs", 0, "is 0; give 1 or more"),
        ("data.repeats", 0, "is 0; give 1 or more"),
        ("student.patch_size", 0, r"is \[0, 0\]; give 1 or more"),
        ("distillation.feature_until", 1.5, "is 1.5; give a share from 0 to 1"),
        ("distillation.distill_until", float("nan"), "is nan"),
        ("train.patience", 0, "is 0; give 1 or more"),
        ("train.seed", -1, "a whole number from 0"),
        ("train.seed", 2**32, "a whole number from 0"),
        ("data.split_seed", -1, "a whole number from 0"),
        ("data.train_fraction", 0.0, "is 0.0; give a share above 0, up to 1"),
        ("data.unlabeled_share", 1.0, "is 1.0; give a share above 0 and below 1"),
        ("data.cache_gb", float("inf"), "give 0 or more"),
        ("data.eval_crop", 0.0, "give more than 0"),
        ("data.workers", -1, "give 0 or more"),
        ("data.max_broken", 1.5, "is 1.5; give a share from 0 to 1"),
        ("data.max_pixels", 0, "is 0; give 1 or more"),
        ("optim.lr", -1e-3, "give 0 or more"),
        ("optim.weight_decay", -0.1, "give 0 or more"),
        ("train.budget_s", -5.0, "give more than 0"),
        ("train.start_size", 0, r"is \[0, 0\]; give 1 or more"),
        ("teacher.std", (0.5, 0.0, 0.5), "give more than 0"),
        ("student.layer_scale", float("nan"), "give more than 0"),
        ("augment.color_jitter", -1.0, "give 0 or more"),
    ],
)
def test_a_number_out_of_its_range(key, value, words):
    with pytest.raises(DeitkitError, match=f"{key} {words}" if words.startswith("is") else words):
        open_session(Config().override({key: value}), lambda data: pytest.fail("a folder was read"))


@pytest.mark.parametrize(("alpha", "head"), [(0.0, "distillation"), (1.0, "class")])
def test_no_head_is_left_untrained(alpha, head):
    config = RECIPES["small-data"]().override({"distillation.alpha": alpha})
    with pytest.raises(DeitkitError, match=f"leave the {head} head at its random values"):
        config.check()
    config.override({"distillation.token": "class"}).check()
    config.override({"distillation.mode": "none"}).check()


def test_momentum_of_zero():
    with pytest.raises(DeitkitError, match="takes its momentum"):
        Config().override({"optim.name": "sgd", "optim.betas": "0,0.9"}).check()


def test_the_defaults_are_the_recipe_small_data():
    assert recipes.get("small-data") == Config()


def test_keywords_for_type_checkers_are_those_of_the_settings():
    assert FILE.read_text(encoding="utf-8") == keywords(), "run python -m tests.write_keywords"
    named = {key.replace("__", ".") for key in get_type_hints(Keywords)}
    assert named == {setting.key for setting in describe_settings()}


@pytest.mark.parametrize(
    ("keyword", "meant"), [("train__epochz", "train.epochs"), ("epochs", "train.epochs"), ("lr", "optim.lr")]
)
def test_an_unknown_keyword_names_the_nearest(tmp_path, keyword, meant):
    with pytest.raises(SettingError, match=f"did you mean '{meant}'"):
        deitkit.train(tmp_path, tmp_path / "run", **{keyword: 3})


def test_check_reports_every_mistake_at_once():
    config = Config().override({"optim.lr": -1, "train.epochs": 0, "distillation.alpha": 1})
    with pytest.raises(SettingError) as refused:
        config.check()
    alpha, *ranges = sorted(str(refused.value).splitlines())
    assert "distillation.alpha 1 would leave the class head" in alpha
    assert ranges == ["optim.lr is -1.0; give 0 or more", "train.epochs is 0; give 1 or more"]


def test_override_reports_every_mistake_at_once():
    changes = {"optim.learning_rate": 1, "train.epochs": "many", "train.sed": 1, "train.seed": 2}
    with pytest.raises(SettingError) as refused:
        Config().override(changes)
    first, second, third = str(refused.value).splitlines()
    assert "there is no setting 'optim.learning_rate'" in first
    assert "setting 'train.epochs' cannot be 'many'" in second
    assert "did you mean 'train.seed'" in third


def test_auto_is_a_value_and_none_another():
    config = Config().override({"teacher.image_size": "auto", "optim.clip_grad": "none"})
    assert config.teacher.image_size == AUTO and config.optim.clip_grad is None
    with pytest.raises(SettingError, match=r"optim\.clip_grad"):
        Config().override({"optim.clip_grad": "auto"})
    assert Config().override({"train.epochs": None}).train.epochs == AUTO  # as version 0.1 wrote "auto"


class Stop(Exception):
    """In place of a training."""


@pytest.fixture
def asked(monkeypatch) -> list[Config]:
    """The settings that `train` would run with; it ends there."""
    found: list[Config] = []

    def stop(data: Path, out: Path, config: Config, **rest: object) -> None:
        found.append(config)
        raise Stop

    monkeypatch.setattr(run, "train_config", stop)
    return found


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_of_settings_work_and_warn(old, new):
    values = {"student.init_scheme": "published", "train.baseline": True}
    value = values.get(new, "none" if new == "student.initial_weights" else 1)
    with pytest.warns(FutureWarning, match=f"the setting {old} is now called {new}") as warned:
        config = Config().override({old: value})
    assert len(warned) == 1 and config == Config().override({new: value})


def test_train_takes_old_names(asked, tmp_path):
    told = pytest.warns(FutureWarning, match=r"train\.control is now called train\.baseline")
    with told as warned, pytest.raises(Stop):
        deitkit.train(tmp_path, tmp_path / "run", train__control=True)
    assert [config.train.baseline for config in asked] == [True]
    assert [warning.filename for warning in warned] == [__file__]  # the caller's line


def test_old_names_of_soft_labels_fix_the_views_as_well(asked, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "open_soft_labels", lambda folder: pytest.fail(f"opened {folder}"))
    for settings in ({"teacher__labels": "a store"}, {"teacher.labels": "a store"}):
        with pytest.warns(FutureWarning), pytest.raises(pytest.fail.Exception, match="opened a store"):
            deitkit.train(tmp_path, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--set=train.control=true", "the setting train.control is now called train.baseline"),
        ("--control", "--control is now called --baseline"),
        ("--baseline", None),
    ],
)
def test_the_command_line_takes_old_names(asked, capsys, recwarn, given, line):
    with pytest.raises(Stop):
        cli.main(["train", "data", "--out", "run", given])
    assert [config.train.baseline for config in asked] == [True]
    expected = [f"warning: {line}"] if line else []
    assert capsys.readouterr().err.splitlines() == expected
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_the_old_flag_of_soft_labels(monkeypatch, capsys):
    monkeypatch.setattr(run, "open_soft_labels", lambda folder: pytest.fail(f"opened {folder}"))
    with pytest.raises(pytest.fail.Exception, match="opened a store"):
        cli.main(["train", "data", "--out", "run", "--labels", "a store"])
    assert capsys.readouterr().err == "warning: --labels is now called --soft-labels\n"


def test_old_flags_are_hidden(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "--baseline" in shown and "--control" not in shown and " --labels" not in shown


def test_pretrain_refuses_old_names_too(tmp_path):
    with pytest.warns(FutureWarning), pytest.raises(SettingError, match=r"does not use train\.baseline"):
        deitkit.pretrain([tmp_path], tmp_path / "run", train__control=True)


CHOSEN = {
    "student.name": "nano",
    "student.image_size": 32,
    "student.patch_size": 8,
    "data.workers": 0,
    "train.epochs": 3,
    "train.micro_batch_size": 8,
    "train.loss": "bce",
    "train.balance": "sampler",
    "train.metric": "balanced",
}


def test_a_resolved_config_has_no_auto_left():
    resolved = ResolvedConfig.of(Config().override(CHOSEN), "because of a test")
    assert resolved.reasons == "because of a test"
    assert resolved.to_dict() == Config().override(CHOSEN).to_dict()
    assert ResolvedConfig.read(resolved.to_dict()) == resolved
    resolved.check()
    left = [key for key, value in flatten(resolved.to_dict()).items() if value == AUTO]
    # Initial weights are found when the run folder is claimed; the teacher's are measured when it is fitted.
    settled_later = {"student.initial_weights", "train.device"}
    assert all(key in settled_later or key.startswith("teacher.") for key in left)


def test_views_have_the_students_size_if_nothing_is_chosen():
    resolved = ResolvedConfig.of(Config().override(CHOSEN))
    assert resolved.view_size == resolved.student.image_size == (32, 32)
    larger = ResolvedConfig.of(Config().override(CHOSEN | {"augment.view_size": (16, 48)}))
    assert larger.view_size == (32, 48)


@pytest.mark.parametrize("key", sorted(CHOSEN))
def test_a_resolved_config_refuses_auto(key):
    with pytest.raises(SettingError, match=rf"{key} is auto"):
        ResolvedConfig.of(Config().override(CHOSEN | {key: "auto"}))


def test_settings_are_described():
    described = describe_settings()
    assert {each.key for each in described} == {*flatten(Config().to_dict()), *OF_THIS_CALL} - {"recipe"}
    assert all(each.help.endswith(".") for each in described)
    by_key = {each.key: each for each in described}
    assert by_key["optim.lr"].default == 1e-3 and by_key["optim.lr"].allowed == "0 or more"
    assert by_key["optim.name"].allowed == "one of adamw, lamb, sgd"
    assert by_key["data.split"].allowed == "one of stratified, blocks"
    assert by_key["distillation.mode"].allowed == "one of none, soft, hard, dist"
