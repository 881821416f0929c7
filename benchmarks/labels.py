"""What stored soft labels save: four students from one `deitkit label`, and four with a live teacher.

    python benchmarks/labels.py --data FOLDER [--epochs 10] [--image-size 64] [--teacher SPEC] [--rounds 5]

1. Trains two students under two recipes (loss and schedule; the views are those of the soft labels), once
   with a live teacher each, once from one `deitkit label`, and adds up whole jobs, with fitting the
   teacher and evaluation but without decoding.
2. Measures, in turns, images/s of the training loop with a live teacher, from soft labels, and without a
   teacher.
3. Adds up the same for a RegNetY-16GF teacher and a tiny student at 224 pixels from measured steps
   (random weights; --no-regnet skips it).
4. Calculates sizes of soft labels.

Run it on a quiet machine. Tables go to stderr; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

import deitkit
from deitkit import recipes
from deitkit.config import Config
from deitkit.data.dataset import find_splits
from deitkit.preprocessing import Preprocessing
from deitkit.soft_labels.codec import SoftLabelFormat, make_codec
from deitkit.soft_labels.manifest import fixed_settings
from deitkit.soft_labels.store import SHARD_VIEWS, SoftLabelStore
from deitkit.teachers.pretrained import Pretrained, backend_builders, choose_backend
from deitkit.teachers.saved import read_teacher
from deitkit.teachers.sources.timm_model import TimmBackbone
from deitkit.teachers.teacher import Teacher
from deitkit.training.session import Session, open_session
from deitkit.training.student_training import StudentTraining
from deitkit.training.trainer import Trainer
from provenance import provenance

CPU = torch.device("cpu")
STUDENTS = [
    ("nano, soft", "small-data", {"student.name": "nano"}),
    ("tiny, soft", "small-data", {"student.name": "tiny"}),
    ("nano, hard", "deit-distilled", {"student.name": "nano"}),
    ("tiny, hard", "deit-distilled", {"student.name": "tiny"}),
]
TO_THE_END = {"distillation.distill_until": 1.0}  # distillation in every epoch, on both sides
HEADER_BYTES = 300  # of a shard, rounded up


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return round(time.perf_counter() - started, 2), done


def sweep(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], SoftLabelStore]:
    """Seconds of every job on both sides, and each student's accuracy."""
    asked = {
        "student.image_size": options.image_size,
        "teacher.spec": options.teacher,
        "train.device": "cpu",
    }
    labelling, store = seconds(
        lambda: deitkit.label(options.data, folder / "labels", epochs=options.epochs, **asked)
    )
    rows = []
    for name, recipe, student in STUDENTS:
        # The deit recipe's patches are for 224 pixels; both students use patches chosen by the data.
        common = student | TO_THE_END | {"student.patch_size": max(4, options.image_size // 8)}
        labels = {"teacher.soft_labels": str(store.folder), "train.device": "cpu"}
        views = fixed_settings(store.manifest) | {"train.epochs": options.epochs, "train.device": "cpu"}
        sides = {}
        for side, settings in (
            ("live", views | {"distillation.feature_weight": 0}),
            ("stored", labels),
        ):
            out = folder / f"{name}-{side}"
            spent, run = seconds(
                lambda s=settings, r=recipe, o=out, c=common: deitkit.train(
                    options.data, o, recipe=r, **(s | c)
                )
            )
            sides |= {f"{side}_s": spent, f"{side}_top1": round(run.results["student"]["top1"], 1)}
        rows.append({"student": name} | sides)
    live = sum(row["live_s"] for row in rows)
    stored = labelling + sum(row["stored_s"] for row in rows)
    found = {
        "rows": rows,
        "label_pass_s": labelling,
        "live_total_s": round(live, 1),
        "stored_total_s": round(stored, 1),
        "saving": round(live / stored, 2),
        "bytes_per_view": store.codec.bytes_per_view,
    }
    return found, store


def print_sweep(found: dict[str, Any]) -> None:
    print(f"{'':24}{'live teacher':>18}{'soft labels':>18}", file=sys.stderr)
    print(f"{'label pass':24}{'':>18}{found['label_pass_s']:>16.1f} s", file=sys.stderr)
    for row in found["rows"]:
        cells = [f"{row[f'{side}_s']:.1f} s, {row[f'{side}_top1']:.1f} %" for side in ("live", "stored")]
        print(f"{row['student']:24}{cells[0]:>18}{cells[1]:>18}", file=sys.stderr)
    totals = f"{found['live_total_s']:>16.1f} s{found['stored_total_s']:>16.1f} s"
    print(f"{'together':24}{totals}   {found['saving']:.2f}x", file=sys.stderr)


def opened(config: Config, data: Path) -> Session:
    """A session whose images are decoded; without feature distillation, which soft labels cannot have."""
    changes = {"distillation.feature_weight": 0.0, "train.device": "cpu"}
    session = open_session(config.override(changes), partial(find_splits, data))
    _ = session.dataset
    return session


def trainer_of(
    session: Session, folder: Path, teacher: Teacher | None = None, soft_labels: SoftLabelStore | None = None
) -> Trainer:
    return StudentTraining.of(session, session.dataset, folder, teacher, soft_labels).trainer(epochs=1)


def loop_speeds(store: SoftLabelStore, data: Path, rounds: int) -> dict[str, Any]:
    """Median images/s of real steps, views included; the three sides take turns."""
    config = store.manifest.config.override(
        TO_THE_END | {"student.name": "nano", "student.patch_size": "auto", "student.initial_weights": "none"}
    )
    session = opened(config, data)
    teacher = read_teacher(store.folder / "teacher", device=CPU)
    sides = {
        "live teacher": trainer_of(session, store.folder, teacher=teacher),
        "stored labels": trainer_of(session, store.folder, soft_labels=store),
        "no teacher": trainer_of(session, store.folder),
    }
    plan = store.plan(0)[:8]
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, trainer in sides.items():
            trainer.state.step = 0  # repeat the first batches
            started = time.perf_counter()
            for batch in plan:
                trainer.step(trainer.data.views.make(batch))
            spent = time.perf_counter() - started
            if turn > 0:  # the first round warms up
                speeds[name].append(sum(len(b.indices) for b in plan) / spent)
    found: dict[str, Any] = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    found["spread"] = {name: [round(min(v), 1), round(max(v), 1)] for name, v in speeds.items()}
    # Of neighbours in time, so that a slow moment counts on both sides.
    ratios = [a / b for a, b in zip(speeds["stored labels"], speeds["no teacher"], strict=True)]
    return found | {"stored_over_none": round(statistics.median(ratios), 3)}


def regnet_saving(data: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Four tiny students at 224 pixels under RegNetY-16GF, from measured seconds per image."""
    settings = {"student.name": "tiny", "train.batch_size": 8, "data.repeats": 1}
    trainer = trainer_of(opened(recipes.get("deit").override(settings), data), folder)
    view = Preprocessing((224, 224))
    backbone = TimmBackbone(timm.create_model("regnety_160", num_classes=0))
    model = Pretrained("regnety_160", view, backbone, head=None, outputs=None, params=0)
    teacher = choose_backend(backend_builders(model, view, CPU), view, CPU, "auto")
    batch = trainer.data.views.make(trainer.inputs.plan(0)[0])
    times: dict[str, list[float]] = {"teacher": [], "student": []}
    for turn in range(rounds + 1):
        for name, work in (
            ("teacher", lambda: teacher(batch.images)),
            ("student", lambda: trainer.step(batch)),
        ):
            spent, _ = seconds(work)
            if turn > 0:
                times[name].append(spent / len(batch.images))
    t, s = (statistics.median(times[name]) for name in ("teacher", "student"))
    live, stored = 4 * (t + s), t + 4 * s
    macs = 4 * (16 + 3 * 1.3) / (16 + 4 * 3 * 1.3)  # a training step costs three forward passes
    return {
        "teacher_s_per_image": round(t, 4),
        "student_s_per_image": round(s, 4),
        "backend": teacher.name,
        "saving": round(live / stored, 2),
        "saving_by_multiplications": round(macs, 2),
        "saving_with_many_students": round((t + s) / s, 2),
    }


def on_paper() -> list[dict[str, Any]]:
    """Calculated gigabytes of soft labels for large data sets."""
    rows = []
    for name, classes, images, epochs in (
        ("ImageNet-1k x 300", 1000, 1_281_167, 300),
        ("ImageNet-21k x 90", 21_841, 14_197_122, 90),
    ):
        for stored in (SoftLabelFormat("top-k", 10, 1.0), SoftLabelFormat("hard")):
            codec = make_codec(classes, stored)
            files = epochs * -(-images // SHARD_VIEWS)
            size = epochs * images * codec.bytes_per_view + files * HEADER_BYTES
            rows.append(
                {"data": name, "kind": stored.kind, "files": files, "gigabytes": round(size / 1e9, 2)}
            )
            rows[-1]["bytes_per_view"] = codec.bytes_per_view
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--teacher", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-regnet", action="store_true")
    options = parser.parse_args()
    opened(recipes.get("small-data").override({"student.image_size": options.image_size}), options.data)
    with tempfile.TemporaryDirectory() as folder:
        swept, store = sweep(options, Path(folder))
        print_sweep(swept)
        speeds = loop_speeds(store, options.data, options.rounds)
        print(f"training loop, images/s: {speeds}", file=sys.stderr)
        regnet = None if options.no_regnet else regnet_saving(options.data, Path(folder), options.rounds)
        print(f"RegNetY-16GF over four Ti students: {regnet}", file=sys.stderr)
    paper = on_paper()
    for row in paper:
        print(f"{row['data']:20}{row['kind']:8}{row['gigabytes']:>8.2f} GB", file=sys.stderr)
    facts = {
        "benchmark": "labels",
        "data": options.data.name,
        "images": store.manifest.images,
        "epochs": options.epochs,
        "image_size": options.image_size,
        "teacher": store.manifest.teacher,
        **provenance(timm),
    }
    print(json.dumps({"sweep": swept, "loop": speeds, "regnet": regnet, "paper": paper} | facts))


if __name__ == "__main__":
    main()
