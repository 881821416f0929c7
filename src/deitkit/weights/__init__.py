"""Reads weights of other projects, fits them to a model of another shape, and exports them.

`read` returns published keys whatever the source's format; `load_into` fits them to a model and returns what
it changed; `export` writes a format that timm, transformers or the official code load. Each format is a
module in `formats/`.
"""

from . import formats as _formats  # registers the formats
from .fitting import load_into
from .format import FORMATS, CheckpointInfo, WeightsFormat, export
from .formats.transformers import transformers_keys
from .initial import PUBLISHED, SHIPPED, Published, find_initial, shipped_file
from .sources import STEM, Weights, published_keys, read, read_state, stem_weights

del _formats

__all__ = [
    "FORMATS",
    "PUBLISHED",
    "SHIPPED",
    "STEM",
    "CheckpointInfo",
    "Published",
    "Weights",
    "WeightsFormat",
    "export",
    "find_initial",
    "load_into",
    "published_keys",
    "read",
    "read_state",
    "shipped_file",
    "stem_weights",
    "transformers_keys",
]
