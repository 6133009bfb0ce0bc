"""Pictures of pages, with the lines that were found and the texts that were read drawn on them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mdlstm_tk._util.text_order import is_right_to_left, reorder
from mdlstm_tk.errors import require
from mdlstm_tk.io import Array
from mdlstm_tk.io.images import scale as scale_pixels
from mdlstm_tk.text.pages import PageLine

MAX_SIDE = 2000  # pixels of a picture; larger pages are scaled down
BASELINE, OUTLINE, TEXT = (214, 40, 57), (31, 119, 180), (0, 70, 140)
# Fonts with many letters, of Linux, Windows and macOS; the one that Pillow brings has no accents.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")
FADE = 0.35  # by which the page becomes paler


def draw_overlay(pixels: Array, lines: Sequence[PageLine], texts: Mapping[str, str] = {}) -> Any:
    """Draw the baselines, outlines and texts of lines on their page.

    Args:
        pixels: (H, W) or (H, W, 3), the page as `decode_image` returns it.
        lines: of the page, in pixels of it.
        texts: by the `id` of a line; each is written above its baseline.

    Returns:
        A picture of Pillow, at most `MAX_SIDE` wide and high.
    """
    module: Any = require("PIL.Image", "image")
    drawing, fonts = (require(f"PIL.{name}", "image") for name in ("ImageDraw", "ImageFont"))
    scale = min(1.0, MAX_SIDE / max(pixels.shape[:2]))
    step = max(int(1 / scale), 1)
    small = scale_pixels(pixels[::step, ::step])
    if pixels.dtype.kind == "f":  # in any range
        small = (small - small.min()) / max(float(np.ptp(small)), 1e-6)
    small = 255 * small
    image = module.fromarray((small * (1 - FADE) + 255 * FADE).astype(np.uint8)).convert("RGB")
    extents = tuple(max(round(extent * scale), 1) for extent in pixels.shape[1::-1])
    image = image.resize(extents, module.Resampling.BILINEAR)
    draw = drawing.Draw(image)
    for line in lines:
        if line.polygon is not None:
            outline = [tuple(point) for point in (line.polygon * scale).tolist()]
            draw.line([*outline, outline[0]], OUTLINE, 1)
        if line.baseline is None:
            continue
        baseline = [tuple(point) for point in (line.baseline * scale).tolist()]
        draw.line(baseline, BASELINE, 2)
        if text := texts.get(line.id):
            height = sum(line.reach) * scale if line.reach else 20
            font = _font(fonts, max(round(0.4 * height), 8))
            text = _drawable(text, font)
            draw.text(baseline[0], text, TEXT, font, anchor="ls", stroke_width=2, stroke_fill=(255,) * 3)
    return image


def _font(fonts: Any, size: int) -> Any:
    """The first of `FONTS` that this machine has, or else Pillow's own."""
    for name in FONTS:
        with suppress(OSError):
            return fonts.truetype(name, size)
    return fonts.load_default(size)


def _drawable(text: str, font: Any) -> str:
    """A text with letters without their accents where the font lacks them, in the order in which it is
    drawn: Pillow without Raqm draws texts from right to left as if they ran from left to right."""
    if not require("PIL.features", "image").check("raqm"):
        text = reorder(text, "rtl" if is_right_to_left(text) else "ltr")
    lacking = bytes(font.getmask("\uffff"))
    return "".join(
        unicodedata.normalize("NFD", c)[0] if bytes(font.getmask(c)) == lacking else c for c in text
    )
