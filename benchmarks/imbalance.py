"""What helps a rare class: no correction, sampling, or adjusted logits, on folders thinned to be uneven.

    python benchmarks/imbalance.py DATA --name NAME [--ratios 10 50] [--most 200] [--image-size 64]
        [--epochs 20] [--arms none loss ...] [--mode soft] [--seeds 0 1 2] [--out results/imbalance]
    python benchmarks/imbalance.py DATA --features FILE.npz [--teacher-size 96]
    python benchmarks/imbalance.py --candidates FILE.npz --name NAME [--ratios 10 50] [--most 200]
    python benchmarks/imbalance.py --probe FEATURES.npz --name NAME [--ratios 2 3 5 10 20 50] [--most 150]
    python benchmarks/imbalance.py --table results/imbalance/*.csv

The training images are thinned: of K classes, in an order drawn from the seed, class k keeps
MOST / ratio^(k / (K - 1)) images (Cui et al., arXiv 1901.05555), so the largest has `ratio` times the images
of the smallest. The validation images stay as they are. A student (nano) is trained with a live teacher, a
linear probe fitted to the thinned images; all arms of a seed share images, teacher and initial weights.

An ARM is a value of train.balance, or "loss, labels alone": then log pi is not added in the loss on the
teacher's outputs, and the distillation head learns from them what the training shares are.

balanced: mean recall over the classes. top1: recalls weighted by the thinned training shares, the accuracy
on images as uneven as those. rarest: recall of the class with the fewest training images. Each also of the
heads and of the teacher. A row is appended to OUT/NAME.csv for each arm; one that is there is not run again.

--probe: the same with linear probes in place of students, in seconds, to see from what ratio it pays.
FEATURES.npz holds features x (N, F) and labels y (N,) of training images, v and yv of validation ones. A
sampler is the weights that it amounts to. Rows go to OUT/probe.csv. With --teacher-features TEACHER.npz two
linear heads stand for a student's, one fitted to the labels and one, by --mode soft or hard, to a probe on
the teacher's features: with no correction, with log pi in the loss on labels alone, and in both losses
(the arm "loss"). Rows go to OUT/heads.csv.

--candidates: the fitted teacher as a model to deploy: deitkit's own probe on the features of its centre crops
and their mirror images, which --features writes once. Arms: "none"; "adjusted", as deitkit does it, log pi
taken off the bias; "tau", tau log pi with the tau of TAUS that gives most balanced accuracy out of fold on
the training images; "weights", the probe fitted with each image weighted by 1 / images of its class. Besides
the scores, the negative log-likelihood and the calibration error (cross-fitted) at temperature 1 and at the
fitted one, on the validation images and on those thinned like the training images. Rows go to
OUT/candidates.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitkit import recipes
from deitkit.config import Config, DataConfig
from deitkit.data.cache import Decoder, open_pixels
from deitkit.data.dataset import Split, find_splits
from deitkit.data.image_set import ImageSet
from deitkit.data.splits import Splits
from deitkit.distillation import class_balance
from deitkit.distillation.losses import hard_distillation, soft_distillation
from deitkit.evaluation.evaluate import evaluate_student, teacher_logits, views_of
from deitkit.evaluation.temperature import calibrate
from deitkit.models import DeiTOutput, joint_probabilities
from deitkit.teachers.fit import open_backbone
from deitkit.teachers.probe import fit_probe, out_of_fold
from deitkit.teachers.saved import kept_teacher
from deitkit.teachers.teacher import Teacher
from deitkit.training import student_training
from deitkit.training.resolve import resolve_initial_weights
from deitkit.training.session import Session, open_session
from provenance import provenance
from rows import append_row

UNADJUSTED = "loss, labels alone"
ARMS = ("none", "sampler", "sqrt-sampler", "loss")
SCORES = ("balanced", "top1", "rarest")
HEADS = ("joint", "class", "distill", "teacher")
_PENALTY = 1e-2  # L2, for standardised features
FIELDS = (
    *("data", "ratio", "mode", "arm", "seed", "epochs", "images", "largest", "smallest", "weights"),
    *(f"{head}_{score}" for head in HEADS for score in SCORES),
    *("seconds", "machine", "versions", "date", "command"),
)


TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
CALIBRATED = ("nll_before", "nll", "ece_before", "ece")
CANDIDATE_FIELDS = (
    *("data", "ratio", "arm", "seed", "tau", "images", "largest", "smallest", *SCORES),
    *(f"{w}_{name}" for w in ("even", "uneven") for name in ("images", "temperature", *CALIBRATED)),
    *("machine", "versions", "date", "command"),
)


def thinned_indices(members: Sequence[np.ndarray], ratio: float, most: int, seed: int) -> np.ndarray:
    """Indices that are kept of the `members` of each class, thinned to an exponential profile."""
    rng, K = np.random.RandomState(seed), len(members)
    most = min(most, *map(len, members))
    kept = []
    for k, c in enumerate(rng.permutation(K)):
        kept.append(rng.permutation(members[c])[: max(2, round(most / ratio ** (k / (K - 1))))])
    return np.sort(np.concatenate(kept))


def thinned(splits: Splits, ratio: float, most: int, seed: int) -> Splits:
    """The splits with thinned training images."""
    members = [splits.train.members(k) for k in range(len(splits.train.classes))]
    train = splits.train.subset(thinned_indices(members, ratio, most, seed))
    return replace(splits, train=train, how=f"{splits.how}; thinned to 1:{ratio:g}, seed {seed}")


def scores(probabilities: Tensor, labels: Tensor, counts: np.ndarray) -> dict[str, str]:
    """In percent; counts: training images of each class."""
    right = (probabilities.argmax(1) == labels).double()
    recalls = np.array([100 * float(right[labels == k].mean()) for k in range(len(counts))])
    found = {
        "balanced": recalls.mean(),
        "top1": (recalls * counts).sum() / counts.sum(),
        "rarest": recalls[counts.argmin()],
    }
    return {name: f"{value:.2f}" for name, value in found.items()}


def opened(options: argparse.Namespace, ratio: float, seed: int, arm: str) -> Session:
    """The session of an arm, with its initial weights found."""
    changes = {
        "student.name": "nano",
        "student.image_size": options.image_size,
        "train.epochs": options.epochs,
        "train.seed": seed,
        "train.device": "cpu",
        "train.balance": arm.partition(",")[0],
        "train.metric": "balanced",
        "distillation.mode": options.mode,
        "distillation.feature_weight": 0.0,
        "data.eval_fraction": options.eval_fraction,
        "teacher.image_size": options.teacher_size,
        "teacher.probe_views": 1,
        "teacher.backend": "pytorch",
    }
    config = recipes.get("small-data").override(changes)

    def find(data: DataConfig) -> Splits:
        return thinned(find_splits(options.data, data), ratio, options.most, seed)

    session = open_session(config, find)
    return replace(session, config=resolve_initial_weights(session.config, None))


def trained(session: Session, teacher: Teacher, folder: Path) -> student_training.Trainer:
    """The arm's student with the better of its weights."""
    training = student_training.StudentTraining.of(session, session.dataset, folder, teacher)
    assert session.config.train.epochs
    trainer = training.trainer(session.config.train.epochs)
    trainer.run()
    return trainer


def measure(session: Session, teacher: Teacher, folder: Path, arm: str) -> dict[str, Any]:
    """The row of one arm."""
    dataset, device = session.dataset, session.device
    counts, labels = dataset.train.images.counts(), dataset.val.labels
    ours = class_balance.adjustment
    if arm == UNADJUSTED:
        student_training.adjustment = lambda *a, **k: replace(ours(*a, **k), distillation=None)
    started = time.monotonic()
    try:
        trainer = trained(session, teacher, folder)
    finally:
        student_training.adjustment = ours
    seconds = time.monotonic() - started
    weights = student_training.keep_better_weights(trainer)
    output = evaluate_student(trainer.student, dataset.val, device).heads()
    by = {
        "joint": joint_probabilities(output),
        "class": output.class_logits,
        "distill": output.distill_logits,
        "teacher": teacher_logits(teacher, dataset.val, device),
    }
    row: dict[str, Any] = {
        "images": int(counts.sum()),
        "largest": int(counts.max()),
        "smallest": int(counts.min()),
        "weights": weights,
        "seconds": round(seconds),
    }
    for head, values in by.items():
        if values is not None:
            row |= {f"{head}_{name}": value for name, value in scores(values, labels, counts).items()}
    return row


def probe(
    features: Tensor,
    labels: Tensor,
    log_shares: Tensor | None,
    weights: Tensor,
    penalty: float = _PENALTY,
) -> nn.Linear:
    """Logistic regression on (N, F), with `log_shares` (K,) added to its logits or images weighted (N,)."""
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = head(features) if log_shares is None else head(features) + log_shares
        each = F.cross_entropy(logits, labels, reduction="none")
        value = (each * weights).sum() / weights.sum() + penalty * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head.requires_grad_(False)


def distilled(features: Tensor, teacher: Tensor, mode: str, plus: Tensor) -> nn.Linear:
    """A linear head that learns a teacher's logits (N, K), with `plus` (K,) added to its own."""
    head = nn.Linear(features.shape[1], teacher.shape[1])
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = head(features) + plus
        of = soft_distillation(logits, teacher, 2.0) if mode == "soft" else hard_distillation(logits, teacher)
        value = of + _PENALTY * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head.requires_grad_(False)


def measure_heads(options: argparse.Namespace, made: dict[str, Any]) -> None:
    """A row for each seed, ratio and arm of two linear heads."""
    ours, theirs = np.load(options.probe), np.load(options.teacher_features)
    labels, held_labels = ours["y"], torch.from_numpy(ours["yv"])
    assert (labels == theirs["y"]).all()
    counts = np.bincount(labels)
    for seed, ratio in itertools.product(options.seeds, options.ratios):
        members = [np.flatnonzero(labels == k) for k in range(len(counts))]
        kept = thinned_indices(members, ratio, options.most, seed)
        y, per_class = torch.from_numpy(labels[kept]), np.bincount(labels[kept])
        log_shares, ones = torch.from_numpy(per_class / per_class.sum()).log().float(), torch.ones(len(kept))
        (x, held), (of_teacher, held_teacher) = (standardised(f, kept) for f in (ours, theirs))
        teacher = probe(of_teacher, y, None, ones)
        by_labels = {plus: probe(x, y, log_shares if plus else None, ones) for plus in (False, True)}
        for arm, plus, in_both in (("none", False, 0.0), (UNADJUSTED, True, 0.0), ("loss", True, 1.0)):
            taught = distilled(x, teacher(of_teacher), options.mode, in_both * log_shares)
            heads = {
                "class": by_labels[plus](held),
                "distill": taught(held),
                "teacher": teacher(held_teacher),
            }
            heads["joint"] = heads["class"].softmax(1) + heads["distill"].softmax(1)
            row = {"data": options.name, "ratio": ratio, "mode": options.mode, "arm": arm, "seed": seed}
            row |= {"images": len(y), "largest": per_class.max(), "smallest": per_class.min()}
            for head, logits in heads.items():
                row |= {f"{head}_{n}": v for n, v in scores(logits, held_labels, per_class).items()}
            append_row(options.out / "heads.csv", FIELDS, row | made)
            print(options.name, options.mode, ratio, seed, arm, row["joint_balanced"], flush=True)


def standardised(saved: Any, kept: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features of the kept training images, and of the validation images."""
    views = torch.from_numpy(saved["x"]).float()
    x = (views[0] if views.ndim == 3 else views)[kept]
    mean, std = x.mean(0), x.std(0) + 1e-6
    return (x - mean) / std, (torch.from_numpy(saved["v"]).float() - mean) / std


def write_features(options: argparse.Namespace) -> None:
    """FILE.npz for --candidates: what the heads of the teacher's candidates at a size are fitted to.

    x (2, N, F) of the training images and their mirror images, v of the validation images; y, yv: labels.
    """
    config = Config()
    splits = find_splits(options.data, config.data)
    size, device = options.teacher_size, torch.device("cpu")
    of_teacher = replace(config.teacher, image_size=size)
    member = open_backbone(of_teacher, student_size=None, device=device)
    decoder = Decoder((size, size), "center_crop", member.card.preprocessing.crop)

    def features(images: ImageSet, mirrored: bool) -> Tensor:
        split = Split(images, open_pixels(images, decoder, config.data, lambda _: None)[0])
        batches = (batch.flip(-1) if mirrored else batch for batch, _ in views_of(split, device))
        return torch.cat([member.features(batch)[0].float() for batch in batches])

    np.savez(
        options.features,
        x=torch.stack([features(splits.train, mirrored) for mirrored in (False, True)]),
        y=splits.train.labels,
        v=features(splits.val, False),
        yv=splits.val.labels,
    )


def measure_candidates(options: argparse.Namespace, made: dict[str, Any]) -> None:
    """A row for each seed, ratio and arm of the teacher's candidate."""
    saved = np.load(options.candidates)
    labels, held_labels = saved["y"], saved["yv"]
    K, held = int(labels.max()) + 1, torch.from_numpy(saved["v"])
    members = [np.flatnonzero(labels == k) for k in range(K)]
    of_held = [np.flatnonzero(held_labels == k) for k in range(K)]
    file = options.out / "candidates.csv"
    for seed, ratio in itertools.product(options.seeds, options.ratios):
        if done(file, data=options.name, seed=seed, ratio=ratio):
            continue
        kept = thinned_indices(members, ratio, options.most, seed)
        x, y = torch.from_numpy(saved["x"][:, kept]), torch.from_numpy(labels[kept])
        counts = np.bincount(labels[kept], minlength=K)
        as_uneven = thinned_indices(of_held, ratio, options.most, seed)  # the same order of classes
        for arm, tau, head in _candidate_heads(x, y, counts, seed):
            logits = head(held)
            row = {"data": options.name, "ratio": ratio, "arm": arm, "seed": seed, "tau": tau}
            row |= {"images": len(y), "largest": counts.max(), "smallest": counts.min()}
            row |= scores(logits, torch.from_numpy(held_labels), counts)
            for where, images in (("even", np.arange(len(held))), ("uneven", as_uneven)):
                found = calibrate(DeiTOutput(logits[images], None), torch.from_numpy(held_labels[images]))
                row[f"{where}_images"] = found.images
                row[f"{where}_temperature"] = f"{found.temperature:.3f}"
                row |= {f"{where}_{name}": f"{getattr(found, name):.3f}" for name in CALIBRATED}
            append_row(file, CANDIDATE_FIELDS, row | made)
            print(options.name, ratio, seed, arm, tau, row["balanced"], row["top1"], flush=True)


def _candidate_heads(
    x: Tensor, y: Tensor, counts: np.ndarray, seed: int
) -> Iterator[tuple[str, float, nn.Linear]]:
    """(arm, tau, head) fitted to features x (2, N, F) and labels y (N,)."""
    K, log_shares = len(counts), class_balance.taken_off_teacher("loss", torch.from_numpy(counts))
    assert log_shares is not None
    found = fit_probe(x, y, K, seed)

    def less(tau: float) -> nn.Linear:
        head = copy.deepcopy(found.head)
        head.bias -= tau * log_shares
        return head

    yield "none", 0.0, found.head
    yield "adjusted", 1.0, less(1.0)
    log_p = out_of_fold(x[0], y, K, torch.arange(len(y)), seed).log()
    balanced = {tau: float(scores(log_p - tau * log_shares, y, counts)["balanced"]) for tau in TAUS}
    best = max(TAUS, key=lambda tau: (balanced[tau], -abs(tau - 1)))
    yield "tau", best, less(best)
    views = x.flatten(0, 1)
    mean, std = views.mean(0), views.std(0) + 1e-6
    each = torch.from_numpy(counts).float()[y].repeat(len(x))
    head = probe((views - mean) / std, y.repeat(len(x)), None, 1 / each, found.penalty)
    head.bias -= (head.weight / std) @ mean
    head.weight /= std
    yield "weights", 0.0, head


def measure_probes(options: argparse.Namespace, made: dict[str, Any]) -> None:
    """A row for each seed, ratio and arm."""
    saved = np.load(options.probe)
    labels = saved["y"]
    counts = np.bincount(labels)
    for seed in options.seeds:
        for ratio in options.ratios:
            kept = thinned_indices(
                [np.flatnonzero(labels == k) for k in range(len(counts))], ratio, options.most, seed
            )
            y, per_class = torch.from_numpy(labels[kept]), np.bincount(labels[kept])
            x, held = standardised(saved, kept)
            log_shares = torch.from_numpy(per_class / per_class.sum()).log().float()
            ones, each = torch.ones(len(y)), torch.from_numpy(per_class).float()[y]
            arms = {
                "none": (None, ones),
                "loss": (log_shares, ones),
                "sampler": (None, 1 / each),
                "sqrt-sampler": (None, each**-0.5),
            }
            for arm, (adjusted, weights) in arms.items():
                logits = probe(x, y, adjusted, weights)(held)
                found = scores(logits, torch.from_numpy(saved["yv"]), per_class)
                row = {"data": options.name, "ratio": ratio, "mode": "probe", "arm": arm, "seed": seed}
                row |= {"images": len(y), "largest": per_class.max(), "smallest": per_class.min()}
                row |= {f"joint_{name}": value for name, value in found.items()}
                append_row(options.out / "probe.csv", FIELDS, row | made)
            print(options.name, ratio, seed, flush=True)


def table(files: Sequence[Path]) -> str:
    """Markdown: mean and spread over the seeds of every arm."""
    rows = []
    for file in files:
        with open(file, newline="", encoding="utf-8") as opened_file:
            rows += list(csv.DictReader(opened_file))
    if "tau" in rows[0]:
        return candidate_table(rows)
    lines = [
        "| data | ratio | arm | seeds | balanced | top-1 | rarest class |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["ratio"], row["mode"], row["arm"]), []).append(row)
    for (data, ratio, mode, arm), of in groups.items():
        cells = []
        for name in SCORES:
            values = [float(row[f"joint_{name}"]) for row in of]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        name = arm if mode == "soft" else f"{arm} ({mode})"
        lines.append(f"| {data} | 1:{ratio} | {name} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def candidate_table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown, two tables: scores, and calibration, of every arm; mean and spread over the seeds."""
    of_score = [
        "| data | ratio | arm | seeds | balanced | top-1 | rarest class |",
        "|---|---|---|---|---|---|---|",
    ]
    at = "NLL at 1 | NLL at T | ECE at 1 | ECE at T"
    of_calibration = [f"| data | ratio | arm | validation | {at} |", f"|{'---|' * 8}"]
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["ratio"], row["arm"]), []).append(row)
    for (data, ratio, arm), of in groups.items():

        def cell(name: str, digits: int, of: Sequence[dict[str, str]] = of) -> str:
            values = [float(row[name]) for row in of]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"

        start = f"| {data} | 1:{ratio} | {arm} | "
        of_score.append(f"{start}{len(of)} | {' | '.join(cell(name, 1) for name in SCORES)} |")
        for where in ("even", "uneven"):
            cells = [cell(f"{where}_{name}", 2 if "nll" in name else 1) for name in CALIBRATED]
            of_calibration.append(f"{start}{where} | {' | '.join(cells)} |")
    return "\n".join([*of_score, "", *of_calibration])


def done(file: Path, **wanted: object) -> bool:
    """Whether the table has a row with these values."""
    if not file.exists():
        return False
    with open(file, newline="", encoding="utf-8") as opened_file:
        rows = list(csv.DictReader(opened_file))
    return any(all(row[key] == str(value) for key, value in wanted.items()) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--name")
    parser.add_argument("--ratios", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--most", type=int, default=200, help="images of the largest class")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--teacher-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--mode", default="soft", help="distillation loss")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eval-fraction", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("results/imbalance"))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "deitkit-imbalance")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--candidates", type=Path)
    parser.add_argument("--probe", type=Path)
    parser.add_argument("--teacher-features", type=Path)
    parser.add_argument("--table", type=Path, nargs="+")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
        return
    if options.features:
        write_features(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    made = provenance()
    made["versions"] = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    if options.candidates:
        measure_candidates(options, made)
        return
    if options.probe:
        (measure_heads if options.teacher_features else measure_probes)(options, made)
        return
    file = options.out / f"{options.name}.csv"
    for seed in options.seeds:
        for ratio in options.ratios:
            for arm in options.arms:
                key = {"ratio": ratio, "mode": options.mode, "arm": arm, "seed": seed}
                if done(file, **key):
                    continue
                session = opened(options, ratio, seed, arm)
                cached = options.cache / f"{options.name}-{ratio}-{seed}-{options.most}-{options.image_size}"
                teacher = kept_teacher(cached, session.config.teacher, session.device, session.fit_teacher)
                teacher = session.adjusted(teacher)  # another arm may have fitted it
                with tempfile.TemporaryDirectory() as folder:
                    row = measure(session, teacher, Path(folder), arm)
                named = {"data": options.name, "epochs": options.epochs}
                append_row(file, FIELDS, named | key | row | made)
                print(options.name, ratio, arm, seed, row["joint_balanced"], row["joint_top1"], flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
