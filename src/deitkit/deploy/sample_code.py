"""Short programs that are written beside an export, so that it can be tried at once."""

from __future__ import annotations

from pathlib import Path

from .export_format import ExportJob

_PYTHON = '''"""Classifies images with {name}: python {file} IMAGE...

pip install {packages} numpy pillow
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from PIL import Image, ImageOps

if len(sys.argv) < 2:
    sys.exit(__doc__)
here = Path(__file__).parent
{opening}


{view}


for path in sys.argv[1:]:
    try:
        given = {given}
    except Exception as error:  # Pillow raises errors of many types
        sys.exit(f"{{path}} cannot be read as an image: {{error}}")
    probabilities = {running}
    for k in np.argsort(-probabilities)[:3]:
        print(f"{{path}}: {{about['classes'][k]}} {{probabilities[k]:.3f}}")
'''
_VIEW = '''def view_of(path):
    """The image as deitkit evaluates it: it covers `resize`, and its centre is cut out."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (low, narrow), (height, width) = about["preprocessing"]["resize"], about["preprocessing"]["image_size"]
    across = max(narrow, low * image.width // image.height)
    down = max(low, narrow * image.height // image.width)
    left, top = (across - width) // 2, (down - height) // 2
    image = image.resize((across, down), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + width, top + height))
    return np.ascontiguousarray(np.float32(image).transpose(2, 0, 1)[None] / 255)'''
_RAW = '''def image_of(path):
    """The pixels (H, W, 3); the graph resizes them."""
    return np.array(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))'''


def python_sample(
    name: str, job: ExportJob, *, packages: str, imports: str, opening: str, running: str
) -> dict[str, str]:
    """A Python program that classifies images with the file `name`, by its own name.

    packages: what it needs from PyPI. opening: statements that open the file and set `about`, its metadata.
    running: an expression, the probabilities (K,), where `given` is the graph's input. A file for several
    images at a time is given the same image in each place.
    """
    given = "image_of(path)" if job.raw else "view_of(path)"
    if not job.raw and (job.batch or 1) > 1:
        given = f"np.repeat({given}, {job.batch}, 0)"
    file = f"{Path(name).stem}_sample.py"
    text = _PYTHON.format(
        name=name,
        file=file,
        packages=packages,
        imports=imports,
        opening=opening.strip(),
        view=_RAW if job.raw else _VIEW,
        given=given,
        running=running,
    )
    return {file: text}
