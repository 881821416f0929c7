"""Where teachers come from: one module per source. Importing this package registers all of them."""

from __future__ import annotations

import importlib
import pkgutil

from ..pretrained import SOURCES

__all__ = ["SOURCES"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
