"""Kernels for a cell: its equations, recorded, in the templates of `numba_kernels`, compiled."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, Literal

from mdlstm_tk.backends import numba_kernels, record
from mdlstm_tk.backends.jit import kept
from mdlstm_tk.backends.row_kernel import row_kernel
from mdlstm_tk.cells import get_cell

FORWARD_SLOTS = ("a", "before", "h", "c", "gates", *record.PARAMETERS)
BACKWARD_SLOTS = (*record.BACKWARD_READS, *record.BACKWARD_WRITES)


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
    recorded, template, slots = {
        "forward": (record.forward, numba_kernels.forward, FORWARD_SLOTS),
        "backward": (record.backward, numba_kernels.backward, BACKWARD_SLOTS),
        "recompute": (record.recompute, numba_kernels.backward, BACKWARD_SLOTS),
    }[way]
    kernel = recorded(get_cell(cell), ndim, peephole, layer_norm)
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
