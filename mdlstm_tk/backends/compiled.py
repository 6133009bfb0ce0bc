"""Kernels for a cell: its equations, recorded, in the templates of `numba_kernels`, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import FunctionType
from typing import Any, Literal

from mdlstm_tk import cells
from mdlstm_tk.backends import numba_kernels
from mdlstm_tk.backends.jit import kept
from mdlstm_tk.backends.row_kernel import row_kernel
from mdlstm_tk.backends.step import CellParameters, cell_step, cell_step_backward
from mdlstm_tk.backends.trace import Kernel, Store, Value, loads

PARAMETERS = ("peephole", "norm_weight", "norm_bias")
FORWARD_SLOTS = ("a", "before", "h", "c", "gates", *PARAMETERS)
BACKWARD_SLOTS = (
    *("gates", "before", "c", "dh", "dc", *PARAMETERS),
    *("da", "dbefore", *(f"d{name}" for name in PARAMETERS)),
)


@cache
def compiled(
    way: Literal["forward", "backward", "recompute"],
    dtype: str,
    cell: str,
    ndim: int,
    peephole: bool,
    layer_norm: bool,
) -> tuple[Any, int]:
    """`forward` or `backward` for one cell, and how many rows of n it spills to its scratch. "recompute" is
    a backward that computes the pre-activations itself.

    It is compiled when it is first called, unless the disk has it.
    """
    record, template, slots = {
        "forward": (_forward, numba_kernels.forward, FORWARD_SLOTS),
        "backward": (_backward, numba_kernels.backward, BACKWARD_SLOTS),
        "recompute": (_recompute, numba_kernels.backward, BACKWARD_SLOTS),
    }[way]
    kernel = record(cells.get_cell(cell), ndim, peephole, layer_norm)
    own = {
        "_cell": row_kernel(kernel, slots),
        "SPILLED": len(kernel.spilled),
        "RECOMPUTE": way == "recompute",
    }
    # Numba finds code on the disk by the function's name: it tells apart all that differs.
    name = f"{way}_{dtype}_{cell}_{ndim}d{'_peephole' * peephole}{'_norm' * layer_norm}"
    function = FunctionType(template.__code__, {**vars(numba_kernels), **own}, name)
    function.__qualname__ = name
    return kept(function), len(kernel.spilled)


@cache
def packer(way: Literal["pack", "pack_transposed"], dtype: str) -> Any:
    """`pack` or `pack_transposed` for one dtype."""
    template = getattr(numba_kernels, way)
    return kept(FunctionType(template.__code__, vars(numba_kernels), f"{way}_{dtype}"))


def _forward(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """The cell; it keeps its gates, or with layer norm its pre-activations."""
    gates = len(cell.gates(ndim))
    a, parameters = loads("a", gates), _parameters(gates, ndim, peephole, layer_norm)
    h, c, active = cell_step(cell, a, loads("before", ndim), parameters)
    return Kernel([Store("h", 0, h), Store("c", 0, c), *_stores("gates", a if layer_norm else active)])


def _backward(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """The cell's gradient, given what `_forward` keeps."""
    return _gradient(cell, ndim, peephole, layer_norm, activated=not layer_norm)


def _recompute(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """The cell's gradient, given its pre-activations."""
    return _gradient(cell, ndim, peephole, layer_norm, activated=False)


def _gradient(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool, activated: bool) -> Kernel:
    """The gradients of pre-activations and states; those of the parameters are added up."""
    gates = len(cell.gates(ndim))
    da, dbefore, gradients = cell_step_backward(
        cell,
        loads("gates", gates),
        loads("before", ndim),
        Value.load("c", 0),
        Value.load("dh", 0),
        Value.load("dc", 0),
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
