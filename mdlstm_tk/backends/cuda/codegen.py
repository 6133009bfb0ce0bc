"""Triton kernels for a cell: its equations, recorded, written out as Triton source.

The source is kept where `inspect` and tracebacks look for it, since Triton reads a function's text:
`print(inspect.getsource(...))` shows what a kernel does for one cell.
"""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from functools import cache
from types import FunctionType
from typing import Any, Literal

import triton
import triton.language as tl

from mdlstm_tk.backends.cuda import kernels as triton_kernels
from mdlstm_tk.cells import lowering as record
from mdlstm_tk.cells.equations import get_cell
from mdlstm_tk.cells.ir import Kernel, Value

_BACKWARD = (triton_kernels.backward, record.BACKWARD_READS, record.BACKWARD_WRITES)
TEMPLATES = {
    "forward": (record.forward, triton_kernels.forward, record.FORWARD_READS, record.FORWARD_WRITES),
    "backward": (record.backward, *_BACKWARD),
    "recompute": (record.recompute, *_BACKWARD),
}
OPERATORS = {"add": "+", "subtract": "-", "multiply": "*"}
FUNCTIONS = {"tanh": "tanh", "sigmoid": "tl.sigmoid", "rsqrt": "tl.rsqrt"}
# What differs from launch to launch: Triton would compile anew where it is 1, or divisible by 16.
VARYING = ("t", "batch", "positions", "blocks")


@cache
def kernel(
    way: Literal["forward", "backward", "recompute"],
    cell: str,
    ndim: int,
    peephole: bool,
    layer_norm: bool,
) -> Any:
    """`forward` or `backward` for one cell; "recompute" is a `backward` that is given pre-activations.

    Triton compiles it for each dtype and size it meets.
    """
    recorded, template, reads, writes = TEMPLATES[way]
    name = f"{way}_{cell}_{ndim}d{'_peephole' * peephole}{'_norm' * layer_norm}"
    text = source(recorded(get_cell(cell), ndim, peephole, layer_norm), name, reads, writes)
    own = {**vars(triton_kernels), "_cell": _defined(name, text)}
    function = FunctionType(template.__code__, own, template.__name__)
    function.__annotations__ = template.__annotations__
    function.__qualname__ = name
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


def _defined(name: str, text: str) -> Any:
    """The function that `text` defines, compiled by Triton as a part of what calls it."""
    file = f"<mdlstm_tk {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"tl": tl, "tanh": triton_kernels.tanh, "__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    return triton.jit(scope[name])
