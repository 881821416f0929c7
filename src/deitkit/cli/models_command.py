"""`deitkit models`: the students there are."""

from __future__ import annotations

from typing import Any

from . import options as flags


def list_models(json_: flags.Json = False) -> None:
    """List the students: size, parameters, multiply-adds, published accuracy, names of weights."""
    import json

    from ..models.deit import VARIANTS

    rows = [row for name in VARIANTS for row in _rows(name)]
    if json_:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("student", "shape", "pixels", "parameters", "multiply-adds", "ImageNet top-1")
    for row in rows:
        table.add_row(
            row["student"] + (", distilled" if row["distilled"] else ""),
            f"{row['embed_dim']}/{row['depth']}/{row['num_heads']}",
            str(row["image_size"]),
            f"{row['params'] / 1e6:.1f} M",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            "" if row["top1"] is None else f"{row['top1']:.1f} %",
        )
    Console().print(table)
    print("shape: width/depth/heads. Weights to start from, for --init:")
    for row in rows:  # not in the table, which a narrow terminal would cut
        for name in row["init"]:
            print(f"  {row['student']}: {name}")


def _rows(name: str) -> list[dict[str, Any]]:
    """One for each set of published weights; where there is none, one at 224 pixels, distilled."""
    import torch

    from ..evaluation.speed import multiply_adds
    from ..models.deit import VARIANTS, create_model
    from ..weights import PUBLISHED, SHIPPED, shipped_file

    rows = []
    shipped = [f"{SHIPPED}{name}"] if shipped_file(name).is_file() else []
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
                "distilled": model.distilled,
                "params": model.num_params,
                "multiply_adds": multiply_adds(model),
                "top1": weights.top1 if weights else None,
                "init": [f"timm:{weights.timm}", f"hf:{weights.transformers}"] if weights else shipped,
            }
        )
    return rows
