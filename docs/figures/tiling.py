"""Draw the figure of docs/concepts.md: python docs/figures/tiling.py"""

from __future__ import annotations

from itertools import product

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import ACCENT, FAINT, INK, PALE, arrow, blank, draw

DONE, NOW = "#bcd9ea", "#f4a261"
SIDE, GAP = 3, 0.9  # positions in a tile, and the space between tiles in which their faces are drawn
STEP = SIDE + GAP


def tiles() -> Figure:
    """A grid cut into 3×4 tiles: those on the third anti-diagonal, and the faces that they are given."""
    height, width, diagonal = 3, 4, 2
    figure, axes = plt.subplots(figsize=(8.2, 5.2))
    blank(axes)
    for row, column in product(range(height), range(width)):
        number = row + column
        color = DONE if number < diagonal else NOW if number == diagonal else PALE
        top, left = row * STEP, column * STEP
        for r, c in product(range(SIDE), range(SIDE)):
            place = (left + c, top + r)
            axes.add_patch(Rectangle(place, 1, 1, facecolor=color, edgecolor="white", linewidth=1))
        axes.text(left + SIDE / 2, top + SIDE / 2, str(number), ha="center", va="center", fontsize=15)
        if number == diagonal:
            enter(axes, top, left, from_above=row > 0, from_left=column > 0)
    text = width * STEP + 0.1
    axes.text(text, 1.5, "blue: swept before", va="center")
    axes.text(text, 5.4, "orange: swept now, each\non its own", va="center")
    axes.text(text, 9.3, "grey: to come", va="center")
    axes.text(
        0,
        height * STEP + 0.3,
        "red bars: faces, which hold h and c of each line of positions that enters a tile\n"
        "dotted bars: faces of the whole grid, which hold zeros or the initial state",
        va="center",
        color=INK,
    )
    axes.set_xlim(-1.1, text + 6)
    axes.set_ylim(height * STEP + 1.2, -1.1)
    return figure


def enter(axes: Axes, top: float, left: float, *, from_above: bool, from_left: bool) -> None:
    """The faces through which states enter a tile."""
    bar, middle = 0.28, GAP / 2
    axes.add_patch(Rectangle((left, top - middle - bar / 2), SIDE, bar, **look(from_above)))
    axes.add_patch(Rectangle((left - middle - bar / 2, top), bar, SIDE, **look(from_left)))
    for k in range(SIDE):
        arrow(axes, (left + k + 0.5, top - middle), (left + k + 0.5, top + 0.35), ACCENT)
        arrow(axes, (left - middle, top + k + 0.5), (left + 0.35, top + k + 0.5), ACCENT)


def look(has_states: bool) -> dict[str, object]:
    """The look of a face that a tile before it left, or of one of the whole grid."""
    if has_states:
        return {"facecolor": ACCENT, "edgecolor": ACCENT}
    return {"facecolor": "white", "edgecolor": FAINT, "linestyle": ":"}


if __name__ == "__main__":
    draw({"tiles.svg": tiles})
