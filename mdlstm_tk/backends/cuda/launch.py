"""Run the sweep on a GPU: for each wavefront one matrix product by torch and one Triton kernel.

All directions run in one sweep, laid out as in the torch backend. Nothing waits for the device, and all
memory is allocated before the first wavefront, so a sweep can be captured in a CUDA graph.
The products are torch's, in the precision that torch's settings allow (`allow_tf32`).

Padded positions have no rows, for which the values of `sizes` are needed on the CPU. The layer waits for
them if they are on the device. While a graph is captured it cannot; then all positions have rows, and the
kernels get a mask.

Notation: N batch, P positions, G gates, n units, D axes; rows as in `mdlstm_tk.backends.tables`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from mdlstm_tk.backends.cuda.codegen import get_kernel
from mdlstm_tk.backends.faces import (
    Faces,
    by_direction,
    end_rows,
    face_rows,
    final_states,
    from_directions,
    line_counts,
    line_ends,
)
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.backends.specialize import KernelError, compiling
from mdlstm_tk.backends.tables import SweepRows, sweep_rows
from mdlstm_tk.backends.torch import products
from mdlstm_tk.cells.lowering import Pass

# What one program processes: 4 numbers for each thread of 4 warps, and at most UNITS units of a row. A
# layer norm needs all units of a row, and gets more warps if they are many.
ELEMENTS = 512
UNITS = 128


def forward(
    inputs: SweepInputs, save: bool = False, recompute: bool = False, first: Faces | None = None
) -> tuple[Tensor, Tensor, Tensor, Faces | None]:
    """Run the sweep, from the initial states `first` if they are given.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the activated gates, or with layer norm
        the pre-activations, (dirs, rows, G·n), and c (dirs, rows, n), in visiting order. Both are empty
        otherwise, and so are the gates if `recompute`. With `first` also the final states, else None.
    """
    x, weight_hh, units, rows = inputs.x, inputs.weight_hh, inputs.units, sweep_rows(inputs)
    (dirs, gate_dim, _), hidden_dim = inputs.weight_ih.shape, inputs.ndim * inputs.units
    tables, batch = rows.tables, rows.batch
    w_hh = None if weight_hh is None else weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    parameters = [None if p is None else p.contiguous() for p in inputs[3:7]]
    a = products.project_input(inputs, rows)  # (dirs, rows, G·n)
    states: list[Tensor | None] = [None, None]
    if first is not None:
        ends, _ = line_ends(inputs)
        a = products.face_products(inputs, first.h, end_rows(ends, inputs, rows), a)
        states = [by_direction(first.c), face_rows(ends, inputs, rows)]
    keep_c = save or first is not None  # the final states are taken from c of all rows
    c = a.new_empty(*a.shape[:2], units) if keep_c else a
    new_output = x.new_zeros if rows.ragged else x.new_empty  # nothing is written where there is no row
    output = new_output(*x.shape[:-1], dirs, units)
    longest = dirs * tables.longest * batch
    operands = x.new_zeros(2, longest * hidden_dim)  # of this wavefront and of the next one, in turn
    recurrent = a.new_empty(longest * gate_dim)
    launch = _Launcher("forward", inputs)
    table_arguments = _table_arguments(rows)
    with torch.cuda.device_of(x):
        for t, count in enumerate(rows.row_counts):
            operand, next_operand = operands[t % 2], operands[1 - t % 2]
            product = _view(recurrent, dirs, count, gate_dim)
            if w_hh is not None:
                products.multiply(_view(operand, dirs, count, hidden_dim), w_hh, out=product)
            launch(
                count,
                *(a, product, operand, next_operand, c, output, *parameters, *table_arguments),
                *(*states, t, batch, tables.positions, _face_states(inputs)),
                KEEP_C=keep_c,
                KEEP_GATES=save and not recompute,
            )
    last = None if first is None else final_states(inputs, output, c)
    nothing = x.new_empty(0)
    return output, a if save and not recompute else nothing, c if save else nothing, last


def backward(
    inputs: SweepInputs,
    grad: Tensor,
    output: Tensor,
    saved_gates: Tensor,
    saved_c: Tensor,
    wants_dx: bool = True,
    first: Faces | None = None,
    d_last: Faces | None = None,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters; and with
    `first` those of its h and c.

    Args:
        inputs: as for `forward`.
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_gates, saved_c: what `forward` returned with `save`; if the gates are empty, they are
            computed again.
        wants_dx: whether the gradient of x is needed.
        first: the initial states that `forward` was given.
        d_last: the gradient of the final states, given together with `first`.
    """
    x, weight_hh, rows = inputs.x, inputs.weight_hh, sweep_rows(inputs)
    dirs, hidden_dim = len(inputs.weight_ih), inputs.ndim * inputs.units
    tables, batch = rows.tables, rows.batch
    w_hh = None if weight_hh is None else weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)
    parameters = [None if p is None else p.contiguous() for p in inputs.parameters]
    grad, saved_c = grad.contiguous(), saved_c.contiguous()
    recompute = saved_gates.numel() == 0
    gates = products.pre_activations(inputs, output, rows) if recompute else saved_gates.contiguous()
    states: list[Tensor | None] = [None] * 6
    if first is not None and d_last is not None:
        ends = line_ends(inputs)
        entering_rows = end_rows(ends[0], inputs, rows)
        entering, leaving = (face_rows(end, inputs, rows) for end in ends)
        c_first = by_direction(first.c)
        dc_first = torch.zeros_like(c_first)
        states = [c_first, entering, leaving, *map(by_direction, d_last), dc_first]
        if recompute:
            gates = products.face_products(inputs, first.h, entering_rows, gates)
    da = gates if recompute and gates.dtype == x.dtype else torch.empty_like(gates, dtype=x.dtype)
    longest = tables.longest * batch
    dh = saved_c.new_empty(dirs * longest * hidden_dim)
    dc = saved_c.new_empty(2, dirs * longest * hidden_dim)  # of this wavefront and of the next one, in turn
    launch = _Launcher("recompute" if recompute else "backward", inputs)
    blocks = launch.blocks(longest)
    gradients = inputs.parameters.map(
        lambda p: saved_c.new_zeros(dirs, blocks, *p.shape[1:], dtype=torch.float64)
    )
    parts = da.split(rows.row_counts, dim=1)
    table_arguments = _table_arguments(rows)
    with torch.cuda.device_of(x):
        for t in reversed(range(len(parts))):
            count = parts[t].shape[1]
            launch(
                count,
                *(grad, gates, saved_c, dh, dc[t % 2], dc[1 - t % 2], *parameters),
                *(da, *gradients, *table_arguments),
                *(*states, t, batch, tables.positions, _face_states(inputs), blocks),
            )
            if t > 0 and w_hh is not None:
                products.multiply(parts[t], w_hh, out=_view(dh, dirs, count, hidden_dim))
    summed = gradients.map(lambda partial: partial.sum(dim=1).to(x.dtype))
    dx, dw_ih, dw_hh, db = products.weight_gradients(inputs, da, output, rows, wants_dx)
    if first is None:
        return [dx, dw_ih, dw_hh, db, *summed]
    dh_first, dw_hh = products.face_gradients(inputs, da, first.h, entering_rows, dw_hh)
    of_states = [from_directions(gradient, inputs) for gradient in (dh_first, dc_first)]
    return [dx, dw_ih, dw_hh, db, *summed, *of_states]


def _face_states(inputs: SweepInputs) -> int:
    """F·N, the number of states on all faces."""
    return sum(line_counts(inputs.grid)) * inputs.x.shape[0]


def _table_arguments(rows: SweepRows) -> tuple[Tensor | None, ...]:
    """The tables and the valid mask, as the kernels take them."""
    tables = rows.tables
    return tables.starts, tables.order, tables.predecessors, tables.successors, rows.valid_mask


class _Launcher:
    """Launches a cell's kernel on a wavefront."""

    def __init__(self, pass_kind: Pass, inputs: SweepInputs) -> None:
        self.dirs, units = len(inputs.weight_ih), inputs.units
        layer_norm = inputs.norm_weight is not None
        self.name = f"{pass_kind} of {inputs.cell}"
        with compiling(self.name):
            self.kernel = get_kernel(
                pass_kind, inputs.cell, inputs.ndim, inputs.peephole is not None, layer_norm
            )
        power = 1 << (units - 1).bit_length()  # units rounded up to a power of 2
        block = power if layer_norm else min(power, UNITS)
        self.rows = max(1, ELEMENTS // block)
        self.unit_blocks = -(-units // block)
        warps = min(32, max(4, self.rows * block // 128))
        self.options = {"AXES": inputs.ndim, "GATES": inputs.gate_count, "UNITS": units, "ROWS": self.rows}
        self.options |= {"BLOCK": block, "num_warps": warps}

    def blocks(self, rows: int) -> int:
        """The number of programs that share a wavefront's rows."""
        return -(-rows // self.rows)

    def __call__(self, rows: int, *arguments: Any, **options: Any) -> None:
        if rows > 0:
            grid = (self.blocks(rows), self.unit_blocks, self.dirs)
            try:
                self.kernel[grid](*arguments, **self.options, **options)  # the first call compiles
            except TritonError as error:
                reason = str(error).strip().partition("\n")[0]
                raise KernelError(f"the kernel '{self.name}' cannot be compiled ({reason})") from error


def _view(buffer: Tensor, *shape: int) -> Tensor:
    """The first elements of a buffer as a tensor of this shape."""
    return buffer[: prod(shape)].view(shape)
