"""The pictures of a run: loss curves, and predictions before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mdlstm_tk.runtime.files import replacing
from mdlstm_tk.training.loop import WINDOW, running_mean

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]
COLOURS = ("#0b6e99", "#d1495b", "#6a994e", "#8d6a9f")  # told apart with any colour vision


def plot_curves(path: Path, title: str, overall: list[float], relevant: list[float]) -> None:
    """Both losses over the steps of one run: faint as measured, strong their running mean."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 2)
    names = ("overall loss (all cells)", "relevant loss (second one alone)")
    for axis, name, values, colour in zip(axes, names, (overall, relevant), COLOURS, strict=False):
        steps = np.arange(1, len(values) + 1)
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(steps, running_mean(values), color=colour, label=f"mean of {WINDOW} steps")
        _finish(axis, name)
        axis.legend(frameon=False)
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


def _finish(axis: Any, name: str) -> None:
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel(name)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
