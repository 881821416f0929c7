"""Weights in from other projects, fitted to a model of another shape, and out again.

`read` gives published keys whatever the file's style; `load_into` fits them to a model and says what
it changed; `export` writes what timm, transformers and the official code load.
"""

from .exporting import Format, export
from .fitting import load_into
from .initial import PUBLISHED, SHIPPED, Published, find_initial, shipped_file
from .keys import published_keys, transformers_keys
from .sources import Weights, read, read_state

__all__ = [
    "PUBLISHED",
    "SHIPPED",
    "Format",
    "Published",
    "Weights",
    "export",
    "find_initial",
    "load_into",
    "published_keys",
    "read",
    "read_state",
    "shipped_file",
    "transformers_keys",
]
