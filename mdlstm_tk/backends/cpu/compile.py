"""Kernels for a cell: its graph (`mdlstm_tk.cells.lowering`) in the templates of `kernels`, compiled."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from mdlstm_tk.backends.cpu import backward_kernel, kernels, packing, thread_main
from mdlstm_tk.backends.cpu.codegen import cell_function
from mdlstm_tk.backends.cpu.intrinsics import as_int32_ptr, as_int_ptr, load_arguments
from mdlstm_tk.backends.cpu.jit import cfunc_cached, jit, njit_cached
from mdlstm_tk.backends.specialize import compiling, specialize
from mdlstm_tk.cells import Cell, get_cell
from mdlstm_tk.cells.lowering import BACKWARD_READS, BACKWARD_WRITES, Pass, lower
from mdlstm_tk.cells.step import PARAMETER_NAMES

FORWARD_SLOTS = ("a", "c_prev", "h", "c", "gates", *PARAMETER_NAMES)
BACKWARD_SLOTS = (*BACKWARD_READS, *BACKWARD_WRITES)


class CpuKernel(NamedTuple):
    """A kernel for one cell.

    Attributes:
        entry: Numba's C function, see `mdlstm_tk.backends.cpu.thread_main`.
        spilled: how many rows of n numbers the cell spills to scratch memory.
    """

    entry: Any
    spilled: int


@cache
def get_kernel(
    pass_kind: Pass,
    dtype: str,
    cell_name: str,
    ndim: int,
    peephole: bool,
    layer_norm: bool,
    wide: bool,
    states: bool,
) -> CpuKernel:
    """The compiled kernel of one pass for one cell; from disk if it is cached there. If `wide`, the tables
    of the grid are int64, else int32. If `states`, it takes initial and final states.

    Raises:
        KernelError: it cannot be compiled.
    """
    options = "_peephole" * peephole + "_norm" * layer_norm + "_wide" * wide + "_states" * states
    name = f"{pass_kind}_{dtype}_{cell_name.replace('-', '_')}_{ndim}d{options}"
    with compiling(name):
        cell = get_cell(cell_name)
        return _compile(name, pass_kind, dtype, cell, ndim, peephole, layer_norm, wide, states)


def _compile(
    name: str,
    pass_kind: Pass,
    dtype: str,
    cell: Cell,
    ndim: int,
    peephole: bool,
    layer_norm: bool,
    wide: bool,
    states: bool,
) -> CpuKernel:
    graph = lower(pass_kind, cell, ndim, peephole, layer_norm)
    replaced: dict[str, Any] = {"SPILLED": len(graph.spilled), "RECURRENT": cell.recurrent}
    replaced["STATES"] = states
    replaced["as_table_ptr"] = as_int_ptr if wide else as_int32_ptr
    template: Any = kernels.forward
    slots: tuple[str, ...] = FORWARD_SLOTS
    if pass_kind != "forward":
        template, slots = backward_kernel.backward, BACKWARD_SLOTS
        replaced["RECOMPUTE"] = pass_kind == "recompute"
    sweep = specialize(template, name, _cell=cell_function(graph, slots), **replaced)
    count = template.__code__.co_argcount - 1
    entry = specialize(
        thread_main.thread_main,
        f"thread_main_{name}",
        _kernel=jit(sweep),
        _load_arguments=load_arguments(count),
        ARGUMENTS=count,
        DTYPE_TAG=np.dtype(dtype).type(0),
    )
    return CpuKernel(cfunc_cached(entry, f"{graph.text} {cell.recurrent}"), len(graph.spilled))


@cache
def get_packer(name: Literal["pack", "pack_transposed"], dtype: str) -> Any:
    """`packing.pack` or `packing.pack_transposed`, compiled for one dtype.

    Raises:
        KernelError: it cannot be compiled.
    """
    with compiling(f"{name}_{dtype}"):
        function = specialize(getattr(packing, name), f"{name}_{dtype}")
        integers = ", ".join(["int64"] * (function.__code__.co_argcount - 1))
        return njit_cached(function, f"void({dtype}, {integers})")
