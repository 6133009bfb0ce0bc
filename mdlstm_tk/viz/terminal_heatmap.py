"""Grids as coloured blocks on a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

# viridis at nine evenly spaced places; colours between are interpolated
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ]
)
Floats = npt.NDArray[np.floating[Any]]


def show_grids(console: Console, panels: dict[str, Floats]) -> None:
    """Print (H, W) grids side by side, each with its name and range; too wide ones are thinned out."""
    columns = (console.width - 3 * len(panels)) // len(panels) // 2
    console.print(
        Columns([_panel(name, grid, max(columns, 8)) for name, grid in panels.items()], padding=(0, 3))
    )


def _panel(name: str, grid: Floats, limit: int) -> Group:
    low, high = float(grid.min()), float(grid.max())
    step = -(-max(grid.shape) // limit)
    shown = grid[::step, ::step]
    thinned = f", every {step}th" if step > 1 else ""
    unit = (shown - low) / (high - low) if high > low else np.zeros_like(shown)
    place = unit * (len(VIRIDIS) - 1)
    below = np.minimum(place.astype(int), len(VIRIDIS) - 2)
    share = (place - below)[..., None]
    colours = (VIRIDIS[below] * (1 - share) + VIRIDIS[below + 1] * share).astype(int)  # (H, W, 3)
    lines = [
        Text.assemble(*(("  ", f"on rgb({r},{g},{b})") for r, g, b in row.tolist())) for row in colours
    ]
    return Group(Text(f"{name}  {low:.3g} … {high:.3g}{thinned}"), *lines)
