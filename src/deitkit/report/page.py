"""HTML pages with everything inside them: template, figures, images."""

from __future__ import annotations

import base64
import io
import warnings

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

matplotlib.rcParams.update({"svg.hashsalt": "deitkit", "svg.fonttype": "none", "font.size": 9})


def render(template: str, **content: object) -> str:
    """Renders `template`, a file of this folder, with `content`; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deitkit", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def svg(figure: Figure) -> str:
    """A figure as an `svg` element."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has the fonts that are missing here
        figure.tight_layout()
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def epoch_axis(axes: Axes) -> None:
    """Ticks at whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_above(axes: Axes, columns: int = 4) -> None:
    """A legend above the axes, where it covers no line."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def plain(name: str) -> str:
    """A class name for a figure: without formulas, and cut to the length of a tick label."""
    name = name.encode("utf-8", "backslashreplace").decode()  # a folder's name may be no UTF-8
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def data_uri(image: Image.Image) -> str:
    """A small image as a data URI for an `img` element."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
