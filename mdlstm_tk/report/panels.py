"""Images of a sample and of its prediction."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib import colormaps

from mdlstm_tk.data import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.runtime.postprocessing import labels
from mdlstm_tk.text.measures import predicted_texts, target_texts

Numbers = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]  # (H, W, 3)

ERROR_COLOR = np.array([214, 40, 57])
MASK_OPACITY = 0.6  # of a class's color over the input
MAX_SIDE, MAX_LINE = 640, 1400  # pixels of an image in a page; larger ones are scaled down
LINE_ASPECT = 4  # of images that may be `MAX_LINE` wide
PIXELATED_BELOW = 160  # pixels; smaller images are enlarged without smoothing


@dataclass(frozen=True)
class Panel:
    """A captioned image.

    Attributes:
        name: caption.
        image: (H, W, 3).
        value_range: the values that the ends of the color map stand for, as text; "" if there is none.
        sample: name of the sample, on its first panel; else "".
    """

    name: str
    image: Image
    value_range: str = ""
    sample: str = ""

    @cached_property
    def picture(self) -> PIL.Image.Image:
        """The image as a page shows it."""
        height, width = self.image.shape[:2]
        is_grey = (self.image == self.image[..., :1]).all()
        picture = PIL.Image.fromarray(self.image[..., 0] if is_grey else self.image)
        side = MAX_LINE if width > LINE_ASPECT * height else MAX_SIDE
        picture.thumbnail((side, side))
        return picture

    @property
    def url(self) -> str:
        """Data URL of a PNG file."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    @property
    def pixelated(self) -> bool:
        return max(self.picture.size) < PIXELATED_BELOW


def sample_panels(batch: Batch, prediction: Numbers, spec: TaskSpec, sample: str = "") -> list[Panel]:
    """Return the panels of a batch with one sample, which has this name.

    A classified or transcribed sample has one panel, its input, captioned with the prediction. A grid or a
    segmentation has four: input, prediction, truth and errors. Of kind "density" there are two: the input,
    and how surprising each position is, given those before it. If x has neither one nor three channels,
    the first one is drawn; of several outputs, too. Of a volume, the slice in the middle is drawn.
    """
    x = visible(batch.x, batch)
    if spec.kind == "classify":
        predicted_class, true_class = (spec.classes[int(k)] for k in (labels(prediction)[0], batch.y[0]))
        return [Panel(_caption("predicted", predicted_class, true_class), draw_input(x), sample=sample)]
    if spec.kind == "transcribe":
        (predicted_text,), (true_text,) = predicted_texts(prediction, spec), target_texts(batch, spec)
        return [Panel(_caption("read", predicted_text, true_text), draw_input(x), sample=sample)]
    output, target = visible(prediction, batch), visible(batch.y, batch)
    if spec.kind == "density":
        surprise = -output.sum(-1)
        limits = 0.0, float(surprise.max())
        return [
            Panel(f"{surprise.sum():.1f} nats", draw_input(x), sample=sample),
            Panel("surprise", draw_values(surprise, *limits, "magma"), f"{_format_range(*limits)} nats"),
        ]
    if spec.kind == "segment":
        predicted_mask = labels(output)
        errors = draw_input(x, fade=0.5)
        errors[(target != UNLABELLED) & (predicted_mask != target)] = ERROR_COLOR
        return [
            Panel("input", draw_input(x), sample=sample),
            Panel("prediction", _draw_mask(x, predicted_mask, spec)),
            Panel("truth", _draw_mask(x, target, spec)),
            Panel("errors", errors),
        ]
    output, target = output[..., 0], target[..., 0]
    limits = _limits(target)
    error = np.abs(output - target)
    error_limits = 0.0, float(error.max())
    input_range = "" if x.shape[-1] == 3 else _format_range(*_limits(x[..., 0]))
    return [
        Panel("input", draw_input(x), input_range, sample),
        Panel("prediction", draw_values(output, *limits), _format_range(*limits)),
        Panel("truth", draw_values(target, *limits), _format_range(*limits)),
        Panel("error", draw_values(error, *error_limits, "magma"), _format_range(*error_limits)),
    ]


def draw_input(x: Numbers, fade: float = 0.0) -> Image:
    """Draw x (H, W, C): in color if C is 3, else the first channel in grey.

    Args:
        x: values; a color image is expected in [0, 1], other values are scaled to their own range.
        fade: from 0, unchanged, to 1, white.
    """
    if x.shape[-1] == 3:
        image = _to_unit(x, min(0.0, float(x.min())), max(1.0, float(x.max())))
    else:
        image = np.repeat(_to_unit(x[..., :1], *_limits(x[..., 0])), 3, axis=-1)
    return _to_bytes(image * (1 - fade) + fade)


def class_colors(spec: TaskSpec) -> dict[str, tuple[int, int, int]]:
    """Return the color of each class in masks, by its name.

    They are the masks' palette, or else Matplotlib's "tab20" in turn, where the saturated ones come first.
    """
    palette = iter(spec.mask_palette)
    colors = list(zip(palette, palette, palette, strict=False))
    if not colors:
        turns = ((2 * k) % 20 + (k // 10) % 2 for k in range(len(spec.classes)))
        colors = [tuple(map(int, colormaps["tab20"](turn, bytes=True)[:3])) for turn in turns]  # type: ignore[misc]
    return dict(zip(spec.classes, colors, strict=True))


def _caption(verb: str, prediction: str, truth: str) -> str:
    caption = f"{verb}: {prediction or '(empty)'}"
    return caption if prediction == truth else f"{caption}\ntruth: {truth}"


def _draw_mask(x: Numbers, mask: Numbers, spec: TaskSpec) -> Image:
    """Draw the classes `mask` (H, W) over the input; unlabelled positions show the input alone."""
    palette = np.array(list(class_colors(spec).values()))
    opacity = np.where(mask == UNLABELLED, 0, MASK_OPACITY)[..., None]
    mixed = draw_input(x) * (1 - opacity) + palette[mask] * opacity
    return _to_bytes(mixed / 255)


def draw_values(values: Numbers, low: float, high: float, color_map: str = "viridis") -> Image:
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


def visible(grids: Numbers, batch: Batch) -> Numbers:
    """Return the sample of a batch of one, cropped to its valid extents; of a volume, the middle slice."""
    grid: Numbers = grids[0] if batch.sizes is None else grids[0][tuple(map(slice, batch.sizes[0]))]
    for _ in range(batch.x.ndim - 4):
        grid = grid[len(grid) // 2]
    return grid
