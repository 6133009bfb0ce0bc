"""Figures of runs: loss curves, predictions before and after training, and comparisons of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mdlstm_tk._util.text import printable
from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.progress import WINDOW, running_mean
from mdlstm_tk.training.run_folder import metric_names
from mdlstm_tk.viz.panels import Panel

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
COLORS = ("#0b6e99", "#d1495b", "#6a994e", "#8d6a9f")  # distinguishable with any color vision
MAX_ASPECT = 8  # height by width of a panel; matplotlib refuses pictures of 65536 pixels
# A matplotlibrc of the current folder, which Matplotlib reads, could let texts be set by LaTeX.
default_style = matplotlib.style.context("default")
METRIC_LABELS = {"relevant": "relevant loss (position of the second one)", "mse": "mean squared error"}


def plain(text: str) -> str:
    """A text as Matplotlib takes it: names of classes and files may hold "$", which begins a formula."""
    return printable(text).replace("$", r"\$")


@default_style
def draw_curves(path: Path, title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and errors over the training steps, one axis each.

    Args:
        path: PNG file to write.
        title: title of the figure.
        records: the records of `metrics.jsonl`.
    """
    names = metric_names(records)
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(plain(title))
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name, color in zip(axes, names, COLORS, strict=False):
        draw_curve(axis, name, color, records)
    _save(figure, path)


def draw_curve(axis: Any, name: str, color: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw one metric over the steps: the values faint, their running mean strong, validation in black."""
    steps = [record["step"] for record in records]
    values = [record[name] for record in records]
    axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    axis.plot(steps, running_mean(values), color=color, label=f"mean of {WINDOW} steps")
    validated = [record for record in records if name in record.get("validation", {})]
    if validated:
        validation_steps = [record["step"] for record in validated]
        errors = [record["validation"][name] for record in validated]
        axis.plot(validation_steps, errors, color="black", marker=".", lw=0.8, label="validation")
    label = METRIC_LABELS.get(name, name.replace("_", " "))
    if name == "loss" and "relevant" in records[0]:
        label = "overall loss (all positions)"
    _finish_axis(axis, plain(label), logarithmic=min(values) > 0)
    axis.legend(frameon=False)


@default_style
def draw_panels(path: Path, title: str, panels: Sequence[Panel], columns: int) -> None:
    """Draw panels in rows of `columns`."""
    rows = -(-len(panels) // columns)
    aspect = min(max(panel.image.shape[0] / panel.image.shape[1] for panel in panels), MAX_ASPECT)
    figure = Figure(figsize=(3 * columns, rows * (3 * aspect + 0.4) + 0.5), layout="constrained")
    figure.suptitle(plain(title))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        axis.imshow(panel.image, interpolation="nearest")
        axis.set_title(f"{plain(panel.name)}  {panel.value_range}", fontsize=10)
    _save(figure, path)


@default_style
def draw_before_and_after(
    path: Path, title: str, x: Floats, truth: Floats, before: Floats, after: Floats
) -> None:
    """Draw a matrix, its target, and the predictions before and after training, each (H, W) in [0, 1]."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(plain(title))
    rows = (("before training", before), ("after training", after))
    for row, (axes, (when, prediction)) in enumerate(zip(figure.subplots(2, 3), rows, strict=True)):
        grids = (("input", x), (f"prediction {when}", prediction), ("truth", truth))
        for axis, (name, values) in zip(axes, grids, strict=True):
            image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
            axis.set_title(name, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        if row == 0:
            figure.colorbar(image, ax=figure.axes, shrink=0.6)
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
        losses: by network, the loss at each step of each seed.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set_title(plain(title))
    for (model, seeds), color in zip(losses.items(), COLORS, strict=False):
        smooth = np.stack([running_mean(values) for values in seeds])  # (seeds, steps)
        steps = np.arange(1, smooth.shape[1] + 1)
        axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=color, alpha=0.2, lw=0)
        axis.plot(steps, np.median(smooth, axis=0), color=color, label=plain(model))
    _finish_axis(axis, label)
    axis.legend(frameon=False)
    _save(figure, path)


def _finish_axis(axis: Any, label: str, logarithmic: bool = True) -> None:
    axis.set_yscale("log" if logarithmic else "linear")
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
