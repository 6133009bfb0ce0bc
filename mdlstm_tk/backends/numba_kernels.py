"""The fused sweep in Numba: forward and backward, each one call for the whole grid.

The sweep is one linear layer, applied to what each cell sees. With

    operand  (h_1 | … | h_D | x | 1)       (K,), K = D·n + C + 1
    V        (U_1 | … | U_D | W | b)ᵀ      (K, G·n)

the pre-activations are `operand V`; backward, `da Vᵀ` is the gradient of the operand and
`operandᵀ da` that of V. So a wavefront is: gather the operands of a block of rows, one product, the
cell on each row; all of it on data that is still in cache, and nothing but what backward needs is
ever written to memory. Backward reads what forward saved and leaves it as it is.

Rows are (position, sample) in visiting order, so a wavefront is contiguous in gates and c. Threads
share each wavefront's rows and meet at a barrier behind it.

`forward` and `backward` are templates: `_cell` is the cell's equations as an intrinsic, and
`compiled` makes one function for each cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

from numba import njit

from mdlstm_tk import cells
from mdlstm_tk.backends import intrinsics, simd, step, trace
from mdlstm_tk.backends.intrinsics import matmul, moved, pointer, row_kernel, wait_for
from mdlstm_tk.backends.step import CellParameters, cell_step, cell_step_backward
from mdlstm_tk.backends.trace import Kernel, Store, loads

BLOCK = 64  # rows between gathering and the cell: few enough to stay in cache, enough for the product
OPTIONS = {"nogil": True, "error_model": "numpy"}

FORWARD_SLOTS = ("a", "before", "h", "c", "gates", "peephole", "norm_weight", "norm_bias")
BACKWARD_SLOTS = (
    "gates", "before", "c", "dh", "dc", "peephole", "norm_weight", "norm_bias",
    "da", "dbefore", "dpeephole", "dnorm_weight", "dnorm_bias",
)  # fmt: skip

SPILLED = 0  # rows of scratch the cell needs; like `_cell`, each compiled function has its own

SPILLED = 0  # rows of scratch the cell needs; like `_cell`, each compiled function has its own


def _cell(units: int, scratch: Any, bases: Any) -> None:
    """The cell on one row; each compiled function has its own in place of this."""
    raise NotImplementedError


def jit(function: Callable[..., Any]) -> Any:
    """Compile for Numba, and keep the code on disk where there is a place to write to."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither beside the sources, nor in the user's cache directory
        return njit(**OPTIONS)(function)


@jit
def _up(number, multiple):  # type: ignore[no-untyped-def]
    """The next multiple."""
    return -(-number // multiple) * multiple


@jit
def _share(count, thread, threads):  # type: ignore[no-untyped-def]
    """The first of `count` rows that are this thread's; whole tiles, so that none is split."""
    tiles = -(-count // simd.TILE_ROWS)
    return min(count, tiles * thread // threads * simd.TILE_ROWS)


@jit
def _product(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate):  # type: ignore[no-untyped-def]
    matmul(a, a_row, a_step, b, b_panel, b_step, depth, c, c_row, rows, columns, accumulate)


@jit
def _fill(target, count):  # type: ignore[no-untyped-def]
    for k in range(count):
        target[k] = 0


@jit
def _copy(target, source, count):  # type: ignore[no-untyped-def]
    for k in range(count):
        target[k] = source[k]


@jit
def pack(packed, weight_hh, weight_ih, bias, dirs, ndim, units, width, channels, panel):  # type: ignore[no-untyped-def]
    """V in panels, (dirs, panels, K, panel): what `matmul` multiplies the operand by.

    weight_hh (dirs, D, G·n, n), weight_ih (dirs, G·n, C) and bias (dirs, G·n) or empty, all flat.
    """
    depth = ndim * units + channels + 1
    panels = -(-width // panel)
    for way in range(dirs):
        for p in range(panels):
            base = (way * panels + p) * depth * panel
            for j in range(panel):
                column = p * panel + j
                if column >= width:
                    for k in range(depth):
                        packed[base + k * panel + j] = 0
                    continue
                for d in range(ndim):
                    source = ((way * ndim + d) * width + column) * units
                    for k in range(units):
                        packed[base + (d * units + k) * panel + j] = weight_hh[source + k]
                at = base + ndim * units * panel + j
                for k in range(channels):
                    packed[at + k * panel] = weight_ih[(way * width + column) * channels + k]
                packed[at + channels * panel] = bias[way * width + column] if len(bias) > 0 else 0


@jit
def pack_transposed(packed, weight_hh, weight_ih, dirs, ndim, units, width, channels, panel):  # type: ignore[no-untyped-def]
    """Vᵀ without b in panels, (dirs, panels, G·n, panel); without W too if `channels` is 0."""
    panels = -(-(ndim * units + channels) // panel)
    for way in range(dirs):
        for p in range(panels):
            for k in range(width):
                base = ((way * panels + p) * width + k) * panel
                for j in range(panel):
                    column = p * panel + j
                    d = column // units
                    if d < ndim:
                        source = ((way * ndim + d) * width + k) * units
                        packed[base + j] = weight_hh[source + column - d * units]
                    elif column < ndim * units + channels:
                        source = (way * width + k) * channels
                        packed[base + j] = weight_ih[source + column - ndim * units]
                    else:
                        packed[base + j] = 0


@jit
def _gather(operand, before, output, c, x, visit, back, rank, sample, way, inside, sizes):  # type: ignore[no-untyped-def]
    """Fill a row of the operand, and `before`, the states c_d (D·n): zeros where there is no cell."""
    batch, positions, dirs, ndim, units, channels = sizes
    for d in range(ndim):
        behind = back[d * positions + rank]
        if behind < 0:
            _fill(moved(operand, d * units), units)
            _fill(moved(before, d * units), units)
        else:
            place = (sample * positions + visit[way * positions + behind]) * dirs + way
            _copy(moved(operand, d * units), pointer(output, place * units), units)
            row = (way * positions + behind) * batch + sample
            _copy(moved(before, d * units), pointer(c, row * units), units)
    place = sample * positions + visit[way * positions + rank]
    for k in range(channels):
        operand[ndim * units + k] = x[place * channels + k] if inside else 0
    operand[ndim * units + channels] = 1


def forward(  # type: ignore[no-untyped-def]
    x, packed, peephole, norm_weight, norm_bias, inside, visit, starts, back,
    output, gates, c, scratch, counter, sizes, width, panel, length, thread, threads,
):  # fmt: skip
    """One thread's part of the sweep. All arrays are flat.

    Args:
        x: (N, P, C).
        packed: V, see `pack`.
        peephole, norm_weight, norm_bias: (dirs, rows, n), or of any content where the cell has none.
        inside: (N, P) bool, or empty: all.
        visit: (dirs, P) positions in visiting order.
        starts: (T + 1,) where each wavefront starts.
        back: (D, P) the rank one step back along each axis, or −1.
        output: (N, P, dirs, n), to be filled.
        gates: (dirs, P·N, G·n), to be filled for backward, or empty.
        c: (dirs, P·N, n), to be filled.
        scratch: (threads, …) see `forward_scratch`.
        counter: (1,) int64 zero, the barrier.
        sizes: N, P, dirs, D, n, C.
        width: G·n.
        panel, length: columns in a panel of V, and in a vector.
        thread, threads: which this is, of how many.
    """
    batch, positions, dirs, ndim, units, channels = sizes
    depth = ndim * units + channels + 1
    padded = _up(width, length)
    operand = pointer(scratch, thread * (len(scratch) // threads))
    a = moved(operand, BLOCK * depth)
    before = moved(a, BLOCK * padded)
    spill = moved(before, BLOCK * ndim * units)  # and one row of gates behind it, if none are kept
    kept = len(gates) > 0
    row_of_gates = moved(spill, SPILLED * units)
    v_size = -(-width // panel) * depth * panel
    arrivals = 0
    for way in range(dirs):
        extra = (
            pointer(peephole, len(peephole) // dirs * way),
            pointer(norm_weight, len(norm_weight) // dirs * way),
            pointer(norm_bias, len(norm_bias) // dirs * way),
        )
        for t in range(len(starts) - 1):
            count = (starts[t + 1] - starts[t]) * batch
            end = _share(count, thread + 1, threads)
            for top in range(_share(count, thread, threads), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = starts[t] * batch + top
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    place = sample * positions + visit[way * positions + rank]
                    _gather(
                        moved(operand, r * depth), moved(before, r * ndim * units), output, c, x, visit,
                        back, rank, sample, way, len(inside) == 0 or inside[place], sizes,
                    )  # fmt: skip
                _product(
                    operand, depth, 1, pointer(packed, way * v_size), depth * panel, panel, depth,
                    a, padded, rows, width, False,
                )  # fmt: skip
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    row = way * positions * batch + first + r
                    place = sample * positions + visit[way * positions + rank]
                    h = pointer(output, (place * dirs + way) * units)
                    new = pointer(c, row * units)
                    if len(inside) > 0 and not inside[place]:
                        _fill(h, units)
                        _fill(new, units)
                        continue
                    keep = pointer(gates, row * width) if kept else row_of_gates
                    bases = (moved(a, r * padded), moved(before, r * ndim * units), h, new, keep, *extra)
                    _cell(units, spill, bases)
            if threads > 1:
                arrivals += threads
                wait_for(pointer(counter, 0), arrivals)


def backward(  # type: ignore[no-untyped-def]
    grad, x, packed, peephole, norm_weight, norm_bias, inside, visit, starts, back, ahead,
    output, gates, c, dx, dv, dpeephole, dnorm_weight, dnorm_bias, behind, behind_c,
    scratch, counter, sizes, width, columns, panel, length, thread, threads,
):  # fmt: skip
    """One thread's part of the sweep's gradient. As `forward`, and:

    Args:
        grad: (N, P, dirs, n) the gradient of the output.
        packed: Vᵀ, see `pack_transposed`.
        ahead: (D, P) the rank one step ahead along each axis, or −1.
        dx: (N, P, C) zeros, or empty if it is not wanted.
        dv: (threads, dirs, K, padded width) zeros: to each thread's part of the gradient of V.
        dpeephole, dnorm_weight, dnorm_bias: (threads, dirs, rows, n) zeros.
        behind: (2, rows, padded columns) for a wavefront and the one ahead, the gradient of the operand.
        behind_c: (2, rows, D·n) that of the states c_d.
        columns: how much of the operand's gradient is wanted: D·n, or D·n + C with dx.
    """
    batch, positions, dirs, ndim, units, channels = sizes
    depth = ndim * units + channels + 1
    padded = _up(width, length)
    stride = _up(columns, length)
    operand = pointer(scratch, thread * (len(scratch) // threads))
    da = moved(operand, BLOCK * depth)
    before = moved(da, BLOCK * padded)
    dh = moved(before, ndim * units)
    dc = moved(dh, units)
    spill = moved(dc, units)
    v_size = -(-columns // panel) * width * panel
    half, half_c = len(behind) // 2, len(behind_c) // 2
    arrivals = 0
    for way in range(dirs):
        part = thread * dirs + way
        extra = (
            pointer(peephole, len(peephole) // dirs * way),
            pointer(norm_weight, len(norm_weight) // dirs * way),
            pointer(norm_bias, len(norm_bias) // dirs * way),
        )
        extra_gradients = (
            pointer(dpeephole, len(dpeephole) // (threads * dirs) * part),
            pointer(dnorm_weight, len(dnorm_weight) // (threads * dirs) * part),
            pointer(dnorm_bias, len(dnorm_bias) // (threads * dirs) * part),
        )
        for t in range(len(starts) - 2, -1, -1):
            count = (starts[t + 1] - starts[t]) * batch
            here, there = t % 2, (t + 1) % 2
            end = _share(count, thread + 1, threads)
            for top in range(_share(count, thread, threads), end, BLOCK):
                rows = min(BLOCK, end - top)
                first = starts[t] * batch + top
                for r in range(rows):
                    rank, sample = divmod(first + r, batch)
                    row = way * positions * batch + first + r
                    place = sample * positions + visit[way * positions + rank]
                    within = len(inside) == 0 or inside[place]
                    _gather(
                        moved(operand, r * depth), before, output, c, x, visit, back,
                        rank, sample, way, within, sizes,
                    )  # fmt: skip
                    dbefore = pointer(behind_c, here * half_c + (top + r) * ndim * units)
                    if not within:
                        _fill(moved(da, r * padded), width)
                        _fill(dbefore, ndim * units)
                        continue
                    _copy(dh, pointer(grad, (place * dirs + way) * units), units)
                    _fill(dc, units)
                    for d in range(ndim):
                        next_rank = ahead[d * positions + rank]
                        if next_rank >= 0:
                            after = (next_rank - starts[t + 1]) * batch + sample
                            dh_part = there * half + after * stride + d * units
                            dc_part = there * half_c + (after * ndim + d) * units
                            for k in range(units):
                                dh[k] += behind[dh_part + k]
                                dc[k] += behind_c[dc_part + k]
                    bases = (
                        pointer(gates, row * width), before, pointer(c, row * units), dh, dc, *extra,
                        moved(da, r * padded), dbefore, *extra_gradients,
                    )  # fmt: skip
                    _cell(units, spill, bases)
                _product(
                    da, padded, 1, pointer(packed, way * v_size), width * panel, panel, width,
                    pointer(behind, here * half + top * stride), stride, rows, columns, False,
                )  # fmt: skip
                _product(
                    operand, 1, depth, da, panel, padded, rows,
                    pointer(dv, part * depth * padded), padded, depth, width, True,
                )  # fmt: skip
                if len(dx) > 0:
                    for r in range(rows):
                        rank, sample = divmod(first + r, batch)
                        place = sample * positions + visit[way * positions + rank]
                        source = here * half + (top + r) * stride + ndim * units
                        for k in range(channels):
                            dx[place * channels + k] += behind[source + k]
            if threads > 1:
                arrivals += threads
                wait_for(pointer(counter, 0), arrivals)


def _forward_kernel(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    """What the cell does forward; it keeps its gates, or with layer norm its pre-activations."""
    gates = len(cell.gates(ndim))
    a, parameters = loads("a", gates), _parameters(gates, ndim, peephole, layer_norm)
    h, c, active = cell_step(cell, a, loads("before", ndim), parameters)
    kept = a if layer_norm else active
    return Kernel([Store("h", 0, h), Store("c", 0, c), *_stores("gates", kept)])


def _backward_kernel(cell: cells.Cell, ndim: int, peephole: bool, layer_norm: bool) -> Kernel:
    gates = len(cell.gates(ndim))
    parameters = _parameters(gates, ndim, peephole, layer_norm)
    (new,), (dh,), (dc,) = loads("c", 1), loads("dh", 1), loads("dc", 1)
    states = loads("before", ndim)
    da, dbefore, gradients = cell_step_backward(
        cell, loads("gates", gates), states, new, dh, dc, parameters, activated=not layer_norm
    )
    stores = [*_stores("da", da), *_stores("dbefore", dbefore)]
    for name, rows in vars(gradients).items():
        stores += _stores(f"d{name}", rows or [], add=True)
    return Kernel(stores)


def _parameters(gates: int, ndim: int, peephole: bool, layer_norm: bool) -> CellParameters:
    norms = (loads(name, gates + 1) if layer_norm else None for name in ("norm_weight", "norm_bias"))
    return CellParameters(loads("peephole", 2 * ndim + 1) if peephole else None, *norms)


def _stores(slot: str, values: list[Any], add: bool = False) -> list[Store]:
    return [Store(slot, row, value, add) for row, value in enumerate(values)]


@lru_cache(maxsize=1)
def _digest() -> str:
    """Changes when any source does that compiled code depends on; Numba itself looks at one file."""
    parts = [cells.__file__, step.__file__, trace.__file__, simd.__file__, intrinsics.__file__, __file__]
    return hashlib.sha256(b"".join(Path(part).read_bytes() for part in parts)).hexdigest()[:12]


@cache
def compiled(way: str, cell: str, ndim: int, peephole: bool, layer_norm: bool) -> tuple[Any, int]:
    """`forward` or `backward` for one cell, and how many rows of n it wants as scratch.

    It is compiled for a dtype when it is first called with it, unless the disk has it.
    """
    build, template, slots = {
        "forward": (_forward_kernel, forward, FORWARD_SLOTS),
        "backward": (_backward_kernel, backward, BACKWARD_SLOTS),
    }[way]
    kernel = build(cells.get_cell(cell), ndim, peephole, layer_norm)
    options = "_peephole" * peephole + "_norm" * layer_norm
    name = f"{way}_{cell}_{ndim}d{options}_{_digest()}"  # by which Numba finds it on the disk
    names = {**globals(), "_cell": row_kernel(kernel, slots), "SPILLED": len(kernel.spilled)}
    function = FunctionType(template.__code__, names, name)
    function.__qualname__ = name
    return jit(function), len(kernel.spilled)
