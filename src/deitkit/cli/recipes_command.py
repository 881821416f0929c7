"""`deitkit recipes`: the named starting points."""

from __future__ import annotations

from typing import Annotated

import typer


def list_recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, with its settings.")] = None,
    other: Annotated[str | None, typer.Argument(help="Another one, to be told the differences.")] = None,
) -> None:
    """List the recipes, print one in full, or what differs between two."""
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
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
