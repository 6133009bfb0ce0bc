"""Pictures of a sample and of its prediction, in bytes of red, green and blue."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mdlstm_tk.data.task import UNLABELLED, Batch, TaskSpec
from mdlstm_tk.io import Array

Color = tuple[int, int, int]  # red, green, blue
Image = npt.NDArray[np.uint8]  # (H, W, 3)

ERROR_COLOR = np.array([214, 40, 57])
MASK_OPACITY = 0.6  # of a class's color over the input
MAX_SIDE, MAX_LINE = 640, 1400  # pixels of an image in a page; larger ones are scaled down
LINE_ASPECT = 4  # of images that may be `MAX_LINE` wide


@dataclass(frozen=True)
class Panel:
    """A captioned image.

    Attributes:
        name: caption; further lines follow the first.
        image: (H, W, 3).
        is_right: False shows the caption in red; None if it is neither right nor wrong.
        legend: the colors in the image, by name.
    """

    name: str
    image: Image
    is_right: bool | None = None
    legend: Mapping[str, Color] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Data URL of a PNG file."""
        import PIL.Image

        height, width = self.image.shape[:2]
        is_grey = (self.image == self.image[..., :1]).all()
        picture = PIL.Image.fromarray(self.image[..., 0] if is_grey else self.image)
        picture.thumbnail((MAX_LINE if width > LINE_ASPECT * height else MAX_SIDE,) * 2)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def answer_panel(
    batch: Batch, answer: str, truth: str, is_right: bool | None = None, note: str = ""
) -> Panel:
    """The input of a sample, a batch of one, captioned with the answer, and with the truth unless that is
    equal."""
    caption = f"{answer or '(empty)'}  {note}".rstrip()
    if not is_right:
        caption += f"\ntruth: {truth}"
    return Panel(caption, draw_input(visible(batch.x, batch)), is_right)


def draw_input(x: Array, fade: float = 0.0) -> Image:
    """Draw x (H, W, C): in color if C is 3, else the first channel in grey.

    Args:
        x: values; a color image is expected in [0, 1], other values are scaled to their own range.
        fade: from 0, unchanged, to 1, white.
    """
    if x.shape[-1] == 3:
        image = _to_unit(x, min(0.0, float(x.min())), max(1.0, float(x.max())))
    else:
        image = np.repeat(_to_unit(x[..., :1], float(x[..., 0].min()), float(x[..., 0].max())), 3, axis=-1)
    return _to_bytes(image * (1 - fade) + fade)


def class_colors(spec: TaskSpec) -> list[Color]:
    """The color of each class in masks: of the masks' palette, or else Matplotlib's "tab20" in turn, where
    the saturated ones come first."""
    from matplotlib import colormaps

    parts = iter(spec.decoding.get("mask_palette", ()))
    if colors := list(zip(parts, parts, parts, strict=False)):
        return colors
    turns = ((2 * k) % 20 + (k // 10) % 2 for k in range(len(spec.classes)))
    return [tuple(map(int, colormaps["tab20"](turn, bytes=True)[:3])) for turn in turns]  # type: ignore[misc]


def draw_mask(x: Array, mask: Array, colors: Sequence[Color]) -> Image:
    """Draw the classes `mask` (H, W) over the input; unlabelled positions show the input alone."""
    opacity = np.where(mask == UNLABELLED, 0, MASK_OPACITY)[..., None]
    mixed = draw_input(x) * (1 - opacity) + np.array(colors)[mask] * opacity
    return _to_bytes(mixed / 255)


def draw_values(values: Array, low: float, high: float, color_map: str = "viridis") -> Image:
    """Numbers (H, W) in the colors of a map from `low` to `high`."""
    from matplotlib import colormaps

    return _to_bytes(colormaps[color_map](_to_unit(values, low, high))[..., :3])


def _to_unit(values: Array, low: float, high: float) -> Array:
    """Map [low, high] to [0, 1], and clip the rest."""
    unit: Array = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    return unit


def _to_bytes(image: Array) -> Image:
    """Map [0, 1] to 0 … 255."""
    image_bytes: Image = (image * 255).round().astype(np.uint8)
    return image_bytes


def visible(grids: Array, batch: Batch) -> Any:
    """The sample of a batch of one, cropped to its valid extents, with two axes of the grid: of a volume,
    the middle slice, and of a sequence, a row."""
    grid: Array = grids[0] if batch.sizes is None else grids[0][tuple(map(slice, batch.sizes[0]))]
    for _ in range(batch.x.ndim - 4):
        grid = grid[len(grid) // 2]
    return grid[None] if batch.x.ndim == 3 else grid
