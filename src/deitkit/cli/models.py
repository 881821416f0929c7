"""`deitkit models`: the students there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def list_models(json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the students: size, parameters, multiply-adds, published accuracy, names of weights."""
    import json

    from ..model import VARIANTS

    rows = [row for name in VARIANTS for row in _rows(name)]
    if json_:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    columns = "student", "width x depth, heads", "pixels", "parameters", "multiply-adds", "ImageNet top-1 %"
    table = Table(*columns, "--init")
    for row in rows:
        table.add_row(
            row["student"],
            f"{row['embed_dim']} x {row['depth']}, {row['num_heads']}",
            str(row["image_size"]),
            f"{row['params'] / 1e6:.1f} M",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            "" if row["top1"] is None else f"{row['top1']:.1f}",
            "\n".join(row["init"]),
        )
    Console().print(table)


def _rows(name: str) -> list[dict[str, Any]]:
    """One for each set of published weights; where there is none, one at 224 pixels, distilled."""
    import torch

    from ..evaluation.flops import multiply_adds
    from ..model import VARIANTS, create_model
    from ..weights import PUBLISHED

    rows = []
    for weights in PUBLISHED[name] or (None,):
        size = weights.image_size if weights else 224
        with torch.device("meta"):
            model = create_model(
                name, num_classes=1000, image_size=size, distilled=weights.distilled if weights else True
            )
        rows.append(
            {
                "student": name,
                "embed_dim": VARIANTS[name].embed_dim,
                "depth": VARIANTS[name].depth,
                "num_heads": VARIANTS[name].num_heads,
                "image_size": size,
                "distilled": model.head_dist is not None,
                "params": model.num_params,
                "multiply_adds": multiply_adds(model, (size, size)),
                "top1": weights.top1 if weights else None,
                "init": [f"timm:{weights.timm}", f"hf:{weights.transformers}"] if weights else [],
            }
        )
    return rows
