"""Cells: their equations, the graph recorded from them, and its gradient.

    cell         the definition of a cell; `register_cell`
    definitions  the cells that come with the package
    functions    the functions that equations may use
    operations   their table: one row for each operation, with all that backends need
    ir           the recorded graph
    step         one step of a cell: peepholes, layer norm, activations, equations
    autodiff     the gradient of a graph
    passes       the kernels of a step and of its gradient, as graphs

A cell is written once, as forward equations; everything else is derived.
"""

import mdlstm_tk.cells.definitions  # noqa: F401, registers the cells
from mdlstm_tk.cells.cell import BUILT_IN_CELLS, Cell, Gate, cell_names, check_cell, get_cell, register_cell
from mdlstm_tk.cells.functions import (
    exp,
    log,
    maximum,
    minimum,
    relu,
    sigmoid,
    sign,
    softplus,
    sqrt,
    tanh,
)

__all__ = [
    "BUILT_IN_CELLS",
    "Cell",
    "Gate",
    "cell_names",
    "check_cell",
    "exp",
    "get_cell",
    "log",
    "maximum",
    "minimum",
    "register_cell",
    "relu",
    "sigmoid",
    "sign",
    "softplus",
    "sqrt",
    "tanh",
]
