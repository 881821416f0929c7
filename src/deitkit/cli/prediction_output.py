"""What `deitkit predict` reads and prints."""

from __future__ import annotations

import csv
import glob
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..classifier import Prediction
from ..data.decode import UnreadableImage
from ..data.folder import images_under
from ..errors import SettingError
from ..tasks import SEPARATOR

Answers = Sequence[Prediction | UnreadableImage]


def expand(paths: Iterable[str]) -> list[Path]:
    """Files as they are, folders with all images below them but hidden ones, globs with what they match."""
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += map(Path, sorted(images_under(str(path))))
        elif path.exists():
            found.append(path)
        else:
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise SettingError(f"there is no file {text}; give images, folders or patterns that exist")
            found += [Path(m) for m in matches if Path(m).is_file()]
    if not found:
        raise SettingError(f"no images in {', '.join(paths)}; give images or folders that hold some")
    return found


def write_json(answers: Answers, top: int | None) -> None:
    """A JSON list to stdout, one object a image; `top` as for `Prediction.top`."""
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

    Without `top`, all labels that hold stand in one cell, as a labels.csv has them.
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
    """One line a image to stdout."""
    for a in answers:
        if isinstance(a, UnreadableImage):
            print(f"{a.path}: cannot be read ({a.reason})")
        else:
            shown = ", ".join(f"{label} {100 * p:.1f} %" for label, p in a.top(top))
            print(f"{a.source}: {shown or 'none of the labels'}")
