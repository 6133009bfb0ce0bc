"""Figures of runs: curves, predictions before and after training, comparisons, histograms.

`draw_*` write PNG files; `svg_*` return elements for a page, in its font and its colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import cycle, product
from math import inf
from pathlib import Path, PurePath
from textwrap import wrap
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch

from mdlstm_tk._util.text import counted, printable
from mdlstm_tk._util.text_order import is_right_to_left, reorder
from mdlstm_tk.io.files import open_output
from mdlstm_tk.report.panels import Panel
from mdlstm_tk.training.progress import WINDOW, running_mean
from mdlstm_tk.training.run_folder import metric_names

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
COLORS = ("#0b6e99", "#d1495b", "#6a994e", "#8d6a9f")  # distinguishable with any color vision
LINE_STYLES = ("-", "--", ":", "-.")  # of four networks each
FONT = "DejaVu Sans"  # which comes with Matplotlib
PANEL_INCHES = 3  # width of a panel
MAX_ASPECT = 8  # height by width of a panel; matplotlib refuses pictures of 65536 pixels
TITLE_CHARACTERS = 38  # that fit above a panel, in one line
TITLE_LINES = 3
LABEL_CHARACTERS = 30  # of a line beside an axis
MAX_LEGEND = 24  # classes
BINS = 40  # of a histogram
# A matplotlibrc of the current folder, which Matplotlib reads, could let texts be set by LaTeX.
default_style = matplotlib.style.context("default")
METRIC_LABELS = {
    "relevant": "relevant loss (position of the second one)",
    "mse": "mean squared error",
    "nmse": "mean squared error / variance",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "iou": "intersection over union",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "f1": "F1",
}
ORDERS_TEXT = matplotlib.__version_info__ >= (3, 11)  # right-to-left text in visual order
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@default_style
def draw_curves(path: Path, title: str, records: Sequence[Mapping[str, Any]], best_by: str = "") -> None:
    """Draw loss and errors over the training steps, one axis each.

    Args:
        path: PNG file to write.
        title: title of the figure.
        records: the records of `metrics.jsonl`.
        best_by: the measure that chooses the best weights, if it is not the first one.
    """
    names = metric_names(records, best_by)
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(_plain(title, 45 * len(names)), wrap=True)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name, color in zip(axes, names, cycle(COLORS), strict=False):
        _draw_curve(axis, name, color, records)
    _save(figure, path)


def svg_curves(records: Sequence[Mapping[str, Any]], best_by: str = "") -> list[Markup]:
    """Return an SVG element for each metric in the records of `metrics.jsonl`.

    The elements use the page's font, text color, and the CSS variables --curve-0, --curve-1, …
    """
    return [
        _svg_curve(name, color, records)
        for name, color in zip(metric_names(records, best_by), cycle(COLORS), strict=False)
    ]


@default_style
def draw_panels(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    columns: int,
    legend: Mapping[str, tuple[int, int, int]] | None = None,
) -> None:
    """Draw panels in rows of `columns`, and a legend of colours below.

    A title that holds characters of no installed font is replaced by the name of the sample.
    """
    panels = panels or [Panel("there are no samples", np.full((1, 1, 3), 255, np.uint8))]
    titles = [_title(panel) for panel in panels]
    title_inches = 0.2 + 0.17 * max(title.count("\n") + 1 for title in titles)
    aspects = [panel.image.shape[0] / panel.image.shape[1] for panel in panels]
    heights = [
        PANEL_INCHES * min(max(aspects[k : k + columns]), MAX_ASPECT) + title_inches
        for k in range(0, len(panels), columns)
    ]
    entries = [
        Patch(
            color=f"#{bytes(color).hex()}", label=_plain(name, TITLE_CHARACTERS) if _fonts(name) else f"{k}"
        )
        for k, (name, color) in enumerate((legend or {}).items())
    ][:MAX_LEGEND]
    legend_inches = 0.25 * -(-len(entries) // columns)
    texts = "".join([title, *titles, *(str(entry.get_label()) for entry in entries)])
    with matplotlib.rc_context({"font.family": _fonts(texts) or [FONT]}):
        figure = Figure((PANEL_INCHES * columns, sum(heights) + legend_inches + 0.5), layout="constrained")
        figure.suptitle(_plain(title, TITLE_CHARACTERS * columns), fontsize=11)
        axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, panel, text in zip(axes, panels, titles, strict=False):
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(text, fontsize=9)
        if entries:
            figure.legend(
                handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
            )
        _save(figure, path)


@default_style
def draw_loss_comparison(
    path: Path, title: str, label: str, losses: Mapping[str, Sequence[Sequence[float]]]
) -> None:
    """Draw one loss of several networks: the median over the seeds, and the range as a band.

    Args:
        path: PNG file to write.
        title: title of the figure.
        label: label of the loss axis.
        losses: by network, the loss at each step of each seed. It is drawn up to the last step of the seed
            that stopped first.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set_title(_plain(title))
    styles, lowest = cycle(product(LINE_STYLES, COLORS)), inf
    for (model, seeds), (style, color) in zip(losses.items(), styles, strict=False):
        count = min(map(len, seeds))
        smooth = np.stack([running_mean(values[:count]) for values in seeds])  # (seeds, steps)
        steps, lowest = np.arange(1, count + 1), min(lowest, smooth.min(initial=inf))
        axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.2, lw=0)
        axis.plot(steps, np.median(smooth, axis=0), style, color=color, label=_plain(model))
    _finish_axis(axis, label, logarithmic=lowest > 0)
    axis.legend(frameon=False)
    _save(figure, path)


@default_style
def svg_histogram(values: Mapping[str, Floats], label: str) -> Markup:
    """Return an SVG element with one histogram for each name, in the same colors as curves."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    everything = np.concatenate(list(values.values()))
    finite = everything[np.isfinite(everything)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    bins = np.linspace(low, high + 1e-9, BINS + 1).tolist()
    for (name, each), color in zip(values.items(), COLORS, strict=False):
        shown = each[np.isfinite(each)]
        weights = np.full(len(shown), 1 / len(each))
        name = _plain(name) + (f" ({len(each) - len(shown)} infinite)" if len(shown) < len(each) else "")
        axis.hist(shown, bins, weights=weights, histtype="step", color=color, label=name, linewidth=1.5)
    axis.set_xlabel(_plain(label))
    axis.set_ylabel("share of the images")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return _to_svg(figure, f"{label}: histograms of {', '.join(values)}")


@default_style
def svg_reliability(bins: Sequence[tuple[float, float, int]]) -> Markup:
    """Return an SVG element with the share of right characters by their confidence, and their number.

    Args:
        bins: mean confidence, share of right characters, and number of characters of each bin.
    """
    confidence, accuracy, counts = np.array(bins, float).T
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#000000", alpha=0.4, linewidth=0.8, label="honest confidences")
    upper.plot(confidence, accuracy, color=COLORS[0], marker="o", markersize=4, label="this network")
    upper.set_ylabel("share that is right")
    upper.legend(frameon=False)
    lower.bar(confidence, counts / counts.sum(), width=0.06, color=COLORS[0])
    lower.set_ylabel("share of all")
    lower.set_xlabel("confidence of a character")
    lower.set_xlim(0, 1)
    for axis in (upper, lower):
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return _to_svg(figure, "Reliability diagram: share of right characters by confidence")


def _draw_curve(axis: Any, name: str, color: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw one metric over the steps: the values faint, their running mean strong, validation in black."""
    # errors of a task of the user's own may be named after the size of a batch
    measured = [record for record in records if name in record]
    steps, values = ([record[key] for record in measured] for key in ("step", name))
    if steps:
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(steps, running_mean(values), color=color, label=f"mean of {WINDOW} steps")
    validated = [record for record in records if name in record.get("validation", {})]
    errors = [record["validation"][name] for record in validated]
    if validated:
        validation_steps = [record["step"] for record in validated]
        axis.plot(validation_steps, errors, color="black", marker=".", lw=0.8, label="validation")
    label = measure_label(name)
    if name == "loss" and "relevant" in metric_names(records):
        label = "overall loss (all positions)"
    low, high = (bound([*values, *errors], default=0.0) for bound in (min, max))
    _finish_axis(axis, _plain(label), logarithmic=0 < low < high)  # one value would get decades around it
    if low == high > 0:
        axis.set_ylim(0, 1.1 * high)
    if axis.lines:
        axis.legend(frameon=False)


def measure_label(name: str) -> str:
    """The name of a loss or measure, in words."""
    return METRIC_LABELS.get(name, name.replace("_", " "))


@default_style
def svg_scatter(truth: Floats, predicted: Floats, name: str) -> Markup:
    """An SVG element with the predictions (N,) of a number over its true values (N,)."""
    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axis = figure.subplots()
    low, high = (float(bound([*truth, *predicted])) for bound in (min, max))
    axis.plot([low, high], [low, high], color="black", lw=0.8)
    axis.plot(truth, predicted, ".", color=COLORS[0], alpha=0.5)
    _finish_axis(axis, f"{_plain(name, 20)}, predicted", logarithmic=False)
    axis.set_xlabel(f"{_plain(name, 30)}, true")
    return _to_svg(figure, f"Predictions of {printable(name)} over the true values")


@default_style
def _svg_curve(name: str, color: str, records: Sequence[Mapping[str, Any]]) -> Markup:
    figure = Figure(figsize=(4.2, 3), layout="constrained")
    _draw_curve(figure.subplots(), name, color, records)
    return _to_svg(
        figure, f"{printable(name).replace('_', ' ')} over {counted(len(records), 'training step')}"
    )


def _finish_axis(axis: Any, label: str, logarithmic: bool) -> None:
    axis.set_yscale("log" if logarithmic else "linear")
    axis.set_xlabel("step")
    axis.set_ylabel("\n".join(wrap(label, LABEL_CHARACTERS)))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _plain(text: str, longest: int = 200) -> str:
    """Return a text as Matplotlib takes it: names may be long, or hold "$", which begins a formula."""
    text = printable(text)
    half = longest // 2
    text = text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"
    if not ORDERS_TEXT:
        text = reorder(text, "rtl" if is_right_to_left(text) else "ltr")
    return text.replace("$", r"\$")


def _title(panel: Panel) -> str:
    """Return the title of a panel in lines that fit: the name of the sample, caption, and range."""
    lines = [line for text in panel.name.split("\n") for line in wrap(printable(text), TITLE_CHARACTERS)]
    if len(lines) > TITLE_LINES:
        lines = [*lines[: TITLE_LINES - 1], f"{lines[TITLE_LINES - 1][: TITLE_CHARACTERS - 1]}…"]
    lines = [_plain(line) for line in lines] if _fonts("".join(lines)) else []
    name = panel.sample if _fonts(panel.sample) else PurePath(panel.sample).name
    name = _plain(name, TITLE_CHARACTERS) if _fonts(name) else ""
    title = "\n".join([*filter(None, [name]), *lines])
    return f"{title}  {panel.value_range}" if panel.value_range else title


@cache
def _fonts(text: str) -> list[str]:
    """Return installed fonts that have all characters of a text between them; [] if there are none.

    Matplotlib takes each character from the first font that has it.
    """
    families = [FONT]
    missing = {ord(character) for character in text if character.isprintable()}
    for entry in sorted(fontManager.ttflist, key=lambda font: font.name != FONT):
        if entry.name.startswith("Last Resort"):  # whose characters are boxes
            continue
        if covered := missing & _characters_of(entry.fname):
            missing -= covered
            families += [entry.name] if entry.name not in families else []
        if not missing:
            return families
    return [] if missing else families


@cache
def _characters_of(font: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):  # a damaged font, or one of a kind that is not read
        return frozenset()


def _to_svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an SVG element in the font and the colors of the page."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # Text stays text; the salt keeps the ids of several figures in one page apart.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    for k, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--curve-{k})")
    svg = re.sub(r'font: (\d+)px [^;"]*', r"font-size: \1px", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with open_output(path) as file:
        figure.savefig(file, dpi=110, format="png")
