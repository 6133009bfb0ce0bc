"""Cells: their equations, the graph recorded from them, and its gradient.

    cell         the definition of a cell; `register_cell`
    definitions  the cells that come with the package
    graph        the recorded equations, the table of their operations, and their gradient
    step         one step of a cell: peepholes, layer norm, activations, equations; its kernels

A cell is written once, as forward equations; everything else is derived.
"""

from collections.abc import Callable

import mdlstm_tk.cells.definitions  # noqa: F401, registers the cells
from mdlstm_tk.cells.cell import BUILT_IN_CELLS, Cell, Gate, cell_names, check_cell, get_cell, register_cell
from mdlstm_tk.cells.graph import Value, record


def _function(op: str, doc: str) -> Callable[..., Value]:
    def function(*args: Value | float) -> Value:
        return record(op, *args)

    function.__name__, function.__doc__ = op, doc
    return function


exp = _function("exp", "e^x.")
log = _function("log", "The natural logarithm.")
sqrt = _function("sqrt", "The square root.")
sign = _function("sign", "1, 0 or −1.")
maximum = _function("maximum", "The larger of two; if they are equal, each gets half of the gradient.")
minimum = _function("minimum", "The smaller of two, as `maximum`.")
tanh = _function("tanh", "The hyperbolic tangent.")
sigmoid = _function("sigmoid", "1 / (1 + e^−x).")
relu = _function("relu", "max(x, 0).")
softplus = _function("softplus", "log(1 + e^x).")

__all__ = ["BUILT_IN_CELLS", "Cell", "Gate", "cell_names", "check_cell", "get_cell", "register_cell"]
__all__ += ["exp", "log", "maximum", "minimum", "relu", "sigmoid", "sign", "softplus", "sqrt", "tanh"]
