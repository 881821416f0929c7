"""The named starting points: documented, true to their sources, and able to train."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

import deitkit
from deitkit import cli, recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_each_says_how_to_run_it_and_what_it_costs(name):
    page = recipes.RECIPES[name].__doc__ or ""
    verb = "pretrain" if name.startswith("pretrain") else "train"
    assert f"Command: deitkit {verb}" in page and "Cost: " in page
    assert recipes.get(name).recipe == name
    if "Paper:" in page:
        assert "Published" in page and "arXiv" in page
    if name not in ("small-data", "pretrain", "pretrain-hybrid"):  # which are the verbs' defaults
        assert f"--recipe {name}" in page


def test_deit_is_table_9_of_the_paper():
    config = recipes.get("deit")
    assert (config.train.epochs, config.train.batch_size, config.train.label_smoothing) == (300, 1024, 0.1)
    optim, augment = config.optim, config.augment
    assert (optim.lr, optim.lr_batch, optim.weight_decay, optim.warmup_epochs) == (5e-4, 512, 0.05, 5)
    assert (augment.randaugment_ops, augment.randaugment_magnitude, augment.randaugment_std) == (2, 9, 0.5)
    assert (augment.mixup, augment.cutmix, augment.erasing) == (0.8, 1.0, 0.25)
    assert config.student.drop_path_rate == 0.1 and config.data.repeats == 3
    assert (config.optim.clip_grad, config.distillation.mode) == (None, "none")


def test_the_distilled_one_differs_in_its_distillation_alone():
    different = recipes.get("deit").differences(recipes.get("deit-distilled"))
    assert different == {"recipe": ("deit", "deit-distilled"), "distillation.mode": ("none", "hard")}
    assert recipes.get("deit-distilled").distillation.alpha == 0.5


@pytest.mark.parametrize("name", ["small-data", "deit-384", "transfer", "finetune"])
def test_what_starts_from_weights_keeps_the_distillation(name):
    config = recipes.get(name)
    assert config.student.initial_weights == "auto" and config.distillation.mode != "none"


def test_the_command_line_tells_two_recipes_apart(capsys):
    cli.app(["recipes", "deit", "deit3"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "optim.name" in shown and "adamw" in shown and "lamb" in shown and "augment.three_augment" in shown
    assert "train.seed" not in shown
    cli.app(["recipes", "deit3"], standalone_mode=False)
    assert '"layer_scale": 0.0001' in capsys.readouterr().out


def test_deit3_trains_and_ships_a_plain_deit(image_folder, tmp_path):
    """LAMB, BCE and 3-Augment at work, and no trace of LayerScale in what is written."""
    run = deitkit.train(
        image_folder,
        tmp_path / "run",
        recipe="deit3",
        student__name="nano",
        student__image_size=16,
        student__patch_size=8,
        train__epochs=2,
        train__batch_size=8,
        train__device="cpu",
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 < lines[-1]["train"]["loss"] < 1  # two classes: BCE starts at log 2
    assert not any("gamma" in key for key in load_file(run.folder / "model.safetensors"))
    assert deitkit.load(run.folder).predict([image_folder / "cat" / "0.png"])[0].label in ("cat", "dog")
