"""Cells: their equations, the graph recorded from them, and its gradient.

    cell         what a cell is; `register_cell`
    definitions  the cells that come with the package
    step         one step of a cell: peepholes, layer norm, activations, equations
    ir           the recorded graph of a step
    autodiff     its gradient
    lowering     the kernels of a step and of its gradient, as graphs

A cell is written once, as forward equations; everything else is derived.
"""

import mdlstm_tk.cells.definitions  # noqa: F401, registers the cells
from mdlstm_tk.cells.cell import Cell, cell_names, check_cell, get_cell, register_cell

BUILT_IN_CELLS = tuple(cell_names())
"""The names of the cells that come with the package, whatever is registered later."""

__all__ = ["BUILT_IN_CELLS", "Cell", "cell_names", "check_cell", "get_cell", "register_cell"]
