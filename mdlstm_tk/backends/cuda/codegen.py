"""Triton kernels for a cell: its graph (`mdlstm_tk.cells.lowering`), written out as Triton source.

Triton reads a function's text, so the source is put where `inspect` and tracebacks look for it:
`print(inspect.getsource(...))` shows what a kernel does for one cell.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from functools import cache
from typing import Any

import triton
import triton.language as tl

from mdlstm_tk.backends.cuda import kernels
from mdlstm_tk.backends.specialize import specialize
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.ir import Kernel, Value
from mdlstm_tk.cells.lowering import (
    BACKWARD_READS,
    BACKWARD_WRITES,
    FORWARD_READS,
    FORWARD_WRITES,
    Pass,
    lower,
)

OPERATORS = {"add": "+", "subtract": "-", "multiply": "*"}
FUNCTIONS = {"tanh": "tanh", "sigmoid": "tl.sigmoid", "rsqrt": "tl.rsqrt"}
# Arguments that differ from launch to launch: Triton would compile anew where one is 1 or divisible by 16.
VARYING = ("t", "batch", "positions", "lines", "blocks")


@cache
def get_kernel(pass_kind: Pass, cell_name: str, ndim: int, peephole: bool, layer_norm: bool) -> Any:
    """The kernel of one pass for one cell. Triton compiles it for each dtype and size that it meets."""
    forward = pass_kind == "forward"
    template: Any = kernels.forward if forward else kernels.backward
    reads, writes = (FORWARD_READS, FORWARD_WRITES) if forward else (BACKWARD_READS, BACKWARD_WRITES)
    options = "_peephole" * peephole + "_norm" * layer_norm
    name = f"{pass_kind}_{cell_name.replace('-', '_')}_{ndim}d{options}"
    cell = get_cell(cell_name)
    text = source(lower(pass_kind, cell, ndim, peephole, layer_norm), name, reads, writes)
    function = specialize(template, name, _cell=_define(name, text), RECURRENT=tl.constexpr(cell.recurrent))
    function.__name__ = template.__name__  # Triton looks for the name that its source has
    varying = [argument for argument in VARYING if argument in template.__code__.co_varnames]
    return triton.jit(function, do_not_specialize=varying)


def source(kernel: Kernel, name: str, reads: Sequence[str], writes: Sequence[str]) -> str:
    """A Triton function of tuples of blocks, one for each slot of `reads`, to one for each of `writes`."""
    names: dict[int, str] = {}
    lines = [f"def {name}({', '.join(reads)}, unit, UNITS):"]
    for value in kernel.values:
        if not value.args:
            names[id(value)] = _leaf(value)
            continue
        expression = _expression(value, [names[id(arg)] for arg in value.args])
        names[id(value)] = f"v{len(lines)}"
        lines.append(f"v{len(lines)} = {expression}")
    results: dict[str, list[str]] = {slot: [] for slot in writes}
    for store in kernel.stores:
        results[store.slot].append(names[id(store.value)])
    tuples = (f"({', '.join(rows)}{',' * (len(rows) == 1)})" for rows in results.values())
    lines.append(f"return {', '.join(tuples)}")
    return "\n    ".join(lines) + "\n"


def _leaf(value: Value) -> str:
    return repr(value.number) if value.op == "constant" else f"{value.slot}[{value.row}]"


def _expression(value: Value, args: Sequence[str]) -> str:
    if value.op in OPERATORS:
        return f" {OPERATORS[value.op]} ".join(args)
    if value.op == "mean":
        return f"tl.sum(tl.where(unit < UNITS, {args[0]}, 0.0), axis=1, keep_dims=True) * (1 / UNITS)"
    return f"{FUNCTIONS[value.op]}({args[0]})"


def _define(name: str, text: str) -> Any:
    """The function that `text` defines, which Triton compiles as a part of the kernel that calls it."""
    file = f"<mdlstm_tk {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"tl": tl, "tanh": kernels.tanh, "__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    return triton.jit(scope[name])
