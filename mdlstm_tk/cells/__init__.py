"""Cells: their equations, the graph recorded from them, and its gradient.

    cell         the definition of a cell; `register_cell`
    definitions  the cells that come with the package
    graph        the recorded equations, the table of their operations, and their gradient
    step         one step of a cell: peepholes, layer norm, activations, equations; its kernels

A cell is written once, as forward equations; everything else is derived.
"""

import mdlstm_tk.cells.definitions  # noqa: F401, registers the cells
from mdlstm_tk.cells.cell import BUILT_IN_CELLS, Cell, Gate, cell_names, get_cell, register_cell

__all__ = ["BUILT_IN_CELLS", "Cell", "Gate", "cell_names", "get_cell", "register_cell"]
