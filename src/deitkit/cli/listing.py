"""`deitkit recipes`, `deitkit settings`, `deitkit models`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as flags


def list_settings(
    name: Annotated[str | None, typer.Argument(help="A setting, or a section such as optim.")] = None,
    json_: flags.Json = False,
) -> None:
    """List every setting with its meaning, default and allowed values."""
    import dataclasses
    import json

    from ..config import describe_settings
    from ..errors import SettingError, did_you_mean

    known = describe_settings()
    rows = [row for row in known if name is None or row.key == name or row.key.startswith(f"{name}.")]
    if not rows:
        sections = {row.key.partition(".")[0] for row in known}
        also = did_you_mean(str(name), [*(row.key for row in known), *sorted(sections)])
        raise SettingError(f"there is no setting {name!r}{also or '; deitkit settings lists all of them'}")
    if json_:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        print(f"{row.key} = {_shown(row.default)}")
        print(f"    {row.help}" + (f" Give {row.allowed}." if row.allowed else ""))


def list_recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe with its settings.")] = None,
    other: Annotated[str | None, typer.Argument(help="Print how this recipe differs.")] = None,
) -> None:
    """List the recipes, print one in full, or compare two."""
    import inspect
    import json

    from .. import recipes

    if name is None:
        for key, function in recipes.RECIPES.items():
            print(f"{key}: {(function.__doc__ or '').splitlines()[0]}")
    elif other is None:
        config = recipes.get(name)
        print(inspect.getdoc(recipes.RECIPES[name]))
        print(json.dumps(config.to_dict(), indent=1))
    else:
        _print_differences(name, other)


def _print_differences(name: str, other: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from .. import recipes

    table = Table("setting", name, other)
    for key, values in recipes.get(name).differences(recipes.get(other)).items():
        if key != "recipe":
            table.add_row(key, *(_shown(value) for value in values))
    Console().print(table)


def _shown(value: object) -> str:
    """As --set takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


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
    print("shape: width/depth/heads. Initial weights, for --init:")
    for row in rows:  # a narrow terminal would cut them in the table
        for name in row["init"]:
            print(f"  {row['student']}: {name}")


def _rows(name: str) -> list[dict[str, Any]]:
    """One row per set of published weights; without any, one at 224 pixels, distilled."""
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
