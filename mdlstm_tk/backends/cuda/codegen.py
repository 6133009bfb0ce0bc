"""Triton kernels for a cell: its graph (`mdlstm_tk.cells.step`), written out as Triton source.

Triton reads a function's text, so the source is put where `inspect` and tracebacks look for it:
`print(inspect.getsource(...))` shows what a kernel does for one cell.
"""

from __future__ import annotations

import hashlib
import linecache
from functools import cache
from typing import Any

import triton
import triton.language as tl

from mdlstm_tk.backends import specialize
from mdlstm_tk.backends.cuda import kernels
from mdlstm_tk.cells import Cell
from mdlstm_tk.cells.graph import OPERATIONS, Kernel, Value
from mdlstm_tk.cells.step import Pass, pass_kernel

SLOTS = {  # that `_cell` reads and writes, in the order of its arguments and results
    "forward": ("a, h_prev, state_prev, parameter", "h, state, gates"),
    "backward": (
        "gates, h_prev, state_prev, dh, dh_next, dh_read_next, dstate_next, parameter",
        "da, dh_read_prev, dstate_prev, dparameter",
    ),
}
NAMES = {  # in the source
    "tl": tl,
    **{name: getattr(kernels, name) for name in ("exp", "sigmoid", "tanh", "softplus", "sqrt")},
    **{name: tl.constexpr(float(name)) for name in ("inf", "nan")},
}
MEAN = "tl.sum(tl.where(unit < UNITS, {0}, 0.0), axis=1, keep_dims=True) * (1 / UNITS)"
# Arguments that differ from launch to launch: Triton would compile anew where one is 1 or divisible by 16.
VARYING = ("t", "rows", "lines", "blocks")


@cache
def get_kernel(pass_kind: Pass, cell: Cell, ndim: int, present: tuple[str, ...]) -> Any:
    """The kernel of one pass for one cell. Triton compiles it for each dtype and size that it meets."""
    name = f"{pass_kind}_{cell.name.replace('-', '_')}_{ndim}d"
    direction = "forward" if pass_kind == "forward" else "backward"
    return _kernel(direction, name, source(pass_kernel(pass_kind, cell, ndim, present), direction, name))


@cache
def _kernel(direction: str, name: str, text: str) -> Any:
    """The template of a direction with the cell that `text` defines."""
    template = getattr(kernels, direction)
    function = specialize(template, name, _cell=_define(name, text))
    function.__name__ = template.__name__  # Triton looks for the name that its source has
    varying = [argument for argument in VARYING if argument in template.__code__.co_varnames]
    return triton.jit(function, do_not_specialize=varying)


def source(kernel: Kernel, direction: str, name: str) -> str:
    """A Triton function from tuples of blocks, one for each slot that is read, to one for each that is
    written."""
    reads, writes = SLOTS[direction]
    like = reads.partition(",")[0]
    names: dict[Value, str] = {}
    lines = [f"def {name}({reads}, unit, UNITS):"]
    for value in kernel.values:
        if value.op == "load":
            names[value] = f"{value.slot}[{value.row}]"
            continue
        names[value] = f"v{len(lines)}"
        lines.append(f"v{len(lines)} = {_expression(value, like, [names[a] for a in value.args])}")
    results: dict[str, list[str]] = {slot: [] for slot in writes.split(", ")}
    for store in kernel.stores:
        results[store.slot].append(names[store.value])
    tuples = (f"({', '.join(rows)}{',' * (len(rows) == 1)})" for rows in results.values())
    lines.append(f"return {', '.join(tuples)}")
    return "\n    ".join(lines) + "\n"


def _expression(value: Value, like: str, args: list[str]) -> str:
    """The text of a value; a constant is a block like those of slot `like`."""
    if value.op == "constant":
        return f"tl.full({like}[0].shape, {value.number!r}, {like}[0].dtype)"
    return (MEAN if value.op == "mean" else OPERATIONS[value.op].triton).format(*args)


def _define(name: str, text: str) -> Any:
    """The function that `text` defines, which Triton compiles as a part of the kernel that calls it."""
    file = f"<mdlstm_tk {name} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {**NAMES, "__name__": __name__}
    exec(compile(text, file, "exec"), scope)
    return triton.jit(scope[name])
