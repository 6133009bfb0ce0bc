"""The pictures of a run: loss curves, and predictions before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mdlstm_tk.runtime.io.files import atomic_write
from mdlstm_tk.training.progress import WINDOW, running_mean
from mdlstm_tk.training.run_folder import measured
from mdlstm_tk.viz.panels import Panel

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
COLOURS = ("#0b6e99", "#d1495b", "#6a994e", "#8d6a9f")  # told apart with any colour vision


NAMES = {"loss": "loss", "relevant": "relevant loss (second one alone)", "mse": "mean squared error"}


def plot_curves(path: Path, title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Loss and errors over the steps of one run, see `draw_curve`.

    Args:
        path: of the picture.
        title: of it.
        records: of `metrics.jsonl`.
    """
    names = measured(records)
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    figure.suptitle(title)
    for axis, name, colour in zip(
        figure.subplots(1, len(names), squeeze=False)[0], names, COLOURS, strict=False
    ):
        draw_curve(axis, name, colour, records)
    _save(figure, path)


def draw_curve(axis: Any, name: str, colour: str, records: Sequence[Mapping[str, Any]]) -> None:
    """One of them over the steps: faint as measured, strong its running mean; validation in black."""
    steps = [record["step"] for record in records]
    values = [record[name] for record in records]
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, running_mean(values), color=colour, label=f"mean of {WINDOW} steps")
    judged = [record for record in records if name in record.get("validation", {})]
    if judged:
        points = [record["validation"][name] for record in judged]
        when = [record["step"] for record in judged]
        axis.plot(when, points, color="black", marker=".", lw=0.8, label="validation")
    shown = "overall loss (all cells)" if name == "loss" and "relevant" in records[0] else name
    _finish(axis, NAMES.get(shown, shown.replace("_", " ")), logarithmic=min(values) > 0)
    axis.legend(frameon=False)


def plot_panels(path: Path, title: str, panels: Sequence[Panel], columns: int) -> None:
    """Images in rows of `columns`."""
    rows = -(-len(panels) // columns)
    tall = max(panel.image.shape[0] / panel.image.shape[1] for panel in panels)
    figure = Figure(figsize=(3 * columns, rows * (3 * tall + 0.4) + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        axis.imshow(panel.image, interpolation="nearest")
        axis.set_title(f"{panel.name}  {panel.note}", fontsize=10)
    _save(figure, path)


def plot_prediction(
    path: Path, title: str, x: Floats, truth: Floats, before: Floats, after: Floats
) -> None:
    """A matrix (H, W), its target, and what the network makes of it untrained and trained."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title)
    rows = (("before training", before), ("after training", after))
    for line, (axes, (when, prediction)) in enumerate(zip(figure.subplots(2, 3), rows, strict=True)):
        panels = (("input", x), (f"prediction {when}", prediction), ("truth", truth))
        for axis, (name, values) in zip(axes, panels, strict=True):
            image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
            axis.set_title(name, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        if line == 0:
            figure.colorbar(image, ax=figure.axes, shrink=0.6)
    _save(figure, path)


def plot_comparison(path: Path, title: str, name: str, losses: Mapping[str, Sequence[list[float]]]) -> None:
    """One loss of several models, each over several seeds: median and the band from least to most."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title)
    for (model, seeds), colour in zip(losses.items(), COLOURS, strict=False):
        smooth = np.stack([running_mean(values) for values in seeds])  # (seeds, steps)
        steps = np.arange(1, smooth.shape[1] + 1)
        axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=colour, alpha=0.2, lw=0)
        axis.plot(steps, np.median(smooth, axis=0), color=colour, label=model)
    _finish(axis, name)
    axis.legend(frameon=False)
    _save(figure, path)


def _finish(axis: Any, name: str, logarithmic: bool = True) -> None:
    axis.set_yscale("log" if logarithmic else "linear")
    axis.set_xlabel("step")
    axis.set_ylabel(name)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
