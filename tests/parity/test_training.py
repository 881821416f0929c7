"""The training as timm and the published code define it: groups, rates, optimizer, average, loss."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.optim.lamb import Lamb as TimmLamb
from timm.scheduler import CosineLRScheduler
from timm.task.token_distillation import TokenDistillationTask
from timm.utils import ModelEmaV3

from deitkit.config import DistillationConfig, OptimConfig, TrainConfig
from deitkit.distillation.losses import smooth
from deitkit.distillation.objective import Objective
from deitkit.models.deit import DeiT, create_model
from deitkit.teachers.teacher import TeacherOutput
from deitkit.training.optim import Lamb, parameter_groups
from deitkit.training.schedule import learning_rate
from deitkit.training.state import EMA

from .models import randomise

SHAPE = {"num_classes": 7, "embed_dim": 192, "depth": 2, "num_heads": 3}


def pair(distilled: bool, **changes) -> tuple[DeiT, torch.nn.Module]:
    """Our model and timm's of one small shape, in float64, with the same random weights."""
    ours = DeiT(image_size=(32, 32), patch_size=(16, 16), distilled=distilled, **SHAPE).double()
    randomise(ours)
    name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    theirs = timm.create_model(name, img_size=32, num_classes=7, depth=2, **changes).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("distilled", [True, False], ids=["distilled", "plain"])
def test_weight_decay_groups(distilled):
    """The same tensors without decay: tokens, positions, norms and biases."""
    ours, theirs = pair(distilled)
    mine = parameter_groups([ours], 0.05)
    reference = param_groups_weight_decay(theirs, 0.05, no_weight_decay_list=theirs.no_weight_decay())

    def names(model: torch.nn.Module, groups: list[dict]) -> dict[float, set[str]]:
        known = {p: name for name, p in model.named_parameters()}
        return {g["weight_decay"]: {known[p] for p in g["params"]} for g in groups}

    assert names(ours, mine) == names(theirs, reference)


@pytest.mark.parametrize(("epochs", "per_epoch"), [(300, 7), (30, 40)])
def test_schedule_step_by_step(epochs, per_epoch):
    """timm's cosine stepped per step, its warm-up counted from 1 so that no step gets the floor."""
    config, total, warmup = OptimConfig(), epochs * per_epoch, 5 * per_epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    reference = CosineLRScheduler(
        optimizer,
        t_initial=total - 1 - warmup,
        lr_min=config.min_lr,
        warmup_t=warmup,
        warmup_lr_init=config.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    difference = 0.0
    for step in range(total - 1):  # timm jumps to its floor after the last step, which is our last rate
        mine = learning_rate(
            step, total_steps=total, steps_per_epoch=per_epoch, batch_size=1024, config=config
        )
        [theirs] = reference._get_lr(step + 1 if step < warmup else step)
        difference = max(difference, abs(mine - theirs) / theirs)
    last = learning_rate(
        total - 1, total_steps=total, steps_per_epoch=per_epoch, batch_size=1024, config=config
    )
    print(f"largest relative difference: {difference:.1e}")
    assert difference < 1e-12 and last == pytest.approx(config.min_lr)


@pytest.mark.parametrize("batch_size", [64, 512, 1024, 4096])
def test_peak_rate_is_scaled_by_the_batch(batch_size):
    """lr x batch / 512 (arXiv 2012.12877, table 9)."""
    rates = [
        learning_rate(step, total_steps=1000, steps_per_epoch=10, batch_size=batch_size, config=OptimConfig())
        for step in range(1000)
    ]
    assert max(rates) == pytest.approx(5e-4 * batch_size / 512, rel=1e-12)


def test_lamb_step_by_step():
    ours, theirs = pair(distilled=True)
    mine = Lamb(parameter_groups([ours], 0.05), lr=3e-3, betas=(0.9, 0.999))
    reference = TimmLamb(parameter_groups([theirs], 0.05), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    difference = 0.0
    for scale in (100.0, 1e-4, 1.0, 0.01):  # gradients beyond the largest norm and below it
        for name, p in ours.named_parameters():
            p.grad = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            theirs.get_parameter(name).grad = p.grad.clone()
        mine.step(), reference.step()
        difference = max(
            (p - theirs.get_parameter(name)).abs().max().item() for name, p in ours.named_parameters()
        )
    print(f"largest difference: {difference:.1e}")
    assert difference < 1e-12


def test_average_step_by_step():
    """With the decay that both warm up to; at the start ours follows (1 + n) / (10 + n)."""
    ours, _ = pair(distilled=True)
    mine, reference = EMA(ours, 0.9), ModelEmaV3(ours, decay=0.9)
    for step in range(100, 105):
        with torch.no_grad():
            for p in ours.parameters():
                p.mul_(1.1)
        mine.update(ours, step)
        reference.update(ours)
    averaged = reference.module.state_dict()
    difference = max((mine.weights[k] - averaged[k]).abs().max().item() for k in averaged)
    print(f"largest difference: {difference:.1e}")
    assert difference < 1e-12


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_distillation_loss_and_every_gradient(mode, record_property):
    """timm's task on the same teacher, views and mixed, smoothed targets; relative to the largest entry."""
    ours, theirs = pair(distilled=True)
    teacher = timm.create_model("resnet10t", num_classes=7).double().eval()
    task = TokenDistillationTask(
        theirs,
        teacher,
        criterion=SoftTargetCrossEntropy(),
        distill_type=mode,
        task_loss_weight=0.5,
        temperature=3.0,
        dtype=torch.float64,
        verbose=False,
    ).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    targets = torch.rand(4, 7, generator=generator, dtype=torch.float64)
    targets = targets / targets.sum(1, keepdim=True)
    with torch.no_grad():
        output = TeacherOutput(teacher(images), ())  # both models were published with the same mean and std
    config = DistillationConfig(mode=mode, alpha=0.5, temperature=3.0)
    mine = Objective(config, TrainConfig())(ours.train()(images), targets, output)["loss"]
    reference = task(images, smooth(targets, 0.1).double())["loss"]
    mine.backward(), reference.backward()
    difference = {
        "loss": ((mine - reference) / reference).abs().item(),
        "gradients": max(
            (
                (p.grad - theirs.get_parameter(k).grad).abs().max() / theirs.get_parameter(k).grad.abs().max()
            ).item()
            for k, p in ours.named_parameters()
        ),
    }
    print(difference)
    assert difference["loss"] < 1e-6 and difference["gradients"] < 1e-5  # losses are taken in float32


def test_layer_scale_and_every_gradient():
    """DeiT III's gains, as timm's `init_values` has them."""
    ours = create_model("tiny", num_classes=7, image_size=32, distilled=False, layer_scale=1e-4).double()
    randomise(ours)
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=7, init_values=1e-4).double()

    def timms(name: str) -> str:
        return name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")

    theirs.load_state_dict({timms(k): v for k, v in ours.state_dict().items()})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine, reference = ours(images).class_logits, theirs(images)
    mine.square().sum().backward(), reference.square().sum().backward()
    gradients = {k: theirs.get_parameter(timms(k)).grad for k, _ in ours.named_parameters()}
    difference = {
        "logits": (mine - reference).abs().max().item(),
        "gradients": max(
            ((p.grad - gradients[k]).abs().max() / gradients[k].abs().max()).item()
            for k, p in ours.named_parameters()
        ),
    }
    print(difference)
    assert max(difference.values()) < 1e-10
