"""`deitkit export`: a run as one file for another runtime, or as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .. import log
from ..errors import SettingError
from . import options as flags

if TYPE_CHECKING:
    from ..deploy.export_format import Precision
    from ..deploy.exporter import Exported

_LOSS = 0.5  # points of accuracy from which int8 is warned of


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    to: Annotated[
        str, typer.Option(help="onnx, openvino, torch-export, executorch, litert, coreml, ncnn or web.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="The file: .onnx, .xml, .pt2, .pte, .tflite, .mlpackage or .param; for web a new folder."
        ),
    ],
    model: flags.Model = "recommended",
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 (weights) or int8, calibrated on the run's images.")
    ] = "fp32",
    batch: Annotated[
        str,
        typer.Option(help="Images at a time: dynamic or a number. By default dynamic where there is that."),
    ] = "auto",
    input: Annotated[
        str,
        typer.Option(help="float: views in [0, 1]; uint8: an image of any size, resized inside the graph."),
    ] = "float",
    data: Annotated[Path | None, typer.Option(help="Other images for int8, a folder per class.")] = None,
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge in each block.")] = 0,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="For web: npm, to fetch ONNX Runtime Web once; or its folder. By default from the cache."
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", hidden=True)] = False,
) -> None:
    """Write a run's classifier for another runtime, open it again there, and compare; or as a web page."""
    from ..deploy.exporter import export_run

    if int8:
        log.warning("--int8 is now --precision int8")
        precision = "int8"
    if input not in ("float", "uint8"):
        raise SettingError(f"--input is float or uint8, not {input!r}")
    exported = export_run(
        run,
        to,
        out,
        model=model,
        precision=cast("Precision", precision),
        batch=_batch(batch),
        raw=input == "uint8",
        data=data,
        merge=merge,
        runtime=runtime,
    )
    for file in exported.files:
        print(file)
    for line in _described(exported):
        print(line)
    if to == "web":
        log.info(f"to look at it: python -m http.server --directory {out}, then open http://localhost:8000")


def _batch(given: str) -> int | None:
    if given in ("auto", "dynamic"):
        return None
    if not given.isdecimal() or int(given) < 1:
        raise SettingError(f"--batch is dynamic or a number of images from 1, not {given!r}")
    return int(given)


def _described(exported: Exported) -> list[str]:
    """What was measured, a line each."""
    found, cost = exported.reopening, exported.int8
    size = f"{exported.size / 1e6:.1f} MB"
    if found is None:
        return [f"{size}; its runtime is not on this system: only read again"]
    what = "validation images" if found.of_run else "images of noise"
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    lines = [
        f"{size}; opened again on {found.images} {what}: the same predictions as PyTorch on "
        f"{found.same_answers}, probabilities within {found.largest_difference:.1g}; "
        f"{found.ms_per_image:.2g} ms per image, "
        f"{found.images_per_s:.0f} images/s on {threads}"
    ]
    if cost is not None:
        change = cost.difference
        lines.append(
            f"{cost.metric}: int8 {cost.int8:.1f} %, float {cost.fp32:.1f} %: {change.value:+.1f} points "
            f"(95 % interval {change.low:+.1f} to {change.high:+.1f}); "
            f"float runs {cost.fp32_images_per_s:.0f} images/s"
        )
        if found.images_per_s < cost.fp32_images_per_s:
            lines.append("int8 is slower than float here: export it as --precision fp32 for this machine")
        if change.value < -_LOSS:
            lines.append(f"int8 loses more than {_LOSS} points; prefer fp16 or fp32")
    return lines
