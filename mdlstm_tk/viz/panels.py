"""Images of a sample and of its prediction."""

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

ERROR_COLOR = np.array([214, 40, 57])
MASK_OPACITY = 0.6  # of a class's color over the input


@dataclass(frozen=True)
class Panel:
    """A captioned image.

    Attributes:
        name: caption.
        image: (H, W, 3).
        value_range: the values that the ends of the color map stand for, as text; "" if there is none.
    """

    name: str
    image: Image
    value_range: str = ""


def sample_panels(batch: Batch, prediction: Numbers, spec: TaskSpec) -> list[Panel]:
    """The panels of a batch with one sample.

    A classified or transcribed sample has one panel, its input, captioned with the prediction. A grid or a
    segmentation has four: input, prediction, truth and errors. Of kind "density" there are two: the input,
    and how surprising each position is, given those before it. If x has neither one nor three channels,
    the first one is drawn; of several outputs, too.
    """
    x = _without_padding(batch.x, batch)
    if spec.kind == "classify":
        predicted_class, true_class = (spec.classes[int(k)] for k in (labels(prediction)[0], batch.y[0]))
        return [Panel(_caption(predicted_class, true_class), draw_input(x))]
    if spec.kind == "transcribe":
        (predicted_text,), (true_text,) = transcripts(prediction, spec.classes), target_texts(batch, spec)
        return [Panel(_caption(predicted_text, true_text), draw_input(x))]
    output, target = _without_padding(prediction, batch), _without_padding(batch.y, batch)
    if spec.kind == "density":
        surprise = -output.sum(-1)
        limits = 0.0, float(surprise.max())
        return [
            Panel(f"{surprise.sum():.1f} nats", draw_input(x)),
            Panel("surprise", _draw_values(surprise, *limits, "magma"), f"{_format_range(*limits)} nats"),
        ]
    if spec.kind == "segment":
        predicted_mask = labels(output)
        errors = draw_input(x, fade=0.5)
        errors[(target != UNLABELLED) & (predicted_mask != target)] = ERROR_COLOR
        return [
            Panel("input", draw_input(x)),
            Panel("prediction", _draw_mask(x, predicted_mask)),
            Panel("truth", _draw_mask(x, target)),
            Panel("errors", errors),
        ]
    output, target = output[..., 0], target[..., 0]
    limits = _limits(target)
    error = np.abs(output - target)
    error_limits = 0.0, float(error.max())
    return [
        Panel("input", draw_input(x), "" if x.shape[-1] == 3 else _format_range(*_limits(x[..., 0]))),
        Panel("prediction", _draw_values(output, *limits), _format_range(*limits)),
        Panel("truth", _draw_values(target, *limits), _format_range(*limits)),
        Panel("error", _draw_values(error, *error_limits, "magma"), _format_range(*error_limits)),
    ]


def draw_input(x: Numbers, fade: float = 0.0) -> Image:
    """Draw x (H, W, C): in color if C is 3, else the first channel in grey.

    Args:
        x: values; those of a color image are expected in [0, 1], others are scaled to their own range.
        fade: from 0, unchanged, to 1, white.
    """
    if x.shape[-1] == 3:
        image = _to_unit(x, min(0.0, float(x.min())), max(1.0, float(x.max())))
    else:
        image = np.repeat(_to_unit(x[..., :1], *_limits(x[..., 0])), 3, axis=-1)
    return _to_bytes(image * (1 - fade) + fade)


def class_color(k: int) -> tuple[int, int, int]:
    """The color of class k in masks. There are twenty; the saturated ones come first."""
    red, green, blue, _ = colormaps["tab20"]((2 * k) % 20 + (k // 10) % 2, bytes=True)
    return int(red), int(green), int(blue)


def _caption(prediction: str, truth: str) -> str:
    if prediction == truth:
        return prediction
    return f"{prediction or '(empty)'}, truth: {truth}"


def _draw_mask(x: Numbers, mask: Numbers) -> Image:
    """The classes `mask` (H, W) over the input; unlabelled positions show the input alone."""
    palette = np.array([class_color(k) for k in range(20)])
    opacity = np.where(mask == UNLABELLED, 0, MASK_OPACITY)[..., None]
    mixed = draw_input(x) * (1 - opacity) + palette[mask % len(palette)] * opacity
    return _to_bytes(mixed / 255)


def _draw_values(values: Numbers, low: float, high: float, color_map: str = "viridis") -> Image:
    """Numbers (H, W) in the colors of a map from `low` to `high`."""
    return _to_bytes(colormaps[color_map](_to_unit(values, low, high))[..., :3])


def _to_unit(values: Numbers, low: float, high: float) -> Numbers:
    """Map [low, high] to [0, 1], and clip the rest."""
    unit: Numbers = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    return unit


def _to_bytes(image: Numbers) -> Image:
    """Map [0, 1] to 0 … 255."""
    image_bytes: Image = (image * 255).round().astype(np.uint8)
    return image_bytes


def _limits(values: Numbers) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _format_range(low: float, high: float) -> str:
    return f"{low:.3g} … {high:.3g}"


def _without_padding(grids: Numbers, batch: Batch) -> Numbers:
    """The sample of a batch of one, cropped to its valid extents."""
    grid: Numbers = grids[0]
    return grid if batch.sizes is None else grid[tuple(map(slice, batch.sizes[0]))]
