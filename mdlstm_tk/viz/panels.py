"""A sample, and what a network makes of it, as images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps

from mdlstm_tk.data import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.data.metrics import target_texts
from mdlstm_tk.runtime.postprocessing import labels, transcripts

Numbers = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]  # (H, W, 3)

WRONG = np.array([214, 40, 57])
OVERLAY = 0.6  # how much of a class's colour covers the input


@dataclass(frozen=True)
class Panel:
    """An image with a name.

    Attributes:
        name: what it is.
        image: it.
        note: which numbers its colours stand for.
    """

    name: str
    image: Image
    note: str = ""


def panels_of(batch: Batch, prediction: Numbers, spec: TaskSpec) -> list[Panel]:
    """The one sample of a batch: input with class or text, or input, prediction, truth and what is wrong.

    Of features other than one or three the first is shown.
    """
    x = _crop(batch.x, batch)
    if spec.kind == "classify":
        said, truth = (spec.classes[int(k)] for k in (labels(prediction)[0], batch.y[0]))
        return [Panel(said if said == truth else f"{said}, is {truth}", picture(x))]
    if spec.kind == "transcribe":
        (said,), (truth,) = transcripts(prediction, spec.classes), target_texts(batch, spec)
        return [Panel(said if said == truth else f"{said or 'nothing'}, is {truth}", picture(x))]
    y, truth_grid = _crop(prediction, batch), _crop(batch.y, batch)
    if spec.kind == "segment":
        said_grid = labels(y)
        known = truth_grid != UNLABELLED
        wrong = picture(x, fade=0.5)
        wrong[known & (said_grid != truth_grid)] = WRONG
        return [
            Panel("input", picture(x)),
            Panel("prediction", _overlay(x, said_grid)),
            Panel("truth", _overlay(x, truth_grid)),
            Panel("wrong cells", wrong),
        ]
    y, truth_grid = y[..., 0], truth_grid[..., 0]
    span = _span(truth_grid)
    error = np.abs(y - truth_grid)
    return [
        Panel("input", picture(x), "" if x.shape[-1] == 3 else _range(*_span(x[..., 0]))),
        Panel("prediction", _coloured(y, *span), _range(*span)),
        Panel("truth", _coloured(truth_grid, *span), _range(*span)),
        Panel("error", _coloured(error, 0, float(error.max()), "magma"), _range(0, float(error.max()))),
    ]


def picture(x: Numbers, fade: float = 0.0) -> Image:
    """(H, W, C) as it looks: colours if C is 3, else the first feature in grey; faded towards white."""
    if x.shape[-1] == 3:
        image = _unit(x, min(0.0, float(x.min())), max(1.0, float(x.max())))
    else:
        image = np.repeat(_unit(x[..., :1], *_span(x[..., 0])), 3, axis=-1)
    return _bytes(image * (1 - fade) + fade)


def class_colour(k: int) -> tuple[int, int, int]:
    """What class k looks like in masks. There are twenty colours, the strong ones first."""
    red, green, blue, _ = colormaps["tab20"]((2 * k) % 20 + (k // 10) % 2, bytes=True)
    return int(red), int(green), int(blue)


def _overlay(x: Numbers, mask: Numbers) -> Image:
    """Classes (H, W) over the input; it shows alone where there is none."""
    palette = np.array([class_colour(k) for k in range(20)])
    share = np.where(mask == UNLABELLED, 0, OVERLAY)[..., None]
    mixed = picture(x) * (1 - share) + palette[mask % len(palette)] * share
    return _bytes(mixed / 255)


def _coloured(values: Numbers, low: float, high: float, colours: str = "viridis") -> Image:
    """(H, W) numbers in the colours of a map from low to high."""
    return _bytes(colormaps[colours](_unit(values, low, high))[..., :3])


def _unit(values: Numbers, low: float, high: float) -> Numbers:
    """Numbers from low to high as numbers from 0 to 1; what lies outside is clipped."""
    unit: Numbers = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    return unit


def _bytes(image: Numbers) -> Image:
    """Numbers from 0 to 1 as bytes."""
    whole: Image = (image * 255).round().astype(np.uint8)
    return whole


def _span(values: Numbers) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _range(low: float, high: float) -> str:
    return f"{low:.3g} … {high:.3g}"


def _crop(grids: Numbers, batch: Batch) -> Numbers:
    """The one sample without its padding."""
    grid: Numbers = grids[0]
    return grid if batch.sizes is None else grid[tuple(map(slice, batch.sizes[0]))]
