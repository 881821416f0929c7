"""Every export of a run: size, agreement with PyTorch and speed, as a table for docs/deploy.md.

    python benchmarks/exports.py RUN [--model student] [--formats onnx litert ...] [--merge 8] [--out FILE]

Each format in each of its precisions, with views as input, and where the format has it with an image of any
size ("uint8") and with --merge tokens merged. Every file is opened again by its own runtime in a process of
its own, on validation images of the run (`deitkit.deploy.exporter`). Formats whose packages are missing, and
what a converter refuses, are rows with the reason. The threads are those of OMP_NUM_THREADS. Run it on a
quiet machine. The table goes to stderr; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deitkit.deploy.export_format import ExportFormat
from deitkit.deploy.export_formats import FORMATS
from deitkit.deploy.exporter import Exported, export_run
from deitkit.errors import DeitkitError
from provenance import provenance


def variants(form: ExportFormat, merge: int) -> Iterator[dict[str, Any]]:
    """Options of `export_run` to measure a format with."""
    yield from ({"precision": precision} for precision in form.precisions)
    if form.takes_raw:
        yield {"raw": True}
    if merge:
        yield {"merge": merge}


def row_of(name: str, options: dict[str, Any], run: Path, model: str) -> dict[str, Any]:
    """What was measured, or why nothing was."""
    form = FORMATS[name]
    about = {"format": name, "precision": options.get("precision", "fp32"), **options}
    with tempfile.TemporaryDirectory() as folder:
        try:
            exported = export_run(run, name, Path(folder) / f"model{form.suffix}", model=model, **options)
        except DeitkitError as error:
            return about | {"failed": str(error).replace(folder, "").replace("/model", "model")}
    return about | measured(exported)


def measured(exported: Exported) -> dict[str, Any]:
    row: dict[str, Any] = {"mb": round(exported.size / 1e6, 2)}
    found, cost = exported.reopening, exported.int8
    if found is not None:
        row |= {
            "images": found.images,
            "same_answers": found.same_answers,
            "largest_difference": float(f"{found.largest_difference:.1e}"),
            "ms_per_image": round(found.ms_per_image, 2),
            "images_per_s": round(found.images_per_s, 1),
            "threads": found.threads,
        }
    if cost is not None:
        change = cost.difference
        row |= {"points": round(change.value, 2), "interval": [round(change.low, 2), round(change.high, 2)]}
        row |= {"fp32_images_per_s": round(cost.fp32_images_per_s, 1)}
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    what = row["precision"] + (", uint8 in" if row.get("raw") else "")
    what += f", {row['merge']} merged" if row.get("merge") else ""
    head = f"| {row['format']} | {what} |"
    if "failed" in row:
        return f"{head} | | | | {row['failed']} |"
    if "images" not in row:
        return f"{head} {row['mb']} | | | | its runtime is Apple's: read again only |"
    lost = ""
    if "points" in row:
        low, high = row["interval"]
        lost = f"{row['points']:+.1f} points ({low:+.1f} to {high:+.1f}), float {row['fp32_images_per_s']}/s"
    return (
        f"{head} {row['mb']} | {row['same_answers']} of {row['images']} | {row['largest_difference']:.0e} | "
        f"{row['ms_per_image']} ms, {row['images_per_s']}/s | {lost} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="student")
    parser.add_argument("--formats", nargs="+", default=[name for name in FORMATS if name != "web"])
    parser.add_argument("--merge", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print(
        "| format | precision | MB | same answer | largest difference | one image, images/s | |",
        file=sys.stderr,
    )
    print("|---|---|---|---|---|---|---|", file=sys.stderr)
    rows = []
    for name in given.formats:
        for options in variants(FORMATS[name], given.merge):
            rows.append(row_of(name, options, given.run, given.model))
            print(line(rows[-1]), file=sys.stderr, flush=True)
    found = json.dumps({"model": given.model, "rows": rows, **provenance()})
    if given.out is not None:
        given.out.write_text(found + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
