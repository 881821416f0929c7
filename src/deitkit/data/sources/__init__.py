"""Images that are not a folder of files or a CSV: one module per source. Importing registers all of them."""

from __future__ import annotations

import importlib
import pkgutil

from ..source import SOURCES

__all__ = ["SOURCES"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
