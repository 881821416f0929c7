"""`deitkit recipes`: the named starting points."""

from __future__ import annotations

from typing import Annotated

import typer


def list_recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, with its settings.")] = None,
) -> None:
    """List the recipes, or print one in full."""
    import inspect
    import json

    from .. import recipes

    if name is None:
        for key, function in recipes.RECIPES.items():
            print(f"{key}: {(function.__doc__ or '').splitlines()[0]}")
        return
    config = recipes.get(name)
    print(inspect.getdoc(recipes.RECIPES[name]))
    print(json.dumps(config.to_dict(), indent=1))
