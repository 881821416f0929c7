"""The main job: a folder of images in, a run folder with a distilled student out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import log, recipes
from ..config import Config, dotted
from ..data.dataset import Dataset, find_splits, open_data
from ..data.splits import refuse_out_among_classes
from ..errors import SettingError
from ..evaluation.evaluate import evaluate_student
from ..inference.device import resolve_device
from ..io import read_json, read_json_lines, refuse_occupied, write_json
from ..models.deit import DeiTOutput
from ..preprocessing import normalise
from ..report.run_page import write_report
from ..run_folder import TEACHER_FOLDER
from ..soft_labels.replay import refuse_other_views
from ..soft_labels.store import SoftLabelStore, open_soft_labels
from ..soft_labels.student_config import student_settings
from ..tasks import SCORES
from ..teachers.prepare import prepare_teacher, training_views
from ..teachers.spec import check_spec
from ..teachers.teacher import Teacher
from . import results
from .budget import planned_epochs
from .callbacks import EpochLines, tensorboard_logs
from .student import build_model, check_initial, choose_student, resolve_initial_weights, view_workers
from .trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what `results.json` holds."""

    folder: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def train(
    data: str | Path, out: str | Path, *, recipe: str | None = None, resume: bool = False, **settings: Any
) -> Run:
    """Trains a student on `data` and writes the run folder `out`.

    recipe: a name; None is small-data, or the recipe of `teacher.soft_labels`. settings: "section.key"
    (written section__key, as in `train__epochs=30`) to value, over the recipe's. Raises DeitkitError for
    anything the caller can mend, Interrupted when a signal stopped training after its state was saved.
    """
    changes = dotted(settings)
    labels = changes.get("teacher.soft_labels")
    if labels:
        saved = begun_run(Path(out), resume)
        if saved is not None:  # epochs may have been appended to the labels since
            changes = {"train.epochs": saved.train.epochs} | changes
        config = student_settings(open_soft_labels(Path(labels)), recipe, changes)
    else:
        config = recipes.get(recipe or Config().recipe).override(changes)
    return run_job(Path(data), Path(out), config, resume=resume)


def run_job(data: Path, out: Path, config: Config, *, resume: bool) -> Run:
    """`train` with the settings in one Config."""
    started = time.monotonic()
    device = resolve_device(config.train.device)
    refuse_out_among_classes(data, out)
    splits = find_splits(data, config)
    config, why = choose_student(config, splits, device)
    _check_teacher(config)
    saved = begun_run(out, resume)
    config = resolve_initial_weights(config, saved)
    check_initial(config, len(splits.train.classes))
    claim_folder(out, config, saved)
    log.info(f"{len(splits.train)} training and {len(splits.val)} validation images ({splits.how})")
    log.info(why)
    opened = open_data(splits, config)
    refuse_other_images(out, opened)
    opened.write_lists(out)

    labels = _open_soft_labels(config, opened, device)
    teacher = prepare_teacher(out, config, opened, device)
    teacher_facts, by_teacher = None, None
    if labels is not None:
        teacher_facts = labels.manifest.teacher | {"folder": str(labels.folder / TEACHER_FOLDER)}
    if teacher is not None:
        teacher_facts, by_teacher = results.measure_teacher(teacher, opened.val, device)
    if teacher_facts is not None:
        results.say_teacher(teacher_facts, opened.val)

    trainer = create_trainer(out, config, opened, teacher, device, labels)
    baseline = None
    if config.train.baseline:
        baseline = create_trainer(out / "baseline", _without_teacher(config), opened, None, device)
    epochs = planned_epochs(out, trainer, baseline, config, started)
    plan = {"epochs": epochs, "steps": epochs * trainer.steps_per_epoch, "why_student": why}
    write_json(
        out / "config.json",
        results.describe_run(trainer.config, opened, trainer.model, teacher_facts, plan, data),
    )
    student_facts, output = train_one(trainer, epochs, opened, device, resume, "training")
    if baseline is not None:
        write_json(
            out / "baseline" / "config.json",
            results.describe_run(baseline.config, opened, baseline.model, None, plan, data),
        )
        baseline_facts, _ = train_one(baseline, epochs, opened, device, resume, "baseline")
        student_facts["baseline"] = baseline_facts["student"]
        write_json(out / "baseline" / "results.json", {"student": baseline_facts["student"]})
    found = results.assemble(student_facts, teacher_facts, opened, time.monotonic() - started)
    results.write_predictions(out / "predictions.csv", opened.val.images, output, by_teacher)
    write_json(out / "results.json", found)
    write_report(out)
    return Run(out, found)


def _check_teacher(config: Config) -> None:
    """Refuses a misspelt teacher, and one that nothing would be asked of, before hours of decoding.

    Says where a baseline has nothing to be compared with.
    """
    if config.taught_live:
        check_spec(config.teacher.spec)
    if config.distillation.mode == "none" and config.teacher.spec not in ("auto", "none"):
        raise SettingError(
            f"the teacher {config.teacher.spec!r} would teach nothing, since distillation is off; "
            "add --distillation hard or soft, or leave the teacher out"
        )
    if config.train.baseline and not config.taught_live and not config.teacher.soft_labels:
        log.info("without a teacher the baseline is the same training once more: leave out --baseline")


def begun_run(out: Path, resume: bool) -> Config | None:
    """The settings of the run that `out` holds already; None where there is none yet."""
    settings = out / "settings.json"
    if not settings.exists() or not any((out / name).exists() for name in (TEACHER_FOLDER, "plan.json")):
        return None
    if not resume:
        raise SettingError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
    if (out / "results.json").exists() and not (out / "checkpoints").exists():
        raise SettingError(f"the run in {out} is done, and without checkpoints there is nothing to resume")
    return Config.from_dict(read_json(settings))


def claim_folder(out: Path, config: Config, saved: Config | None) -> None:
    """Makes the run folder; one with other things in it is refused, other settings when resuming too."""
    settings = out / "settings.json"
    if saved is not None:
        different = saved.differences(config)
        if not (out / "plan.json").exists():  # no epoch is planned yet: another budget may still be given
            different.pop("train.budget_s", None)
        if different:
            key, (was, now) = next(iter(different.items()))
            raise SettingError(
                f"cannot resume {out}: {key} was {was} and is now {now}; give the run's own settings, "
                "or choose another --out"
            )
    if not settings.exists():
        refuse_occupied(out, without="run")
    out.mkdir(parents=True, exist_ok=True)
    write_json(settings, config.to_dict())


def refuse_other_images(out: Path, data: Dataset) -> None:
    """Refuses to resume where the images are others now, before anything of the run is written over."""
    known = out / "config.json"
    if known.exists() and read_json(known)["data"]["fingerprint"] != data.pool.images.fingerprint(
        times=False
    ):
        raise SettingError(
            f"cannot resume {out}: its images or classes have changed since; "
            "give the images as they were, or choose another --out"
        )


def _open_soft_labels(config: Config, data: Dataset, device: torch.device) -> SoftLabelStore | None:
    """The stored answers that the settings name, whole, and of these very views."""
    if config.teacher.soft_labels is None:
        return None
    store, images = open_soft_labels(Path(config.teacher.soft_labels)), data.pool.images
    store.manifest.refuse_other_data(store.folder, images.fingerprint(times=False), len(images), data.classes)
    refuse_other_views(store, training_views(config, data, device).make)
    with log.progress_bar("checking the labels", store.epochs() * store.shards) as advance:
        store.verify(store.epochs(), advance)
    return store


def _without_teacher(config: Config) -> Config:
    """The same training of the same student on labels alone."""
    return replace(config, distillation=replace(config.distillation, mode="none", feature_weight=0.0))


def create_trainer(
    folder: Path,
    config: Config,
    data: Dataset,
    teacher: Teacher | None,
    device: torch.device,
    soft_labels: SoftLabelStore | None = None,
) -> Trainer:
    """A trainer of the student that `config` names, in `folder`, which is made.

    Taught by `teacher`, or by its `stored_labels`; by neither, it trains on labels alone, whatever `config`
    says of distillation. Guidance is off, and that is said, under a teacher without feature maps.
    """
    taught = teacher is not None or soft_labels is not None
    if not taught:
        config = _without_teacher(config)
    elif teacher is not None and config.distillation.feature_weight > 0 and not teacher.card.map_channels:
        log.info(f"feature guidance is off: the teacher {teacher.card.name} gives no feature maps")
        config = config.override({"distillation.feature_weight": 0.0})
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(config, len(data.classes)).to(device)
    facts = {"data": data.pool.images.fingerprint(times=False), "settings": config.to_dict()}
    return Trainer(
        config=config,
        model=model,
        make=training_views(config, data, device).make,
        num_images=len(data.train.images),
        num_val=len(data.val.images),
        num_unlabeled=0 if not taught else len(data.pool.images) - len(data.train.images),
        normalise=normalise,
        teacher=teacher,
        device=device,
        folder=folder,
        evaluate=lambda m: evaluate_student(m, data.val, device).metrics().to_dict(),
        path_of=data.pool.images.paths.__getitem__,
        soft_labels=soft_labels,
        task=data.task,
        workers=view_workers(config, device),
        facts=facts | ({"labels": soft_labels.id} if soft_labels is not None else {}),
    )


def train_one(
    trainer: Trainer, epochs: int, data: Dataset, device: torch.device, resume: bool, title: str
) -> tuple[dict[str, Any], DeiTOutput]:
    """Trains to the end and keeps the better of raw and averaged weights; facts and validation logits."""
    trainer.epochs = epochs
    done = trainer.resume() if resume else 0
    with log.progress_bar(title, trainer.views_before(trainer.total_steps)) as advance:
        advance(trainer.views_before(done))
        display = EpochLines(advance, epochs, SCORES[data.task])
        trainer.run([display, *tensorboard_logs(trainer.folder / "tensorboard")])
    share_done = trainer.state.step / trainer.total_steps
    if share_done < 1:
        log.info(
            f"stopped after {round(share_done * epochs)} of {epochs} epochs: {trainer.config.train.patience} "
            "measurements went by without a lower validation loss"
        )
    weights = _keep_better_weights(trainer)
    trainer.model.fold_layer_scale()
    results.save_model(trainer.folder / "model.safetensors", trainer.model)
    facts, output = results.measure_student(trainer.model, trainer.config.student.name, data, device)
    images, seconds = trainer.views_before(trainer.state.step), trainer.state.seconds
    speed = {
        "seconds": seconds,
        "images_per_s": images / seconds,
        "epochs": round(epochs * share_done),
        "images": images,
    }
    return {"student": facts, "train": speed, "weights": weights}, output


def _keep_better_weights(trainer: Trainer) -> str:
    """Leaves the better weights in the model, by validation loss, which moves less by chance than top-1."""
    last = read_json_lines(trainer.folder / "metrics.jsonl")[-1]
    raw, averaged = last["val"]["loss"], last["val_ema"]["loss"]
    if trainer.state.best is not None:
        averaged = trainer.state.best.loss
    if averaged <= raw:
        trainer.model.load_state_dict(trainer.averaged)
        return "ema"
    return "raw"
