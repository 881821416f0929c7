"""The loop on a small student under a made-up teacher: what each step sees, and when a run ends."""

from __future__ import annotations

import itertools
import json
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.optim.adam as adam
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from deitkit.config import (
    AugmentConfig,
    Config,
    DistillationConfig,
    OptimConfig,
    ResolvedConfig,
    StudentConfig,
)
from deitkit.data.cache import PixelStore
from deitkit.data.loader import SideStreams, TrainingViews, ViewBatch
from deitkit.data.sampler import Sampler
from deitkit.distillation.class_balance import NO_ADJUSTMENT, Adjustment
from deitkit.distillation.objective import Objective
from deitkit.errors import DeitkitError, Interrupted, TrainingError
from deitkit.inference.device import be_deterministic
from deitkit.models.deit import create_model
from deitkit.preprocessing import normalise
from deitkit.teachers.teacher import TeacherOutput
from deitkit.training import trainer as loop
from deitkit.training.budget import Budget, plan
from deitkit.training.step_inputs import TrainingData
from deitkit.training.trainer import Trainer, Validation

CPU = torch.device("cpu")
PIXELS = np.random.RandomState(0).randint(0, 256, (12, 3, 36, 36), np.uint8)
EPOCHS = 5  # of three steps each
SAVING = {
    "student.initial_weights": "a run",  # so the feature projections are initialised by regression
    "student.drop_path_rate": 0.5,
    "student.patch_drop_rate": 0.5,
    "train.start_size": 16,
    "train.start_share": 0.6,
    "train.patience": 100,
    "distillation.feature_weight": 2.0,
    "distillation.feature_until": 0.4,
}


class MadeUpTeacher:
    """A pure function of the views; remembers their sizes."""

    card = SimpleNamespace(map_channels=(3, 3))

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, views: Tensor) -> TeacherOutput:
        self.sizes.append(tuple(views.shape[-2:]))
        with torch.inference_mode():  # as a backend
            return TeacherOutput(views.mean((2, 3)), (views[..., ::4, ::4] + 0, views[..., ::8, ::8] + 0))


class Steps:
    """A callback that keeps what it is told, and fails at a step."""

    def __init__(self, until: int = 10_000):
        self.until, self.done, self.lines = until, 0, []

    def on_step(self, step: int, images: int) -> None:
        self.done = step
        if step == self.until:
            raise RuntimeError("power failure")

    def on_epoch(self, line: dict) -> None:
        self.lines.append(line)


def trainer(
    folder: Path,
    settings: dict,
    losses: list[float] | None = None,
    num_unlabeled: int = 0,
    deadline: float | None = None,
    device: torch.device = CPU,
    adjustment: Adjustment = NO_ADJUSTMENT,
) -> Trainer:
    """A new trainer. losses: of the averaged weights, one per evaluation; num_unlabeled: of 12 images."""
    folder.mkdir(exist_ok=True)
    base = {"train.batch_size": 4, "train.micro_batch_size": 3, "train.loss": "cross-entropy"}
    base |= {"student.name": "nano", "student.image_size": 32, "student.patch_size": 8}
    base |= {"data.workers": 0, "train.epochs": EPOCHS, "train.balance": "none", "train.metric": "top1"}
    plain = Config(student=StudentConfig(), distillation=DistillationConfig(), optim=OptimConfig(lr=0.1))
    config = ResolvedConfig.of(plain.override(base | settings))
    student = config.student
    torch.manual_seed(0)
    model = create_model(
        "nano",
        num_classes=3,
        image_size=32,
        patch_size=8,
        drop_path_rate=student.drop_path_rate,
        patch_drop_rate=student.patch_drop_rate,
    ).to(device)
    store = PixelStore(np.ones(12, np.float32), lambda rows: PIXELS[rows], np.arange(12))
    views = TrainingViews(store, np.arange(12) % 3, 3, AugmentConfig(), (32, 32), device)
    measured = [0]

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        measured[0] += 1
        given = losses is not None
        weight = float(model.state_dict()["head.weight"].double().sum())
        return {"loss": losses[(measured[0] - 1) // 2] if given else weight}

    sampler = Sampler(
        12 - num_unlabeled,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        num_unlabeled=num_unlabeled,
        unlabeled_share=config.data.unlabeled_share,
    )
    return Trainer(
        model,
        Objective(config.distillation, config.train, teacher=MadeUpTeacher(), adjustment=adjustment),
        TrainingData(views, sampler, config.data.workers, [f"{i}.png" for i in range(12)]),
        Validation(evaluate, num_images=0),
        train=config.train,
        optim=config.optim,
        folder=folder,
        init_features=student.initial_weights != "none",
        deadline=deadline,
    )


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_teacher_sees_the_smaller_views_and_runs_only_if_it_is_used(tmp_path):
    run = trainer(tmp_path, SAVING | {"distillation.alpha": 0.0})
    seen: list[int] = []
    run.student.register_forward_hook(lambda model, inputs, output: seen.append(inputs[0].shape[-1]))
    run.run([Steps()])
    # Three batches to initialise the feature projections, then fifteen steps: nine at 16 pixels, six of
    # them with feature distillation. Two micro-batches each.
    assert seen == [16] * (6 + 18) + [32] * 12
    assert run.objective.teacher.sizes == [(16, 16)] * (6 + 12)


def test_initialised_projections_fit_the_student_at_any_seed(tmp_path):
    def first_error(seed: int, init: str) -> float:
        settings = {"distillation.feature_weight": 2.0, "train.seed": seed, "student.initial_weights": init}
        run = trainer(tmp_path / f"{seed}-{init}", settings)
        before = [p.detach().clone() for p in run.student.parameters()]
        run.init_feature_projections()
        assert all(torch.equal(p, q) for p, q in zip(run.student.parameters(), before, strict=True))
        batch, teacher_outputs = next(iter(run.inputs.prepared(0)))
        return run.step(batch, teacher_outputs)["features"]

    for seed in range(3):
        # From scratch they stay random.
        assert first_error(seed, "a run") < 0.8 * first_error(seed, "none")


def test_feature_distillation_stops_and_its_projections_rest(tmp_path):
    run = trainer(tmp_path, SAVING)
    kept: list[list[Tensor]] = []
    parts: list[set[str]] = []
    for step, (batch, teacher_outputs) in enumerate(b for e in range(EPOCHS) for b in run.inputs.prepared(e)):
        assert run.state.step == step
        parts.append(set(run.step(batch, teacher_outputs)))
        kept.append([p.detach().clone() for p in run.state.features.parameters()])
    assert [("features" in p) for p in parts] == [True] * 6 + [False] * 9
    assert all("distill" in p for p in parts)  # the teacher's logits still count
    moved = [
        any(not torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in itertools.pairwise(kept)
    ]
    assert moved == [True] * 5 + [False] * 9


def test_the_teacher_does_not_run_once_distillation_stops(tmp_path):
    run = trainer(tmp_path, SAVING | {"distillation.distill_until": 0.6})
    run.run([Steps()])
    # Two micro-batches each of 9 steps of 15, and of the 3 that the projections are fitted on.
    assert len(run.objective.teacher.sizes) == 2 * (9 + 3)
    last = lines(tmp_path)[-1]["train"]
    assert set(last) == {"loss", "class", "distill"}


def test_unlabelled_images_leave_with_the_teacher(tmp_path):
    run = trainer(tmp_path, SAVING | {"distillation.distill_until": 0.6}, num_unlabeled=4)
    assert run.steps_per_epoch == len(run.inputs.plan(0))
    batches = [batch for epoch in range(EPOCHS) for batch in run.inputs.plan(epoch)]
    distilled = round(0.6 * len(batches))
    assert all((batch.indices >= 8).any() for batch in batches[:distilled])
    assert all((batch.indices < 8).all() for batch in batches[distilled:])
    drawn = [len(batch.indices) for batch in batches]
    before = [run.inputs.views_before(step) for step in range(len(drawn) + 1)]
    assert before == [0, *itertools.accumulate(drawn)]
    kept = np.concatenate([batch.indices for batch in batches[-run.steps_per_epoch :]])
    assert sorted(kept) == list(range(8))  # every labelled image still


def test_a_part_that_ends_within_an_epoch_is_averaged_over_its_own_steps(tmp_path):
    run = trainer(tmp_path, SAVING | {"distillation.feature_until": 7 / 15})
    parts: list[dict[str, float]] = []
    update = run.update

    def updated(*batch):
        losses = update(*batch)
        parts.append(losses.read())
        return losses

    run.update = updated  # type: ignore[method-assign]
    run.run([Steps()])
    assert [("features" in line["train"]) for line in lines(tmp_path)] == [True] * 3 + [False] * 2
    assert lines(tmp_path)[2]["train"]["features"] == pytest.approx(parts[6]["features"])


def test_teacher_outputs_made_ahead_change_nothing(tmp_path):
    ahead, direct = (trainer(tmp_path / name, SAVING) for name in ("ahead", "direct"))
    ahead.run([Steps()])
    direct.init_feature_projections()
    for epoch in range(EPOCHS):
        for planned in direct.inputs.plan(epoch):
            direct.step(direct.data.views.make(planned))
    for k, v in ahead.student.state_dict().items():
        assert torch.equal(v, direct.student.state_dict()[k])


@pytest.mark.parametrize("until", [3, 4, EPOCHS * 3])
def test_stopped_at_any_step_an_epoch_is_evaluated_once(tmp_path, monkeypatch, until):
    whole = trainer(tmp_path / "whole", SAVING)
    whole.run([Steps()])
    cut, callback = trainer(tmp_path / "cut", SAVING), Steps()
    # In place of a signal, which would be the whole process's.
    monkeypatch.setattr(loop, "stop_requests", lambda: nullcontext(lambda: callback.done == until))
    with pytest.raises(Interrupted):
        cut.run([callback])
    monkeypatch.undo()
    again = trainer(tmp_path / "cut", SAVING)
    assert again.resume() == until and again.state.seconds > 0
    again.run([Steps()])
    measured, expected = ([line["val_ema"] for line in lines(tmp_path / n)] for n in ("cut", "whole"))
    assert measured == expected
    for k, v in whole.state.averaged.items():
        assert torch.equal(v, again.state.averaged[k])


@pytest.mark.parametrize("until", [1, 5, 6, 9, 10, 13])
def test_resumed_after_any_step(tmp_path, monkeypatch, until):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)  # after each step
    whole = trainer(tmp_path / "whole", SAVING)
    whole.run([Steps()])
    cut = trainer(tmp_path / "cut", SAVING)
    with pytest.raises(RuntimeError, match="power failure"):
        cut.run([Steps(until)])
    again = trainer(tmp_path / "cut", SAVING)
    assert again.resume() == until - 1
    again.run([Steps()])
    first, second = whole.state.tensors(), again.state.tensors()
    assert first.keys() == second.keys() and any(k.startswith("best.") for k in first)
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert [line["train"] for line in lines(tmp_path / "whole")][-1] == lines(tmp_path / "cut")[-1]["train"]


def test_running_out_of_memory_is_explained(tmp_path, monkeypatch):
    def no_memory(*arguments, **options):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(Objective, "__call__", no_memory)
    with pytest.raises(DeitkitError, match="does not hold 3 images at a time"):
        trainer(tmp_path / "run", {}).run([])
    timed = trainer(tmp_path / "timed", {})
    limit = Budget(60.0, time.monotonic())
    session = SimpleNamespace(config=Config().override({"train.epochs": 3}), budget=limit)
    training = SimpleNamespace(
        trainer=lambda epochs: timed,
        sampler=timed.data.sampler,
        soft_labels=None,
        config=session.config,
    )
    with pytest.raises(DeitkitError, match="does not hold 3 images at a time"):
        plan(tmp_path, session, [training])


def test_a_deadline_ends_training_with_an_evaluation_and_resume_trains_the_rest(tmp_path):
    run = trainer(tmp_path, {}, deadline=time.monotonic())
    run.run([Steps()])
    assert run.late and run.finished and run.state.step == 1
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1 and "val_ema" in json.loads(line)
    again, whole = trainer(tmp_path, {}), trainer(tmp_path / "whole", {})
    again.resume()
    again.run([Steps()])
    whole.run([Steps()])
    assert again.state.step == EPOCHS * 3
    for k, v in whole.student.state_dict().items():
        assert torch.equal(v, again.student.state_dict()[k])


@pytest.mark.parametrize("damaged", [b"", b'{"epoch": 1, "st', b"\xff\n"])
def test_resume_brings_damaged_metrics_back(tmp_path, damaged):
    run = trainer(tmp_path, {})
    run.run([Steps()])
    file = tmp_path / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(damaged)
    again = trainer(tmp_path, {})
    again.resume()
    assert file.read_bytes() == whole and again.state.metrics == run.state.metrics


def test_patience_ends_a_run_and_keeps_its_best_average(tmp_path):
    losses = [3.0, 2.0, 2.5, 2.0, 1.0]
    run = trainer(tmp_path, {"train.patience": 2}, losses)
    averages: list[Tensor] = []

    class Remember(Steps):
        def on_epoch(self, line: dict) -> None:
            averages.append(run.state.ema.weights["head.weight"].clone())

    run.run([Remember()])
    assert len(averages) == 4 and run.finished and run.state.step == 12
    assert torch.equal(run.state.averaged["head.weight"], averages[1])
    again = trainer(tmp_path, {"train.patience": 2}, losses)
    again.resume()
    assert again.finished and torch.equal(again.state.averaged["head.weight"], averages[1])


def test_patience_that_is_not_used_up_changes_nothing(tmp_path):
    run = trainer(tmp_path / "patient", {"train.patience": 2}, [3.0, 2.0, 2.5, 1.0, 2.0])
    run.run([Steps()])
    plain = trainer(tmp_path / "plain", {})
    plain.run([Steps()])
    assert run.state.step == EPOCHS * 3
    for k, v in plain.student.state_dict().items():
        assert torch.equal(v, run.student.state_dict()[k])


def test_losses_that_are_read_a_step_late_are_the_same(tmp_path):
    """On a GPU, where reading the loss of this step would wait for it."""
    found = []
    for late in (False, True):
        run = trainer(tmp_path / str(late), SAVING)
        run._reads_late = late
        run.run([Steps()])
        assert run._unread is None
        found.append([line["train"] for line in lines(tmp_path / str(late))])
    assert found[0] == found[1]


def test_a_loss_that_is_read_late_is_refused_before_anything_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    run = trainer(tmp_path, {"optim.lr": 1e30, "optim.warmup_epochs": 0.0})
    run._reads_late = True
    with pytest.raises(TrainingError, match="not a finite number at step"):
        run.run()
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())


class _Copies(TorchDispatchMode):
    """Collects the operations between devices: on a GPU each of them waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if len({each.device for each in (*args, out) if isinstance(each, Tensor)}) > 1:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize(
    "settings", [{}, SAVING, {"optim.clip_grad": 1.0}], ids=["plain", "saving", "clipped"]
)
def test_a_step_waits_for_nothing_on_the_device(tmp_path, monkeypatch, settings):
    """On the device "meta", whose tensors have no values: reading one raises, whoever reads it."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # unknown on "meta", as is
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **kwargs: None)
    meta, uneven = torch.device("meta"), Adjustment(torch.zeros(3), torch.ones(3))
    run = trainer(tmp_path, settings, device=meta, adjustment=uneven)
    batch = ViewBatch(torch.empty(4, 3, 32, 32, device=meta), torch.empty(4, 3, device=meta), np.arange(4))
    outputs = list(run.inputs.teacher_outputs(batch, 0))
    run.update(batch, outputs)  # the optimizer sets itself up
    with _Copies() as copies:
        losses = run.update(batch, outputs)
        assert not copies.found
        batch.images.copy_(torch.zeros(()))
        assert copies.found  # so that it collects at all
    with pytest.raises(NotImplementedError, match="meta"):
        losses.read()


class _Stream:
    """In place of a GPU's stream; remembers what happened."""

    def __init__(self, events: list[str]):
        self.events = events
        events.append("created")

    def synchronize(self) -> None:
        self.events.append("waited")


def test_work_beside_the_step_is_done_before_it_is_used_and_streams_are_used_again(monkeypatch):
    events: list[str] = []

    @contextmanager
    def on(stream: _Stream):
        events.append("enter")
        yield
        events.append("leave")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: _Stream(events))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
    monkeypatch.setattr(
        Tensor, "record_stream", lambda tensor, stream: events.append(f"{len(tensor)} {stream}")
    )
    made = [TeacherOutput(torch.zeros(1), (torch.zeros(2), torch.zeros(3))), None]
    streams = SideStreams()
    for _ in range(2):
        assert streams.run(torch.device("cuda"), lambda: made) is made
    once = ["enter", "leave", "waited", "1 default", "2 default", "3 default"]
    assert events == ["created", *once, *once]
    assert streams.run(CPU, lambda: made) is made and len(events) == 13


@pytest.mark.parametrize("settings", [{}, SAVING])
def test_student_and_losses_are_one_graph(tmp_path, settings):
    run = trainer(tmp_path, settings)
    batch = run.data.views.make(run.inputs.plan(0)[0])
    [first, *_], micro = list(run.inputs.teacher_outputs(batch, 0)), run.train.micro_batch_size
    run.student.train()
    torch._dynamo.reset()
    given = (normalise(batch.images[:micro]), batch.targets[:micro], first, run.inputs.phase(0), 1.0, None)
    found = torch._dynamo.explain(run._parts)(*given)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.slow  # traces six graphs
def test_each_size_and_phase_is_compiled_once(tmp_path):
    run, counter, asked = trainer(tmp_path, SAVING), CompileCounter(), set()
    torch._dynamo.reset()
    compiled = torch.compile(run._parts, dynamic=False, backend=counter)

    def parts(images, targets, teacher, phase, labelled, rows):
        asked.add((images.shape, phase))
        return compiled(images, targets, teacher, phase, labelled, rows)

    run._parts_of_loss = parts
    run.run([])
    assert counter.frame_count == len(asked) == 6


def curve(run: Trainer, steps: int = 50) -> list[float]:
    """The losses of the first steps on the same batches."""
    batches = [run.data.views.make(batch) for epoch in range(17) for batch in run.inputs.plan(epoch)]
    return [run.step(batch)["loss"] for batch in batches[:steps]]


def test_bfloat16_follows_float32(tmp_path):
    """Fifty steps of a training step's mixed precision, here on a CPU."""
    settings = {"train.epochs": 17, "optim.lr": 0.01}
    exact, mixed = trainer(tmp_path / "a", settings), trainer(tmp_path / "b", settings)
    mixed._mixed_precision = True
    found, expected = curve(mixed), curve(exact)
    assert found != expected  # so that it was mixed at all
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.slow  # compiles
@pytest.mark.timeout(900)
def test_the_compiled_step_follows_the_eager_one(tmp_path):
    settings = {"train.epochs": 17, "optim.lr": 0.01}
    eager, compiled = trainer(tmp_path / "a", settings), trainer(tmp_path / "b", settings)
    torch._dynamo.reset()
    compiled._parts_of_loss = torch.compile(compiled._parts, dynamic=False)
    assert curve(compiled) == pytest.approx(curve(eager), rel=1e-3)


def test_deterministic_asks_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    be_deterministic()
    assert asked == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
