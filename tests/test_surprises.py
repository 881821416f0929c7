"""What surprises users of the published DeiT training code, each with a test of the behaviour here.

The table in docs/fidelity.md lists all twelve; some are tested where their piece is.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deitkit
from deitkit import recipes
from deitkit.config import DistillationConfig, OptimConfig, ResolvedConfig, TrainConfig
from deitkit.data.loader import TrainingViews
from deitkit.data.sampler import Sampler
from deitkit.distillation.objective import Objective
from deitkit.errors import DeitkitError
from deitkit.inference.backends import PyTorchBackend
from deitkit.models.deit import DeiT, DeiTOutput, create_model
from deitkit.preprocessing import Normalised, Preprocessing
from deitkit.teachers.sources.timm_model import TimmBackbone
from deitkit.teachers.teacher import MemberCard, TeacherMember, TeacherOutput
from deitkit.training import student_training as job
from deitkit.training.optim import parameter_groups
from deitkit.training.resolve import create_student
from deitkit.training.schedule import learning_rate
from deitkit.training.step_inputs import TrainingData
from deitkit.training.trainer import Trainer, Validation

from .conftest import write_images

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "fidelity.md"


def table() -> dict[int, list[tuple[Path, str]]]:
    """The tests that docs/fidelity.md names for each surprise, as (file, function)."""
    rows = re.findall(r"^\| (\d+) \|(.+)\|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        int(number): [(TESTS / file, name) for file, name in re.findall(r"`tests/(\S+)::(\w+)`", row)]
        for number, row in rows
    }


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_table_names_tests_that_exist():
    rows = table()
    assert sorted(rows) == list(range(1, 13)) and all(rows.values())
    for file, name in itertools.chain(*rows.values()):
        assert name in functions(file)


def test_every_test_of_this_file_stands_in_the_table():
    listed = {name for file, name in itertools.chain(*table().values()) if file == Path(__file__)}
    own = {name for name in functions(Path(__file__)) if name.startswith("test_")}
    about_the_table = {name for name in own if "the_table" in name}
    assert listed == own - about_the_table


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> deitkit.Run:
    """The published recipe on eleven classes of two training images each, in batches of five views."""
    folder = tmp_path_factory.mktemp("surprises")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        return deitkit.train(
            write_images(folder / "data", CLASSES, count=3),
            folder / "run",
            recipe="deit",
            student__name="nano",
            student__image_size=16,
            student__patch_size=8,
            train__batch_size=5,
            train__epochs=2,
            train__device="cpu",
            optim__ema_decay=0.5,
        )


CLASSES = tuple(f"class {k:02}" for k in range(11))


def a_batch(model: DeiT, classes: int) -> tuple[DeiTOutput, torch.Tensor, TeacherOutput]:
    images = torch.randn(4, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    return model(images), torch.eye(classes)[:4], TeacherOutput(torch.randn(4, classes), ())


def small_config(**changes) -> ResolvedConfig:
    sizes = {"student.image_size": 16, "student.patch_size": 8, "train.micro_batch_size": 4}
    chosen = {"train.loss": "cross-entropy", "train.balance": "none", "train.metric": "top1"}
    config = replace(recipes.get("deit"), distillation=DistillationConfig(mode="hard")).override(
        {"student.name": "nano", "data.workers": 0} | chosen | sizes | changes
    )
    return ResolvedConfig.of(config)


def test_both_heads_learn_while_fine_tuning_to_other_classes(tmp_path):
    """Published: distillation while fine-tuning raises NotImplementedError."""
    save_file(
        create_model("nano", num_classes=7, image_size=16, patch_size=8).state_dict(),
        tmp_path / "a.safetensors",
    )
    model, _ = create_student(small_config(**{"student.initial_weights": str(tmp_path / "a.safetensors")}), 5)
    objective = Objective(DistillationConfig(mode="hard"), TrainConfig())
    objective(*a_batch(model, 5))["loss"].backward()
    for learnt in (model.head.weight, model.head_dist.weight, model.cls_token, model.dist_token):
        assert learnt.grad.abs().max() > 0


def test_fine_tuning_without_a_teacher_leaves_no_random_head(tmp_path):
    """Published: only the class head is trained, and evaluation averages in the other, which is random."""
    save_file(
        create_model("nano", num_classes=7, image_size=16, patch_size=8).state_dict(),
        tmp_path / "a.safetensors",
    )
    changes = {"student.initial_weights": str(tmp_path / "a.safetensors"), "distillation.mode": "none"}
    model, _ = create_student(small_config(**changes), 5)
    assert model.head_dist is None and model(torch.zeros(1, 3, 16, 16)).distill_logits is None


def test_the_rate_rises_from_the_first_update_on():
    """Published: epochs 0 and 1 both run at the floor of the warm-up, since it steps after the epoch."""
    config = OptimConfig()
    rates = [
        learning_rate(step, total_steps=3000, steps_per_epoch=10, batch_size=1024, config=config)
        for step in range(60)
    ]
    assert rates[0] > config.warmup_lr and all(b > a for a, b in itertools.pairwise(rates[:50]))
    assert np.mean(rates[10:20]) > 2 * np.mean(rates[:10])
    assert rates[49] == pytest.approx(1e-3)  # five epochs of warm-up end at the peak


def test_there_is_no_cool_down_that_does_nothing():
    """Published: --cooldown-epochs has no effect."""
    with pytest.raises(DeitkitError, match=r"no setting 'optim\.cooldown_epochs'"):
        recipes.get("deit").override({"optim.cooldown_epochs": 10})


def test_averaged_weights_are_measured_and_kept_where_better(run):
    """Published: the average is saved and never evaluated, and the best is picked among raw weights."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(("val_ema" in line) == ("val" in line) for line in lines)
    better = "val_ema" if lines[-1]["val_ema"]["loss"] <= lines[-1]["val"]["loss"] else "val"
    assert run.results["weights"] == {"val_ema": "ema", "val": "raw"}[better]
    assert run.results["student"]["top1"] == lines[-1][better]["top1"]


@pytest.mark.parametrize("better", ["raw", "ema"])
def test_the_better_weights_are_kept_whichever_they_are(better, tmp_path):
    """As above, each way round: losses are made up, one for each set of weights."""
    config = small_config(
        **{"student.initial_weights": "none", "distillation.mode": "none", "optim.ema_decay": 0.5}
    )
    model, _ = create_student(config, 2)
    average = {k: torch.full_like(v, 7) for k, v in model.state_dict().items()}
    raw = {k: v.clone() for k, v in model.state_dict().items()}
    views = TrainingViews(None, np.arange(4) % 2, 2, config.augment, (16, 16), torch.device("cpu"))
    trainer = Trainer(
        model,
        Objective(config.distillation, config.train),
        TrainingData(views, Sampler(4, batch_size=4), workers=0, paths=()),
        Validation(evaluate=None, num_images=4),
        train=config.train,
        optim=config.optim,
        folder=tmp_path,
    )
    trainer.state.ema.weights.update(average)

    measured = {"val": {"loss": 1.0 + (better == "ema")}, "val_ema": {"loss": 1.0 + (better == "raw")}}
    trainer.state.metrics.append(measured)
    assert job.keep_better_weights(trainer) == better
    kept = {"raw": raw, "ema": average}[better]
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_the_distillation_token_does_not_decay():
    """Published: dist_token decays, cls_token and pos_embed do not."""
    model = create_model("nano", num_classes=5, image_size=16, patch_size=8)
    decaying, kept = parameter_groups([model], 0.05)
    assert kept["weight_decay"] == 0 and decaying["weight_decay"] == 0.05
    for token in (model.dist_token, model.cls_token, model.pos_embed):
        assert any(p is token for p in kept["params"]) and not any(p is token for p in decaying["params"])


def test_the_teacher_has_its_own_size_normalisation_and_head():
    """Published: the teacher must have the data's classes, and sees the student's size and normalisation."""
    import timm

    seen: list[torch.Tensor] = []
    cnn = timm.create_model("resnet10t", num_classes=0)
    first = cnn.conv1[0] if isinstance(cnn.conv1, torch.nn.Sequential) else cnn.conv1
    first.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    view = Preprocessing((64, 64), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    backend = PyTorchBackend(Normalised(TimmBackbone(cnn), view.mean, view.std), torch.device("cpu"))
    card = MemberCard("", "", 1.0, view, "linear", None, "", 0, (128, 256), False, "pytorch")
    logits, *_ = TeacherMember(card, backend, torch.nn.Linear(512, 3))(torch.full((2, 3, 16, 16), 0.6))
    assert logits.shape == (2, 3)  # the user's classes
    assert seen[0].shape[-2:] == (64, 64)
    torch.testing.assert_close(seen[0].amax((0, 2, 3)), torch.tensor([0.5, 1.0, 1.5]))


def test_the_teacher_stays_frozen_while_the_student_trains():
    """timm: the teacher is a part of the task, whose train() reaches it."""
    import timm

    network = Normalised(TimmBackbone(timm.create_model("resnet10t", num_classes=0)), (0,) * 3, (1,) * 3)
    backend = PyTorchBackend(network, torch.device("cpu"))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    student = create_model("nano", num_classes=3, image_size=16, patch_size=8)
    student.train()
    backend(torch.rand(2, 3, 32, 32))
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_float16_is_never_asked_for(tmp_path, monkeypatch):
    """Published: float16 autocast is always on; here a GPU takes bfloat16, and everything else float32."""
    asked = []

    class Recorded(torch.autocast):
        def __init__(self, device_type, dtype=None, enabled=True, **rest):
            asked.append((device_type, dtype, enabled))
            super().__init__(device_type, dtype=dtype, enabled=enabled, **rest)

    monkeypatch.setattr(torch, "autocast", Recorded)
    deitkit.train(
        write_images(tmp_path / "data", ("a", "b"), count=4),
        tmp_path / "run",
        recipe="deit",
        student__name="nano",
        student__image_size=16,
        student__patch_size=8,
        train__epochs=1,
        train__device="cpu",
    )
    assert ("cpu", torch.bfloat16, False) in asked
    assert not any(enabled or dtype == torch.float16 for _, dtype, enabled in asked)
    assert {t.dtype for t in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float32}


def test_odd_batches_and_few_images_train(run):
    """Published: mixup needs an even batch, drop_last is always on, and few images give no batch at all."""
    assert run.results["train"]["images"] == 2 * 24  # an epoch: three views of every third of 22 images
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["train"]["loss"]) for line in lines)


def test_the_number_of_classes_is_the_folders(run):
    """Published: the 1000 classes of ImageNet stand in the code."""
    assert deitkit.load(run.folder).classes == CLASSES
    assert load_file(run.folder / "model.safetensors")["head.weight"].shape[0] == 11


def test_nothing_in_a_run_is_pickled(run):
    """Published: checkpoints pickle the argument namespace."""
    for path in (p for p in run.folder.rglob("*") if p.is_file()):
        assert not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), f"{path} looks like a pickle"
