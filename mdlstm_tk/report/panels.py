"""Images of a sample and of its prediction."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib import colormaps

from mdlstm_tk.data import UNLABELLED, Batch, TaskSpec

Color = tuple[int, int, int]  # red, green, blue
Numbers = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]  # (H, W, 3)

ERROR_COLOR = np.array([214, 40, 57])
MASK_OPACITY = 0.6  # of a class's color over the input
MAX_SIDE, MAX_LINE = 640, 1400  # pixels of an image in a page; larger ones are scaled down
LINE_ASPECT = 4  # of images that may be `MAX_LINE` wide
PIXELATED_BELOW = 160  # pixels; smaller images are enlarged without smoothing


class ShownAnswer(NamedTuple):
    """The answer for a sample beside the true one, in words.

    Attributes:
        prediction, truth: the two.
        is_right: False shows the prediction in red; None if no prediction is right or wrong, as of numbers.
        note: such as how certain the network is.
    """

    prediction: str
    truth: str
    is_right: bool | None
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A captioned image.

    Attributes:
        name: caption.
        image: (H, W, 3).
        value_range: the values that the ends of the color map stand for, as text; "" if there is none.
        sample: name of the sample, on its first panel; else "".
        answer: of a sample with one panel, the prediction and the truth.
    """

    name: str
    image: Image
    value_range: str = ""
    sample: str = ""
    answer: ShownAnswer | None = None

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


def answer_panel(batch: Batch, answer: ShownAnswer, sample: str, verb: str = "predicted") -> Panel:
    """The input of a sample, captioned with the prediction, and with the truth unless that is equal.

    Args:
        batch: the sample as a batch of one.
        answer: the texts of the caption.
        sample: its name.
        verb: stands before the prediction.
    """
    caption = f"{verb}: {answer.prediction or '(empty)'}"
    if not answer.is_right:
        caption += f"\ntruth: {answer.truth}"
    return Panel(caption, draw_input(visible(batch.x, batch)), sample=sample, answer=answer)


def draw_input(x: Numbers, fade: float = 0.0) -> Image:
    """Draw x (H, W, C): in color if C is 3, else the first channel in grey.

    Args:
        x: values; a color image is expected in [0, 1], other values are scaled to their own range.
        fade: from 0, unchanged, to 1, white.
    """
    if x.shape[-1] == 3:
        image = _to_unit(x, min(0.0, float(x.min())), max(1.0, float(x.max())))
    else:
        image = np.repeat(_to_unit(x[..., :1], *limits_of(x[..., 0])), 3, axis=-1)
    return _to_bytes(image * (1 - fade) + fade)


def class_colors(spec: TaskSpec) -> dict[str, Color]:
    """Return the color of each class in masks, by its name.

    They are the masks' palette, or else Matplotlib's "tab20" in turn, where the saturated ones come first.
    """
    palette = iter(spec.mask_palette)
    colors = list(zip(palette, palette, palette, strict=False))
    if not colors:
        turns = ((2 * k) % 20 + (k // 10) % 2 for k in range(len(spec.classes)))
        colors = [tuple(map(int, colormaps["tab20"](turn, bytes=True)[:3])) for turn in turns]  # type: ignore[misc]
    return dict(zip(spec.classes, colors, strict=True))


def draw_mask(x: Numbers, mask: Numbers, spec: TaskSpec) -> Image:
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


def limits_of(values: Numbers) -> tuple[float, float]:
    """The lowest and the highest value."""
    return float(values.min()), float(values.max())


def format_range(low: float, high: float) -> str:
    """The values at the ends of a color map, in words."""
    return f"{low:.3g} … {high:.3g}"


def visible(grids: Numbers, batch: Batch) -> Numbers:
    """Return the sample of a batch of one, cropped to its valid extents, with two axes of the grid: of a
    volume, the middle slice, and of a sequence, a row."""
    grid: Numbers = grids[0] if batch.sizes is None else grids[0][tuple(map(slice, batch.sizes[0]))]
    for _ in range(batch.x.ndim - 4):
        grid = grid[len(grid) // 2]
    return grid[None] if batch.x.ndim == 3 else grid
