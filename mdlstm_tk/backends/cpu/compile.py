"""Kernels for a cell: its equations, recorded, in the templates of `numba_kernels`, compiled."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, Literal, NamedTuple

import numpy as np

from mdlstm_tk.backends.cpu import entry, packing
from mdlstm_tk.backends.cpu import kernels as numba_kernels
from mdlstm_tk.backends.cpu.codegen import row_kernel
from mdlstm_tk.backends.cpu.intrinsics import arguments
from mdlstm_tk.backends.cpu.jit import jit, kept, kept_entry
from mdlstm_tk.cells import lowering as record
from mdlstm_tk.cells.equations import get_cell

FORWARD_SLOTS = ("a", "before", "h", "c", "gates", *record.PARAMETERS)
BACKWARD_SLOTS = (*record.BACKWARD_READS, *record.BACKWARD_WRITES)


class Compiled(NamedTuple):
    """A kernel for one cell.

    Attributes:
        entry: Numba's C function, see `mdlstm_tk.backends.cpu.entry`.
        spilled: how many rows of n the cell spills to its scratch.
    """

    entry: Any
    spilled: int


@cache
def compiled(
    way: Literal["forward", "backward", "recompute"],
    dtype: str,
    cell: str,
    ndim: int,
    peephole: bool,
    layer_norm: bool,
) -> Compiled:
    """`forward` or `backward` for one cell. "recompute" is a backward that computes the pre-activations
    itself.

    It is compiled here, unless the disk has it.
    """
    recorded, template, slots = {
        "forward": (record.forward, numba_kernels.forward, FORWARD_SLOTS),
        "backward": (record.backward, numba_kernels.backward, BACKWARD_SLOTS),
        "recompute": (record.recompute, numba_kernels.backward, BACKWARD_SLOTS),
    }[way]
    kernel = recorded(get_cell(cell), ndim, peephole, layer_norm)
    # Numba finds code on the disk by the function's name: it tells apart all that differs.
    name = f"{way}_{dtype}_{cell}_{ndim}d{'_peephole' * peephole}{'_norm' * layer_norm}"
    sweep = _filled(
        template,
        name,
        _cell=row_kernel(kernel, slots),
        SPILLED=len(kernel.spilled),
        RECOMPUTE=way == "recompute",
    )
    count = template.__code__.co_argcount - 1
    enter = _filled(
        entry.enter,
        f"enter_{name}",
        _kernel=jit(sweep),
        _arguments=arguments(count),
        ARGUMENTS=count,
        ZERO=np.dtype(dtype).type(0),
    )
    return Compiled(kept_entry(enter), len(kernel.spilled))


@cache
def packer(way: Literal["pack", "pack_transposed"], dtype: str) -> Any:
    """`pack` or `pack_transposed` for one dtype."""
    function = _filled(getattr(packing, way), f"{way}_{dtype}")
    numbers = ", ".join(["int64"] * (function.__code__.co_argcount - 1))
    return kept(function, f"void({dtype}, {numbers})")


def _filled(template: Any, name: str, **own: Any) -> Any:
    """A function of that name which is `template` with its own values for some globals."""
    function = FunctionType(template.__code__, {**template.__globals__, **own}, name)
    function.__qualname__ = name
    return function
