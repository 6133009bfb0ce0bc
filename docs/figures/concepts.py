"""Draw the figures of docs/concepts.md: python docs/figures/concepts.py"""

from __future__ import annotations

from itertools import product

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from style import ACCENT, FAINT, INK, PALE, arrow, blank, draw, square

from mdlstm_tk.wavefront import resolve_directions

WAVE, SEEN, NOW = plt.get_cmap("YlGnBu"), "#bcd9ea", "#f4a261"


def wavefront() -> Figure:
    """The wavefronts of a 4×6 grid, and the predecessors of one position."""
    height, width = 4, 6
    last = height + width - 2
    figure, axes = plt.subplots(figsize=(5.2, 3.4))
    blank(axes)
    for r, c in product(range(height), range(width)):
        square(axes, r, c, WAVE(0.12 + 0.5 * (r + c) / last), str(r + c))
    row, column = 2, 3
    for d_row, d_column in ((-1, 0), (0, -1)):
        start = (column + 0.5 + 0.78 * d_column, row + 0.5 + 0.78 * d_row)
        arrow(axes, start, (column + 0.5 + 0.22 * d_column, row + 0.5 + 0.22 * d_row), ACCENT)
    axes.set_xlim(-0.1, width + 0.1)
    axes.set_ylim(height + 0.1, -0.1)
    return figure


def directions() -> Figure:
    """The positions that a position sees in each direction."""
    height, width, row, column = 4, 5, 1, 2
    figure, all_axes = plt.subplots(1, 4, figsize=(8.4, 2.2))
    for axes, (down, right) in zip(all_axes, resolve_directions("all", 2), strict=True):
        blank(axes)
        for r, c in product(range(height), range(width)):
            seen = (row - r) * down >= 0 and (column - c) * right >= 0
            square(axes, r, c, NOW if (r, c) == (row, column) else SEEN if seen else PALE)
        corner = (0.5 if right > 0 else width - 0.5, 0.5 if down > 0 else height - 0.5)
        arrow(axes, corner, (corner[0] + 1.3 * right, corner[1] + 1.3 * down), INK)
        axes.set_title(f"({down}, {right})".replace("-", "−"), fontsize=10, color=INK)
        axes.set_xlim(-0.1, width + 0.1)
        axes.set_ylim(height + 0.1, -0.1)
    return figure


def boundary() -> Figure:
    """Where a sweep enters a grid, and a sample that is smaller than the grid."""
    height, width, valid_height, valid_width = 4, 6, 3, 4
    figure, axes = plt.subplots(figsize=(6.4, 3.9))
    blank(axes)
    for r, c in product(range(height), range(width)):
        is_valid = r < valid_height and c < valid_width
        square(axes, r, c, SEEN if is_valid else PALE, "x" if is_valid else "·")
    for c in range(width):
        square(axes, -1.15, c, "white", "0", edgecolor=FAINT, linestyle=":")
        arrow(axes, (c + 0.5, -0.3), (c + 0.5, 0.2), ACCENT)
    for r in range(height):
        square(axes, r, -1.15, "white", "0", edgecolor=FAINT, linestyle=":")
        arrow(axes, (-0.3, r + 0.5), (0.2, r + 0.5), ACCENT)
    axes.text(width + 0.3, -0.65, "states outside\nthe grid: zeros", va="center")
    axes.text(width + 0.3, 1.5, "valid positions:\nsizes = [3, 4]", va="center")
    axes.text(width + 0.3, 3.5, "padding: y is 0", va="center")
    axes.set_xlim(-1.3, width + 3.2)
    axes.set_ylim(height + 0.1, -1.3)
    return figure


if __name__ == "__main__":
    draw(
        {
            "wavefront.svg": wavefront,
            "directions.svg": directions,
            "directions.png": directions,  # for README.md: package indexes show no SVG
            "boundary.svg": boundary,
        }
    )
