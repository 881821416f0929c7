"""Are explanations right? Deletion and insertion curves, and the check with randomised weights.

    python benchmarks/explain.py RUN --out results/explain/NAME.json
    python benchmarks/explain.py RUN --model teacher --out results/explain/NAME-teacher.json

On validation images of a run, spread over its classes, each method of `deitkit explain` ranks the cells of a
grid, 8 x 8 by default, for the class that the model predicts. Petsiuk et al., RISE, arXiv 1806.07421:

- deletion: the cells are blurred, the most important first; the area under the curve of the predicted
  class's probability should be small;
- insertion: they return to a blurred image, the most important first; the area should be large.

A method is worth something if it beats a random order of the same cells, and a Gaussian in the middle of the
image, which knows nothing of the image but that photographers aim. Intervals are bootstrapped over images.

Adebayo et al., arXiv 1810.03292: with random weights in the network, a map that stays the same explains the
image's edges and not the model. Reported is the mean rank correlation of maps before and after: with the head
drawn anew, and with all weights drawn anew. It should be near 0 for all weights. A method that does not look
at the head (attention, rollout) keeps a correlation of 1 in the first.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitkit import log
from deitkit.classifier import Classifier, StudentClassifier, load_folder, model_folder
from deitkit.data.image_set import evenly_spread
from deitkit.evaluation.explanation import maps_of
from deitkit.evaluation.run_images import run_splits
from deitkit.io import write_json
from provenance import provenance

Order = Tensor  # (n, cells), the most important first
WAYS = ("deletion", "insertion")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="student")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--grid", type=int, default=8, help="cells a side")
    parser.add_argument("--data", type=Path, help="the run's images, if they have moved")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    log.show_progress()
    folder = model_folder(options.run, options.model)
    classifier = load_folder(folder, "cpu")
    val = run_splits(folder, classifier, options.data).val
    chosen = val.subset(evenly_spread(len(val), options.images))
    views = torch.from_numpy(np.stack([classifier.pixels(chosen.file(i)) for i in range(len(chosen))]))
    found = measure(classifier, views, options.grid)
    found |= {"run": options.run.name, "model": options.model, **provenance()}
    show(found)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, found)


def measure(classifier: Classifier, views: Tensor, grid: int) -> dict:
    """Everything about (n, 3, H, W) uint8 views."""
    before = probabilities(classifier, views.float() / 255)
    targets = before.argmax(1)
    maps = {name: of.mean(1) for name, of in all_maps(classifier, views, targets).items()}
    orders = {name: ranked(of, grid) for name, of in maps.items()}
    orders |= {"random": random_order(len(views), grid), "middle": middle_order(len(views), grid)}
    areas: dict[str, dict[str, Tensor]] = {}
    with log.progress_bar("deleting and inserting", len(orders)) as advance:
        for name, order in orders.items():
            areas[name] = {way: areas_of(classifier, views, targets, order, way) for way in WAYS}
            advance(1)
    randomised = {what: with_random(classifier, what) for what in ("head", "all")}
    correlations: dict[str, dict[str, float]] = {}
    for what, other in randomised.items():
        for name, of in all_maps(other, views, targets).items():
            correlations.setdefault(name, {})[what] = correlation(maps[name], of.mean(1), grid)
    return {
        "images": len(views),
        "grid": grid,
        "probability": float(before.max(1).values.mean()),
        "areas": {
            name: {way: summary(value) for way, value in by_way.items()}
            | {
                f"{way}_against_{other}": summary(by_way[way] - areas[other][way])
                for other in ("random", "middle")
                if name not in ("random", "middle")
                for way in by_way
            }
            for name, by_way in areas.items()
        },
        "rank_correlation_with_random_weights": correlations,
    }


def all_maps(classifier: Classifier, views: Tensor, targets: Tensor, batch: int = 20) -> dict[str, Tensor]:
    """By method, (n, P, gh, gw)."""
    pairs = zip(views.split(batch), targets.split(batch), strict=True)
    parts = [maps_of(classifier, *pair)[0] for pair in pairs]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def probabilities(classifier: Classifier, views: Tensor, batch: int = 100) -> Tensor:
    return torch.cat([classifier.backend(part)[0].cpu() for part in views.split(batch)])


def ranked(maps: Tensor, grid: int) -> Order:
    """Cells of a grid by the mean weight inside, largest first; equal ones in a random order."""
    cells = cells_of(maps, grid)
    shuffled = random_order(len(maps), grid)
    of_shuffled = cells.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, of_shuffled)


def cells_of(maps: Tensor, grid: int) -> Tensor:
    """(n, h, w) -> the mean weight in each cell of the grid, (n, cells)."""
    large = F.interpolate(maps[:, None], (8 * grid, 8 * grid), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(large, grid).flatten(1)


def random_order(n: int, grid: int) -> Order:
    return torch.rand(n, grid * grid, generator=torch.Generator().manual_seed(0)).argsort(1)


def middle_order(n: int, grid: int) -> Order:
    place = torch.arange(grid).float() - (grid - 1) / 2
    return (place[:, None] ** 2 + place**2).flatten().argsort(stable=True).expand(n, -1)


def areas_of(classifier: Classifier, views: Tensor, targets: Tensor, order: Order, way: str) -> Tensor:
    """The area under each image's curve of 17 points, (n,), from 0 to 1."""
    sharp, blurred = views.float() / 255, blur(views.float() / 255)
    first, last = (sharp, blurred) if way == "deletion" else (blurred, sharp)
    cells = order.shape[1]
    place = order.argsort(1)  # of each cell in the order
    curve = []
    for share in torch.linspace(0, 1, 17):
        changed = (place < round(float(share) * cells)).float().unflatten(1, (1, math.isqrt(cells), -1))
        mask = F.interpolate(changed, views.shape[-2:], mode="nearest")
        shown = first * (1 - mask) + last * mask
        curve.append(probabilities(classifier, shown).gather(1, targets[:, None])[:, 0])
    return torch.trapezoid(torch.stack(curve), dx=1 / 16, dim=0)


def blur(views: Tensor) -> Tensor:
    """A Gaussian blur whose deviation is an eighth of the shorter side."""
    sigma = min(views.shape[-2:]) / 8
    reach = int(2 * sigma)
    place = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(views, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)


def with_random(classifier: Classifier, what: str) -> Classifier:
    """The classifier with the head's or all weights drawn anew, from normals of their own deviations."""
    generator = torch.Generator().manual_seed(0)

    def draw(network: nn.Module) -> None:
        with torch.no_grad():
            for p in network.parameters():
                if p.ndim > 1:
                    p.copy_(torch.randn(p.shape, generator=generator) * p.std())

    if isinstance(classifier, StudentClassifier):
        model = copy.deepcopy(classifier.model)
        heads = [head for head in (model.head, model.head_dist) if head is not None]
        for network in heads if what == "head" else [model]:
            draw(network)
        return replace(classifier, model=model)
    other = copy.copy(classifier)
    other.__dict__["_graph"] = copy.deepcopy(classifier.as_graph())
    for member in other.as_graph().members:
        draw(member.head if what == "head" else member)
    return other


def correlation(one: Tensor, other: Tensor, grid: int) -> float:
    """The mean over images of Spearman's rank correlation of two maps (n, h, w), by cells of the grid."""
    a, b = (ranks(cells_of(maps, grid)) for maps in (one, other))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return float(((a * b).sum(1) / size.clamp(min=1e-9)).mean())


def ranks(values: Tensor) -> Tensor:
    """(n, cells) -> the rank of each value in its row; equal values share their mean rank."""
    one, other = values[:, :, None], values[:, None, :]
    return (one > other).double().sum(2) + (one == other).double().sum(2) / 2


def summary(values: Tensor) -> list[float]:
    """Mean, and its bootstrapped 95 % interval."""
    draw: Callable[..., np.ndarray] = np.random.default_rng(0).integers
    sample = values.numpy()[draw(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.percentile(sample, [2.5, 97.5])
    return [float(values.mean()), float(low), float(high)]


def show(found: dict) -> None:
    print(json.dumps({k: v for k, v in found.items() if not isinstance(v, dict)}))
    for name, by_way in found["areas"].items():
        for way, (mean, low, high) in by_way.items():
            print(f"{name:>16} {way:<28} {100 * mean:6.1f} ({100 * low:.1f} to {100 * high:.1f})")
    print(json.dumps(found["rank_correlation_with_random_weights"], indent=1))


if __name__ == "__main__":
    main()
