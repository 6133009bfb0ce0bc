"""Pictures for embedding in an HTML page: panels as data URLs, curves as SVG in the colors of the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from mdlstm_tk._util.text import printable
from mdlstm_tk.training.run_folder import metric_names
from mdlstm_tk.viz.panels import Panel
from mdlstm_tk.viz.plots import COLORS, default_style, draw_curve, plain

MAX_SIDE = 640  # pixels; larger images are scaled down
PIXELATED_BELOW = 160  # pixels; smaller images are enlarged without smoothing
BINS = 40  # of a histogram
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class EmbeddedImage:
    """An image in a page.

    Attributes:
        name: caption.
        value_range: the values that the ends of the color map stand for, as text.
        data: data URL of a PNG file.
        width: width in pixels.
        height: height in pixels.
        pixelated: enlarge without smoothing?
    """

    name: str
    value_range: str
    data: str
    width: int
    height: int
    pixelated: bool


def embed_panel(panel: Panel) -> EmbeddedImage:
    """Encode a panel for a page."""
    image = Image.fromarray(panel.image)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    pixelated = max(image.size) < PIXELATED_BELOW
    return EmbeddedImage(panel.name, panel.value_range, data, *image.size, pixelated)


def svg_curves(records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """An SVG element for each metric in the records of `metrics.jsonl`.

    The element uses the page's font, text color, and the CSS variables --curve-0, --curve-1, …
    """
    return [
        _svg_curve(name, color, f"var(--curve-{k})", records)
        for k, (name, color) in enumerate(zip(metric_names(records), COLORS, strict=False))
    ]


@default_style
def _svg_curve(name: str, color: str, css_color: str, records: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    draw_curve(figure.subplots(), name, color, records)
    label = f"{printable(name).replace('_', ' ')} over {len(records)} training steps"
    return _to_svg(figure, label, {color: css_color})


@default_style
def svg_histogram(values: Mapping[str, npt.NDArray[Any]], label: str) -> Markup:
    """An SVG element with one histogram for each name, in the same colors as curves."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    everything = np.concatenate(list(values.values()))
    bins = np.linspace(everything.min(), everything.max() + 1e-9, BINS + 1).tolist()
    for (name, each), color in zip(values.items(), COLORS, strict=False):
        weights = np.full(len(each), 1 / len(each))
        axis.hist(
            each, bins, weights=weights, histtype="step", color=color, label=plain(name), linewidth=1.5
        )
    axis.set_xlabel(plain(label))
    axis.set_ylabel("share of the images")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    css = {color: f"var(--curve-{k})" for k, color in enumerate(COLORS[: len(values)])}
    return _to_svg(figure, f"{label}: histograms of {', '.join(values)}", css)


def _to_svg(figure: Figure, label: str, css_colors: Mapping[str, str]) -> Markup:
    """A figure as an SVG element in the font and the colors of the page."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # Text stays text; the salt keeps the ids of several figures in one page apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    for color, css_color in css_colors.items():
        svg = svg.replace(color, css_color)
    svg = re.sub(r'font: (\d+)px [^;"]*', r"font-size: \1px", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
