"""Export formats: one module per format. Importing this package registers all of them."""

from __future__ import annotations

import importlib
import pkgutil

from ..export_format import FORMATS

__all__ = ["FORMATS"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
