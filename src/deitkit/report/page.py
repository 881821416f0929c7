"""Pages that carry everything inside them: the template, its figures, its images."""

from __future__ import annotations

import base64
import io
import warnings

import jinja2
import matplotlib
from matplotlib.figure import Figure
from PIL import Image

matplotlib.rcParams.update({"svg.hashsalt": "deitkit", "svg.fonttype": "none", "font.size": 9})


def render(template: str, **content: object) -> str:
    """The page that `template`, a file of this folder, makes of `content`; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deitkit", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def svg(figure: Figure) -> str:
    """A figure as an element of the page."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the fonts that are missing here
        figure.tight_layout()
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plain(name: str) -> str:
    """A class name that matplotlib can draw and will not read as a formula, cut to a tick's length."""
    name = name.encode("utf-8", "backslashreplace").decode()  # of a folder's name that is no UTF-8
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def data_uri(image: Image.Image) -> str:
    """A small image as the text of an `img` element's source."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
