"""`deitkit convert`: a run's weights for other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the files.")],
    to: Annotated[str, typer.Option(help="deitkit, timm, transformers or official.")],
) -> None:
    """Write a run's model in another project's format."""
    import json

    from ..delivery.classifier import load
    from ..weights import export

    classifier = load(run)
    preprocessing = json.loads((run / "config.json").read_text(encoding="utf-8"))["preprocessing"]
    for file in export(classifier.model, destination, to, preprocessing, classifier.classes):  # type: ignore[arg-type]
        print(file)
