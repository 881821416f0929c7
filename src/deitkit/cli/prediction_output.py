"""What `deitkit predict` prints."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence

from ..classifier import Prediction
from ..data.decode import UnreadableImage
from ..tasks import SEPARATOR

Answers = Sequence[Prediction | UnreadableImage]


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
            "top": [{"label": label, "probability": p} for label, p in a.top(top)],
        }
        for a in answers
    ]
    json.dump(rows, sys.stdout, indent=1, ensure_ascii=False)
    print()


def write_csv(answers: Answers, top: int | None) -> None:
    """CSV to stdout: path, the top classes with their probabilities, and the error if there is one.

    Without `top`, all predicted labels are in one cell, as in a labels.csv.
    """
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if top is None:
        writer.writerow(["path", "labels", "probabilities", "error"])
        for a in answers:
            if isinstance(a, UnreadableImage):
                writer.writerow([a.path, "", "", a.reason])
            else:
                shown = SEPARATOR.join(f"{p:.4f}" for _, p in a.top())
                writer.writerow([a.source, SEPARATOR.join(a.labels), shown, ""])
        return
    columns = [f"{what}{k + 1}" for k in range(top) for what in ("label", "probability")]
    writer.writerow(["path", *columns, "error"])
    for a in answers:
        if isinstance(a, UnreadableImage):
            writer.writerow([a.path, *[""] * len(columns), a.reason])
        else:
            cells = [cell for label, p in a.top(top) for cell in (label, f"{p:.4f}")]
            writer.writerow([a.source, *cells, *[""] * (len(columns) - len(cells)), ""])


def write_text(answers: Answers, top: int | None) -> None:
    """One line per image to stdout."""
    for a in answers:
        if isinstance(a, UnreadableImage):
            print(f"{a.path}: cannot be read ({a.reason})")
        else:
            shown = ", ".join(f"{label} {100 * p:.1f} %" for label, p in a.top(top))
            print(f"{a.source}: {shown or 'none of the labels'}")
