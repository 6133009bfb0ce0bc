"""The cells' equations, recorded: what a fused kernel does for one cell, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

from mdlstm_tk.cells.equations import Cell, total
from mdlstm_tk.cells.ir import Kernel, Store, Value, loads
from mdlstm_tk.cells.step import CellParameters, cell_step, cell_step_backward

PARAMETERS = ("peephole", "norm_weight", "norm_bias")
FORWARD_READS = ("a", "before", *PARAMETERS)
FORWARD_WRITES = ("h", "c", "gates")
BACKWARD_READS = ("gates", "before", "c", "grad", "ahead_h", "ahead_c", *PARAMETERS)
BACKWARD_WRITES = ("da", "dbefore", *(f"d{name}" for name in PARAMETERS))


def forward(cell: Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """From pre-activations `a` and the states `before`, one an axis, to `h` and `c`.

    The cell keeps its `gates` for `backward`, or with layer norm its pre-activations.
    """
    gates = len(cell.gates(ndim))
    a, parameters = loads("a", gates), _parameters(gates, ndim, peephole, layer_norm)
    h, c, active = cell_step(cell, a, loads("before", ndim), parameters)
    return Kernel([Store("h", 0, h), Store("c", 0, c), *_stores("gates", a if layer_norm else active)])


def backward(cell: Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """From `grad`, the gradient of the output, from what comes back from the cells one step `ahead`, one an
    axis, and from what `forward` keeps to `da` and `dbefore`; the parameters' are added up."""
    return _gradient(cell, ndim, peephole, layer_norm, activated=not layer_norm)


def recompute(cell: Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """`backward` where `gates` holds the pre-activations."""
    return _gradient(cell, ndim, peephole, layer_norm, activated=False)


def _gradient(cell: Cell, ndim: int, peephole: bool, layer_norm: bool, activated: bool) -> Kernel:
    gates = len(cell.gates(ndim))
    da, dbefore, gradients = cell_step_backward(
        cell,
        loads("gates", gates),
        loads("before", ndim),
        Value.load("c", 0),
        total([Value.load("grad", 0), *loads("ahead_h", ndim)]),
        total(loads("ahead_c", ndim)),
        _parameters(gates, ndim, peephole, layer_norm),
        activated,
    )
    stores = [*_stores("da", da), *_stores("dbefore", dbefore)]
    for name, rows in vars(gradients).items():
        stores += _stores(f"d{name}", rows or [], add=True)
    return Kernel(stores)


def _parameters(gates: int, ndim: int, peephole: bool, layer_norm: bool) -> CellParameters:
    rows = {"peephole": 2 * ndim + 1, "norm_weight": gates + 1, "norm_bias": gates + 1}
    there = {"peephole": peephole, "norm_weight": layer_norm, "norm_bias": layer_norm}
    return CellParameters(**{name: loads(name, rows[name]) for name in PARAMETERS if there[name]})


def _stores(slot: str, values: Sequence[Value], add: bool = False) -> list[Store]:
    return [Store(slot, row, value, add) for row, value in enumerate(values)]
