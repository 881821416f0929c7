"""What `deitkit predict` prints."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable

from ..classifier import Prediction
from ..data.decode import UnreadableImage
from ..tasks import SEPARATOR

Answers = Iterable[Prediction | UnreadableImage]


def write_json(answers: Answers, top: int | None) -> None:
    """A JSON list to stdout, one object per image; `top` as for `Prediction.top`."""
    rows = [
        {"path": str(a.path), "error": a.reason}
        if isinstance(a, UnreadableImage)
        else {
            "path": a.source,
            "label": a.label,
            "probability": a.probability,
            "labels": list(a.labels),
            "class_label": a.class_label,
            "distill_label": a.distill_label,
            "answered": a.answered,
            "unfamiliarity": a.unfamiliarity,
            "top": [{"label": label, "probability": p} for label, p in a.top(top)],
        }
        for a in answers
    ]
    json.dump(rows, sys.stdout, indent=1, ensure_ascii=False)
    print()


def write_csv(answers: Answers, top: int | None) -> None:
    """CSV to stdout: path, the top classes with their probabilities, unfamiliarity, and the error, if any.

    Without `top`, all predicted labels are in one cell, as in a labels.csv. Without an answer "unknown" is
    in place of the first class.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if top is None:
        writer.writerow(["path", "labels", "probabilities", "unfamiliarity", "error"])
        for a in answers:
            if isinstance(a, UnreadableImage):
                writer.writerow([a.path, "", "", "", a.reason])
            else:
                shown = _shown(a, None)
                labels = SEPARATOR.join(label for label, _ in shown)
                probabilities = SEPARATOR.join(f"{p:.4f}" for _, p in shown)
                writer.writerow([a.source, labels, probabilities, _score(a), ""])
        return
    columns = [f"{what}{k + 1}" for k in range(top) for what in ("label", "probability")]
    writer.writerow(["path", *columns, "unfamiliarity", "error"])
    for a in answers:
        if isinstance(a, UnreadableImage):
            writer.writerow([a.path, *[""] * len(columns), "", a.reason])
        else:
            cells = [cell for label, p in _shown(a, top) for cell in (label, f"{p:.4f}")]
            writer.writerow([a.source, *cells, *[""] * (len(columns) - len(cells)), _score(a), ""])


def write_text(answers: Answers, top: int | None) -> None:
    """One line per image to stdout."""
    for a in answers:
        if isinstance(a, UnreadableImage):
            print(f"{a.path}: cannot be read ({a.reason})")
        else:
            print(f"{a.source}: {_text(a, top)}")


def _text(answer: Prediction, top: int | None) -> str:
    if not answer.answered:
        [(nearest, p)] = answer.top(1)
        return f"{answer.label} (most likely {nearest}, {100 * p:.1f} %)"
    shown = ", ".join(f"{label} {100 * p:.1f} %" for label, p in answer.top(top))
    return shown or "none of the labels"


def _shown(answer: Prediction, top: int | None) -> list[tuple[str, float]]:
    """The classes to name with their probabilities; "unknown" alone if it is not an answer."""
    return answer.top(top) if answer.answered else [(answer.label, answer.probability)]


def _score(answer: Prediction) -> str:
    return "" if answer.unfamiliarity is None else f"{answer.unfamiliarity:.4f}"
