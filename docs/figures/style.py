"""The common style of the drawings of the documentation. A file is the same whenever it is drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

IMAGES = Path(__file__).parents[1] / "images"
INK, FAINT, ACCENT, PALE = "#22303c", "#9aa7b2", "#c2410c", "#eef2f5"

mpl.use("agg")
plt.rcParams |= {
    "font.size": 10,
    "svg.hashsalt": "mdlstm-tk",  # else names inside the file would differ from run to run
    "text.color": INK,
    "font.family": "DejaVu Sans",
}


def draw(figures: dict[str, Callable[[], Figure]]) -> None:
    """Write each figure into docs/images/, or into the folder that is named on the command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    for name, make in figures.items():
        figure = make()
        metadata = {"Date": None} if name.endswith(".svg") else {"Software": None}
        figure.savefig(folder / name, metadata=metadata, dpi=120, facecolor="white", bbox_inches="tight")
        plt.close(figure)


def blank(axes: Axes) -> None:
    """Leave out ticks and frame, with rows counted downwards and square positions."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.invert_yaxis()


def square(axes: Axes, row: float, column: float, color: str, text: str = "", **options: object) -> None:
    """A position of a grid."""
    edge = options.pop("edgecolor", "white")
    axes.add_patch(
        Rectangle((column, row), 1, 1, facecolor=color, edgecolor=edge, linewidth=1.5, **options)
    )
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    """An arrow between two points (x, y)."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=color, shrinkA=0, shrinkB=0)
    )


def box(
    axes: Axes, x: float, y: float, width: float, text: str, color: str = PALE, height: float = 1.2
) -> None:
    """A rounded box with text, its upper left corner at (x, y)."""
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", facecolor=color, edgecolor=FAINT
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.4, fontsize=9)
