"""Print grids as colored blocks on a terminal. `mdlstm infer` uses it, so it imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.console import Console, Group
from rich.text import Text

from mdlstm_tk._util.text import printable

# nine evenly spaced colors of the map viridis; those between are interpolated
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


def show_grids(console: Console, grids: dict[str, Floats]) -> None:
    """Print grids (H, W) side by side, each with its name and value range.

    A grid that does not fit is subsampled. NaN is shown as the smallest value.

    Args:
        console: the terminal.
        grids: the grids by name; at least one, and none empty.
    """
    max_extent = max((console.width - 3 * len(grids)) // len(grids) // 2, 8)
    heatmaps = [_heatmap(name, grid, max_extent) for name, grid in grids.items()]
    console.print(Columns(heatmaps, padding=(0, 3)))


def _heatmap(name: str, grid: Floats, max_extent: int) -> Group:
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    stride = -(-max(grid.shape) // max_extent)
    values = np.clip(np.nan_to_num(grid[::stride, ::stride].astype(float), nan=low), low, high)
    half_range = high / 2 - low / 2  # the range of float64 may be too large for float64
    unit = (values / 2 - low / 2) / half_range if half_range > 0 else np.zeros_like(values)
    color_index = unit * (len(VIRIDIS) - 1)
    lower = np.minimum(color_index.astype(int), len(VIRIDIS) - 2)
    weight = (color_index - lower)[..., None]
    colors = (VIRIDIS[lower] * (1 - weight) + VIRIDIS[lower + 1] * weight).astype(int)  # (H, W, 3)
    lines = [Text.assemble(*(("  ", f"on rgb({r},{g},{b})") for r, g, b in row.tolist())) for row in colors]
    suffix = f", stride {stride}" if stride > 1 else ""
    return Group(Text(f"{printable(name)}  {low:.3g} … {high:.3g}{suffix}"), *lines)
