"""Which weights of a run to keep, if there are few validation images? Replays rules on random small splits.

    python benchmarks/which_weights.py FOLDER --name NAME [--fraction 0.1] [--seeds 0 1 2] [--epochs N]

A student is trained once per seed; its raw and averaged weights' outputs on all validation images are kept
after every evaluation. Then, many times, some validation images are drawn, a rule chooses an evaluation by
them, and the chosen weights are scored on all others. So a rule is measured where few images decide, and
by images that it has not seen. Rows are appended to results/which-weights.csv.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import deitkit
from deitkit.evaluation.evaluate import Predictions, evaluate_student
from deitkit.models import joint_probabilities
from deitkit.training import student_training
from deitkit.training.schedule import Schedule
from rows import append_row

RESULTS = Path(__file__).parents[1] / "results" / "which-weights.csv"
DRAWS = 300
FIELDS = ["data", "fraction", "seed", "evaluations", "images", "rule", "balanced", "date"]
Rule = Callable[[Tensor, Tensor], tuple[int, int]]  # losses, top-1 (E, 2: raw and averaged) -> evaluation


def last_lower_loss(losses: Tensor, top1: Tensor) -> tuple[int, int]:
    """The last evaluation, raw or averaged by loss."""
    return len(losses) - 1, int(losses[-1].argmin())


def last_average(losses: Tensor, top1: Tensor) -> tuple[int, int]:
    return len(losses) - 1, 1


def best_loss(losses: Tensor, top1: Tensor) -> tuple[int, int]:
    """The averaged weights with the lowest loss."""
    return int(losses[:, 1].argmin()), 1


def best_top1(losses: Tensor, top1: Tensor) -> tuple[int, int]:
    """The averaged weights with the highest top-1, the last of equal ones."""
    return int((top1[:, 1] + 1e-6 * torch.arange(len(top1))).argmax()), 1


def best_top1_then_loss(losses: Tensor, top1: Tensor) -> tuple[int, int]:
    """Among averaged weights within one standard error of the highest top-1, the lowest loss."""
    top = top1[:, 1]
    error = (top.max() * (1 - top.max()) / 50).clamp(min=1e-4).sqrt()
    near = top >= top.max() - error
    return int(losses[:, 1].masked_fill(~near, float("inf")).argmin()), 1


RULES: dict[str, Rule] = {
    "last, raw or averaged by loss": last_lower_loss,
    "last averaged": last_average,
    "averaged, lowest loss": best_loss,
    "averaged, highest top-1": best_top1,
    "averaged, near the highest top-1, lowest loss": best_top1_then_loss,
}


def recorded(folder: Path, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Trains; returns log-probabilities (E, 2, n, K) on validation, raw and averaged, and labels (n,)."""
    outputs: list[Tensor] = []
    labels = torch.empty(0)

    def recording(*arguments: Any, **options: Any) -> Predictions:
        nonlocal labels
        predictions = evaluate_student(*arguments, **options)
        outputs.append(joint_probabilities(predictions.heads(), "multiclass").clamp(min=1e-12).log())
        labels = predictions.labels
        return predictions

    student_training.evaluate_student = recording
    # As often as in a run with a fourth of its images held out, however many there are here.
    often = Schedule.evaluates_after
    Schedule.evaluates_after = lambda self, epoch, val_share: often(self, epoch, 1 / 3)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        deitkit.train(folder, Path(out) / "run", recipe="small-data", teacher__deploy_sizes=None, **settings)
    student_training.evaluate_student, Schedule.evaluates_after = evaluate_student, often  # type: ignore[method-assign]
    return torch.stack(outputs).unflatten(0, (-1, 2)), labels


def replay(log_probabilities: Tensor, labels: Tensor, images: int, seed: int) -> dict[str, float]:
    """The mean balanced accuracy, in percent, of each rule with `images` validation images to choose by."""
    right = (log_probabilities.argmax(-1) == labels).double()  # (E, 2, n)
    loss = -log_probabilities.gather(-1, labels.view(1, 1, -1, 1).expand(*right.shape[:2], -1, 1))[..., 0]
    generator = torch.Generator().manual_seed(seed)
    weight = 1.0 / torch.bincount(labels)[labels].double()  # of an image, for balanced accuracy
    scores: dict[str, list[float]] = {name: [] for name in [*RULES, "best possible"]}
    for _ in range(DRAWS):
        order = torch.randperm(len(labels), generator=generator)
        chosen, rest = order[:images], order[images:]
        losses, top1 = loss[..., chosen].mean(-1), right[..., chosen].mean(-1)
        true = 100 * (right[..., rest] * weight[rest]).sum(-1) / weight[rest].sum()
        for name, rule in RULES.items():
            scores[name].append(float(true[rule(losses, top1)]))
        scores["best possible"].append(float(true.max()))
    return {name: sum(values) / len(values) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training images")
    parser.add_argument("--eval-fraction", type=float, default=1.0, help="share of the validation images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int, nargs="+", default=[30, 75, 200], help="to choose by")
    options = parser.parse_args()
    settings: dict[str, Any] = {
        "data__train_fraction": options.fraction,
        "data__eval_fraction": options.eval_fraction,
    }
    if options.epochs:
        settings["train__epochs"] = options.epochs
    RESULTS.parent.mkdir(exist_ok=True)
    for seed in options.seeds:
        found, labels = recorded(options.folder, settings | {"train__seed": seed})
        for images in options.images:
            for rule, score in replay(found, labels, images, seed).items():
                today = datetime.date.today().isoformat()
                values = (
                    options.name,
                    options.fraction,
                    seed,
                    len(found),
                    images,
                    rule,
                    f"{score:.2f}",
                    today,
                )
                append_row(RESULTS, FIELDS, dict(zip(FIELDS, values, strict=True)))
                print(*values)


if __name__ == "__main__":
    main()
