"""Pictures as parts of a page: images as data, curves as SVG in the page's own colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from mdlstm_tk.training.run_folder import measured
from mdlstm_tk.viz.panels import Panel
from mdlstm_tk.viz.plots import COLOURS, draw_curve

LARGEST = 640  # pixels of a side; larger images are made smaller
COARSE = 160  # an image below that is enlarged as sharp blocks
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Picture:
    """An image in a page.

    Attributes:
        name: what it is.
        note: which numbers its colours stand for.
        data: of a PNG, as an address.
        width: in pixels.
        height: likewise.
        coarse: should its pixels be seen?
    """

    name: str
    note: str
    data: str
    width: int
    height: int
    coarse: bool


def embed(panel: Panel) -> Picture:
    """A panel as an image that is part of the page."""
    image = Image.fromarray(panel.image)
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(panel.name, panel.note, data, *image.size, coarse=max(image.size) < COARSE)


def curves(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """An SVG of each measure over the steps of training."""
    return [
        _curve(name, colour, f"var(--curve-{k})", records)
        for k, (name, colour) in enumerate(zip(measured(records), COLOURS, strict=False))
    ]


def _curve(name: str, colour: str, variable: str, records: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    FigureCanvasSVG(figure)
    draw_curve(figure.subplots(), name, colour, records)
    buffer = io.StringIO()
    # texts stay texts, in the page's font; ids are its own, as several figures share one page
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor").replace(colour, variable)
    svg = re.sub(r'font: (\d+)px [^;"]*', r"font-size: \1px", svg)
    label = escape(f"{name.replace('_', ' ')} over {len(records)} steps of training")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
