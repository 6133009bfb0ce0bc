"""Draw the picture of docs/handwriting.md.

    python benchmarks/handwriting_picture.py lines.onnx --font HAND.ttf --lm lm.arpa.gz

A page is drawn in a font that looks like handwriting, its lines bent; a trained model reads it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from measuring import ROOT, argument_parser
from PIL import Image, ImageDraw, ImageFont

from mdlstm_tk.runtime import CharacterModel, Session, Transcription, cut_line
from mdlstm_tk.runtime.pages import PageLine

PICTURE = ROOT / "docs/images/handwriting.png"
INK, UNSURE_INK, OUTLINE = "#22303c", "#c2410c", "#2b7bba"
TEXTS = (
    "Je soussigné Pierre Martin",
    "déclare léguer à ma femme",
    "tout ce que je possède.",
    "Fait à Paris le 3 août 1914",
)
WIDTH, STEP, SIZE, LEFT = 880, 120, 62, 50  # of the page, between lines, of the font, and of the margin
ABOVE, BELOW = 60, 30  # pixels of an outline above and below the baseline
UNSURE = 0.7  # confidence below which a character is drawn in the other colour


def draw_page(font: ImageFont.FreeTypeFont) -> tuple[np.ndarray, list[PageLine]]:
    """The pixels (H, W) uint8 of a page, and its lines."""
    rng = np.random.default_rng(1)
    height = STEP * (len(TEXTS) + 1)
    columns = np.arange(WIDTH)
    pixels = np.clip(rng.normal(228, 2, (height, WIDTH)) - columns * 0.02, 0, 255)
    lines = []
    for k, text in enumerate(TEXTS):
        base = STEP * (k + 1)
        bend = 14 * np.sin(columns / 240 + k) - columns * rng.uniform(0, 0.03)
        ink = Image.new("L", (WIDTH, height))
        ImageDraw.Draw(ink).text((LEFT, base), text, fill=255, font=font, anchor="ls")
        rows = np.arange(height)[:, None] - np.round(bend).astype(int)
        share = np.take_along_axis(np.asarray(ink) / 255 * 0.85, rows.clip(0, height - 1), axis=0)
        pixels = pixels * (1 - share) + 50 * share
        right = LEFT + font.getlength(text)
        x = np.linspace(LEFT - 15, min(right + 15, WIDTH - 5), 12)
        y = base + np.interp(x, columns, bend)
        outline = np.concatenate([np.stack([x, y - ABOVE], 1), np.stack([x, y + BELOW], 1)[::-1]])
        box = (*outline.min(0).astype(int).tolist(), *outline.max(0).astype(int).tolist())
        lines.append(PageLine(str(k), text, np.stack([x, y], 1), outline, box, (ABOVE, BELOW)))
    return pixels.astype(np.uint8), lines


def draw_reading(axes: Axes, cut: np.ndarray, reading: Transcription) -> None:
    """A cut line, and below it each character where the network read it; unsure ones in another colour."""
    axes.imshow(cut, cmap="gray", vmin=0, vmax=255)
    height = len(cut)
    for text, character in zip(reading.text, reading.characters, strict=True):
        color = INK if character.confidence >= UNSURE else UNSURE_INK
        center = (character.left + character.right) / 2
        axes.text(center, height + 26, text, ha="center", va="center", color=color, fontsize=10)
    axes.set(xlim=(0, cut.shape[1]), ylim=(height + 46, 0))
    axes.set_axis_off()


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--font", type=Path, required=True)
    parser.add_argument("--lm", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    mpl.use("agg")
    pixels, lines = draw_page(ImageFont.truetype(options.font, SIZE))
    cuts = [cut_line(pixels, line) for line in lines]
    search = {"beam": 64, "lm": CharacterModel.load(options.lm)} if options.lm else {}
    with Session(options.model, device="cpu") as session:
        readings = session.transcribe(cuts, **search)
    figure = plt.figure(figsize=(11, 4.2))
    left, right = figure.add_gridspec(1, 2, width_ratios=[1, 1], wspace=0.05)
    page = figure.add_subplot(left)
    page.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    for line in lines:
        page.fill(*line.polygon.T, fill=False, edgecolor=OUTLINE, linewidth=1.2)
        page.plot(*line.baseline.T, color=UNSURE_INK, linewidth=1.2)
    page.set_axis_off()
    grid = right.subgridspec(len(lines), 1, hspace=0.05)
    for k, (cut, reading) in enumerate(zip(cuts, readings, strict=True)):
        draw_reading(figure.add_subplot(grid[k]), cut, reading)
        print(f"{lines[k].text}\n{reading.text}  {reading.confidence:.2f}")
    figure.savefig(
        options.output, metadata={"Software": None}, dpi=120, facecolor="white", bbox_inches="tight"
    )


if __name__ == "__main__":
    main()
