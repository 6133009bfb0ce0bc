"""Pictures of pages, with the lines that were found and the texts that were read drawn on them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mdlstm_tk.errors import require
from mdlstm_tk.runtime.io.npy import Array, open_output
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
    small = pixels[::step, ::step].astype(np.float32)
    small = (small - small.min()) * (255 / max(float(np.ptp(small)), 1e-6))
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
            height = sum(line.extents) * scale if line.extents else 20
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
    """A text with letters without their accents where the font lacks them."""
    lacking = bytes(font.getmask("\uffff"))
    return "".join(
        unicodedata.normalize("NFD", c)[0] if bytes(font.getmask(c)) == lacking else c for c in text
    )


class Overlays:
    """Writes the pictures of pages into a folder, each under the name of its page.

    Args:
        folder: is made if it does not exist.
        replace: pictures may exist.
    """

    def __init__(self, folder: str | Path, replace: bool) -> None:
        self._folder, self._replace = Path(folder), replace
        self._names: dict[str, int] = {}

    def write(
        self, source: str, pixels: Array, lines: Sequence[PageLine], texts: Mapping[str, str] = {}
    ) -> None:
        """Write `NAME.out.png`; a second page of the same name is `NAME-2.out.png`.

        Raises:
            InputError: the file exists, and may not be replaced.
            MDLSTMError: it cannot be written.
        """
        stem = Path(source).stem
        count = self._names[stem] = self._names.get(stem, 0) + 1
        name = stem if count == 1 else f"{stem}-{count}"
        with open_output(self._folder / f"{name}.out.png", replace=self._replace) as file:
            draw_overlay(pixels, lines, texts).save(file, "PNG")
