"""What `deitkit check` finds of faults that were planted: near-duplicates and wrong labels.

    python benchmarks/check_data.py DATA --name NAME [--seeds 0 1 2] [--only near-duplicates]
        [--out results/check]

Near-duplicates: 3 % of the images are saved again as JPEG, at another quality, at another size, or cropped by
up to 5 % a side. A planted copy is found if it is a pair with its original; a pair of a copy and any other
image is false. own_pairs: among the images themselves. part_pairs: among a random quarter of the images
alone; part_false: those of them that are no pair among all images, and stood out for want of neighbours only.

Wrong labels: 5 % and 10 % of the labels of the training images are replaced by another class, drawn evenly,
and looked for among the training images alone, so that no label of a validation image has a part in it. The
data set's own labels count as right, so its own mistakes count as false. Accuracy: top-1 of a linear probe on
the teacher's features of the training images, measured on the validation images with the data set's own
labels; fitted to the labels as they are, with those planted, with those found replaced by what was suggested,
and without them. Rows with searched=all are of an earlier script, which planted and looked for wrong labels
in the validation images too, as `deitkit check` does: what these told made its corrections a little better.

A row is appended to OUT/near-duplicates.csv and OUT/wrong-labels.csv for each seed; one that is there is not
run again. Features are kept in --cache.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deitkit.config import Config
from deitkit.data.decode import open_rgb
from deitkit.data.image_set import ImageSet
from deitkit.data.near_duplicates import THUMBNAIL, find_duplicates, near_pairs, thumbnails_of
from deitkit.data.splits import load_splits
from deitkit.evaluation.data_check import features_of
from deitkit.evaluation.label_check import find_wrong_labels
from deitkit.teachers.probe import fit_probe
from provenance import provenance
from rows import append_row

COPIES = 0.03
SEARCHED = "train"  # the images in which wrong labels are planted and looked for
KINDS = ("quality", "size", "crop")
WHERE = ("machine", "versions", "date", "command")
DUPLICATE_FIELDS = (
    "data",
    "seed",
    "kind",
    "planted",
    "found",
    "recall",
    "false_pairs",
    "own_pairs",
    "part_pairs",
    "part_false",
    *WHERE,
)
LABEL_FIELDS = (
    *("data", "searched", "seed", "share", "planted", "flagged", "found", "recall", "precision"),
    *("right_suggestions", "top1_own_labels", "top1_planted", "top1_relabelled", "top1_excluded", *WHERE),
)


def again(path: Path, kind: str, rng: random.Random) -> Image.Image:
    """The image saved once more as JPEG."""
    image = open_rgb(path)
    width, height = image.size
    if kind == "size":
        scale = rng.uniform(0.5, 0.9)
        image = image.resize((round(scale * width), round(scale * height)), Image.Resampling.LANCZOS)
    elif kind == "crop":
        left, top, right, bottom = (rng.uniform(0, 0.05) for _ in range(4))
        image = image.crop(
            (
                round(left * width),
                round(top * height),
                round((1 - right) * width),
                round((1 - bottom) * height),
            )
        )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=rng.randint(50, 90))
    return Image.open(file)


def near_duplicates(images: ImageSet, thumbnails: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """A row for each kind of copy."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(images)), round(COPIES * len(images)))
    kinds = [KINDS[k % len(KINDS)] for k in range(len(chosen))]
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for k, (i, kind) in enumerate(zip(chosen, kinds, strict=True)):
            file = Path(folder) / f"{k}.png"  # the JPEG's pixels, whatever they are read with
            again(images.file(i), kind, rng).convert("RGB").save(file)
            made.append(THUMBNAIL(file)[0])
    pairs = near_pairs(np.concatenate([thumbnails, np.stack(made)]))
    n = len(images)
    own = near_pairs(thumbnails)
    part = np.sort(np.random.RandomState(seed).permutation(n)[: n // 4])
    of_part = {(int(part[i]), int(part[j])) for i, j in near_pairs(thumbnails[part])}
    rows = []
    for kind in KINDS:
        planted = {(i, n + k) for k, (i, of) in enumerate(zip(chosen, kinds, strict=True)) if of == kind}
        copies = {j for _, j in planted}
        found = planted & set(pairs)
        false = [p for p in pairs if copies & set(p) and p not in planted]
        rows.append(
            {
                "kind": kind,
                "planted": len(planted),
                "found": len(found),
                "recall": f"{len(found) / len(planted):.3f}",
                "false_pairs": len(false),
                "own_pairs": len(own),
                "part_pairs": len(of_part),
                "part_false": len(of_part - set(own)),
            }
        )
    return rows


def planted_labels(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """`labels` (N,), a share of them replaced by another class."""
    rng = np.random.RandomState(seed)
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + rng.randint(1, num_classes, len(chosen))) % num_classes
    return noisy


def top1(
    features: Tensor, labels: np.ndarray, fitted: np.ndarray, truth: np.ndarray, measured: np.ndarray
) -> str:
    """Percent of the images `measured` that a probe has right which is fitted to `labels` of `fitted`."""
    y = torch.from_numpy(labels[fitted])
    head = fit_probe(features[fitted][None], y, int(truth.max()) + 1, seed=0).head
    with torch.no_grad():
        right = head(features[measured]).argmax(1).numpy() == truth[measured]
    return f"{100 * right.mean():.2f}"


def wrong_labels(
    features: Tensor, images: ImageSet, groups: np.ndarray, num_train: int, share: float, seed: int
) -> dict[str, Any]:
    """The row of one share and seed. The training images come first."""
    truth, num_classes = images.labels, len(images.classes)
    train, val = np.arange(num_train), np.arange(num_train, len(truth))
    noisy = truth.copy()
    noisy[train] = planted_labels(truth[train], num_classes, share, seed)
    planted = set(np.flatnonzero(noisy != truth).tolist())
    of_train = torch.from_numpy(noisy[train])
    flagged = find_wrong_labels(features[train], of_train, num_classes, groups[train], seed)
    found = [w for w in flagged if w.index in planted]
    relabelled = noisy.copy()
    for w in flagged:
        relabelled[w.index] = w.suggested
    kept = np.setdiff1d(train, [w.index for w in flagged])
    return {
        "searched": SEARCHED,
        "share": share,
        "planted": len(planted),
        "flagged": len(flagged),
        "found": len(found),
        "recall": f"{len(found) / len(planted):.3f}",
        "precision": f"{len(found) / max(1, len(flagged)):.3f}",
        "right_suggestions": f"{sum(w.suggested == truth[w.index] for w in found) / max(1, len(found)):.3f}",
        "top1_own_labels": top1(features, truth, train, truth, val),
        "top1_planted": top1(features, noisy, train, truth, val),
        "top1_relabelled": top1(features, relabelled, train, truth, val),
        "top1_excluded": top1(features, noisy, kept, truth, val),
    }


def cached_features(images: ImageSet, config: Config, cache: Path) -> Tensor:
    file = cache / f"{images.fingerprint(times=False)}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, features_of(images, config.teacher, config.data, torch.device("cpu")).numpy())
    return torch.from_numpy(np.load(file))


def done(table: Path, **wanted: object) -> bool:
    """Whether the table has a row with these values."""
    if not table.exists():
        return False
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return any(all(row[key] == str(value) for key, value in wanted.items()) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["near-duplicates"])
    parser.add_argument("--out", type=Path, default=Path("results/check"))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "deitkit-check")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = provenance()
    made["versions"]["cleanlab"] = version("cleanlab")
    made["versions"] = ", ".join(f"{name} {number}" for name, number in made["versions"].items())

    config = Config()
    splits = load_splits(options.data, config.data)
    images = splits.everything
    thumbnails, _ = thumbnails_of(images, config.data)
    table = options.out / "near-duplicates.csv"
    for seed in options.seeds:
        if not done(table, data=options.name, seed=seed):
            for row in near_duplicates(images, thumbnails, seed):
                append_row(table, DUPLICATE_FIELDS, {"data": options.name, "seed": seed} | row | made)

    if options.only:
        return
    groups = find_duplicates(images, thumbnails).group_of(len(images))
    features = cached_features(images, config, options.cache)
    table = options.out / "wrong-labels.csv"
    for seed in options.seeds:
        for share in (0.05, 0.1):
            if not done(table, data=options.name, searched=SEARCHED, seed=seed, share=share):
                row = wrong_labels(features, images, groups, len(splits.train), share, seed)
                append_row(table, LABEL_FIELDS, {"data": options.name, "seed": seed} | row | made)


if __name__ == "__main__":
    main()
