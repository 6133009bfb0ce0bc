"""Pictures of runs as PNG files: curves, panels of samples, and the curves of a comparison."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mdlstm_tk._util.text import printable
from mdlstm_tk.io.files import open_output
from mdlstm_tk.kinds.panels import Panel
from mdlstm_tk.training.run import Record, Run

WINDOW = 20  # steps of a running mean
COLORS = ("#0b6e99", "#d1495b", "#6a994e", "#8d6a9f")  # distinguishable with any color vision
STYLES = ("-", "--", ":", "-.")  # of four networks each
COLUMNS, WIDE = 4, 3  # pictures in a row; half as many if they are so many times as wide as high
INCHES, MAX_ASPECT = 3.0, 8.0  # the width of a picture, and its height divided by its width
CHARACTERS, LINES = 38, 4  # that fit above a picture
MAX_LEGEND = 24  # classes
# A matplotlibrc of the current folder, which Matplotlib reads, could let texts be set by LaTeX.
default_style = matplotlib.style.context("default")


@default_style
def draw_curves(path: Path, title: str, records: Sequence[Record]) -> None:
    """Draw the loss and the measures of the validations over the steps, from the records of a run."""
    names = _names(records)
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    figure = Figure((4.2 * columns, 3.4 * rows + 0.4), layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    steps, losses = ([record[name] for record in records] for name in ("step", "loss"))
    axes[0].plot(steps, losses, color=COLORS[0], alpha=0.25, lw=0.8)
    for axis, name, color in zip(axes, names, cycle(COLORS), strict=False):
        _draw_curve(axis, [records], name, color, "-" if name == "loss" else ".-")
        _finish(axis, name)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    _save(figure, path)


@default_style
def draw_panels(path: Path, title: str, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw the panels of a sample in each row, and the legend of their colors below. Samples of one panel
    each share rows."""
    if all(len(row) == 1 for row in rows):
        panels = [panel for row in rows for panel in row]
        is_wide = np.median([panel.image.shape[1] / panel.image.shape[0] for panel in panels]) > WIDE
        each = COLUMNS // 2 if is_wide else COLUMNS
        rows = [panels[k : k + each] for k in range(0, len(panels), each)]
    columns, legend, heights = max(map(len, rows)), dict[str, Any](), list[float]()
    for row in rows:
        aspect = max(panel.image.shape[0] / panel.image.shape[1] for panel in row)
        lines = max(_caption(panel).count("\n") for panel in row)
        heights.append(INCHES * min(aspect, MAX_ASPECT) + 0.4 + 0.17 * lines)
        for panel in row:
            legend |= panel.legend
    patches = [Patch(color=f"#{bytes(color).hex()}", label=_plain(name)) for name, color in legend.items()]
    below = 0.5 + 0.25 * -(-len(patches[:MAX_LEGEND]) // columns)
    figure = Figure((INCHES * columns, sum(heights) + below), layout="constrained")
    figure.suptitle(_plain(title), fontsize=11)
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, of_row in zip(rows, axes, strict=True):
        for panel, axis in zip(row, of_row, strict=False):
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(_caption(panel), fontsize=9, color="k" if panel.is_right is not False else "r")
    how: Any = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
    if patches:
        figure.legend(handles=patches[:MAX_LEGEND], **how)
    _save(figure, path)


@default_style
def draw_comparison(folder: str | Path) -> list[Path]:
    """Draw the curves of a comparison into its folder: the loss, and each measure of the validations.

    Args:
        folder: with `summary.json` and a run in MODEL-SEED for each network and seed of it, as
            `mdlstm_tk.training.compare` writes.

    Returns:
        The pictures.
    """
    runs: dict[str, list[list[Record]]] = {}
    for model, entry in json.loads(Path(folder, "summary.json").read_bytes()).items():
        if "seeds" in entry:  # others are methods without a network
            runs[model] = [Run(Path(folder, f"{model}-{k}")).read_metrics() for k in entry["seeds"]]
    paths = []
    for name in _names(next(iter(runs.values()))[0]):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axis = figure.subplots()
        styles = cycle(product(STYLES, COLORS))
        for (model, seeds), (style, color) in zip(runs.items(), styles, strict=False):
            _draw_curve(axis, seeds, name, color, style, _plain(model))
        axis.legend(frameon=False)
        _finish(axis, name)
        paths.append(Path(folder, f"{name}.png"))
        _save(figure, paths[-1])
    return paths


def _names(records: Sequence[Record]) -> list[str]:
    """The names of curves: the loss, and the measures of validations."""
    return ["loss", *next((record["validation"] for record in records if "validation" in record), {})]


def _draw_curve(
    axis: Any, runs: Sequence[Sequence[Record]], name: str, color: str, style: str, label: str = ""
) -> None:
    """Draw the median of some runs over the steps, and their range as a band."""
    curves = []
    for records in runs:
        if name == "loss":
            curve = np.array([[record["step"], record["loss"]] for record in records])
            counts = np.minimum(np.arange(1, len(curve) + 1), WINDOW)
            curve[:, 1] = np.convolve(curve[:, 1], np.ones(WINDOW))[: len(curve)] / counts
        else:  # of which null stands for NaN
            of_run = [(r["step"], r["validation"].get(name)) for r in records if "validation" in r]
            curve = np.array(of_run, float).reshape(-1, 2)
        curves.append(curve)
    shortest = min(map(len, curves))
    steps, values = np.moveaxis(np.stack([curve[:shortest] for curve in curves]), -1, 0)
    axis.fill_between(steps[0], values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
    axis.plot(steps[0], np.median(values, axis=0), style, color=color, label=label)


def _finish(axis: Any, name: str) -> None:
    """Label an axis, which is logarithmic where its values span more than a decade."""
    values = np.concatenate([line.get_ydata() for line in axis.lines])
    low, high = np.nanmin(values), np.nanmax(values)
    axis.set_yscale("log" if 0 < 10 * low < high else "linear")
    axis.set_xlabel("step")
    text = f"mean loss of {WINDOW} steps" if name == "loss" else f"{name.replace('_', ' ')}, validation"
    axis.set_ylabel(_plain(text))
    axis.grid(alpha=0.25)


def _caption(panel: Panel) -> str:
    lines = [line for text in panel.name.split("\n") for line in wrap(printable(text), CHARACTERS)]
    return _plain("\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]))


def _plain(text: str) -> str:
    """A text as Matplotlib takes it, in which "$" begins a formula."""
    return "\n".join(map(printable, text.split("\n"))).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings(), open_output(path) as file:
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks
        figure.savefig(file, dpi=110, format="png")
