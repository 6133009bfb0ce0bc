"""Run the sweep on a GPU: for each wavefront one matrix product by torch and one Triton kernel.

All directions run in one sweep, laid out as in the torch backend. Nothing waits for the device, and all
memory is allocated before the first wavefront, so a sweep can be captured in a CUDA graph.
The products are torch's, in the precision that torch's settings allow (`allow_tf32`).

Padded positions have no rows, for which the values of `sizes` are needed on the CPU. The layer waits for
them if they are on the device.

Notation: N batch, P positions, G gates, S states beside h, n units, D axes; rows as in
`mdlstm_tk.wavefront`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from mdlstm_tk.backends.cuda.codegen import get_kernel
from mdlstm_tk.backends.cuda.products import (
    add_entering_products,
    entering_gradients,
    gather_hidden,
    input_gradients,
    multiply,
    pre_activations,
    project_input,
    recurrent_weights,
    transposed_recurrent_weights,
)
from mdlstm_tk.cells.step import Pass, reads_hidden
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import Gradients, SweepInputs, SweepResults, without_autocast
from mdlstm_tk.states import by_direction, face_rows, final_states, from_directions, line_counts
from mdlstm_tk.wavefront import SweepRows, sweep_rows

# What one program processes: 4 numbers for each thread of 4 warps, and at most UNITS units of a row. A
# layer norm needs all units of a row, and gets more warps if they are many.
ELEMENTS = 512
UNITS = 128


def try_compiler(device: torch.device) -> None:
    """See `Engine`. torch brings Triton along, but not on every system, and Triton needs a C compiler to
    launch kernels."""
    with torch.cuda.device(device):
        triton.runtime.driver.active.get_current_target()


@without_autocast
def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    x, units, rows, has_states = inputs.x, inputs.units, sweep_rows(inputs), inputs.initial is not None
    (dirs, gate_dim, _), hidden_dim = inputs.weight_ih.shape, inputs.ndim * inputs.units
    state_dim = inputs.state_count * units
    w_hh = None if inputs.weight_hh is None else recurrent_weights(inputs.weight_hh)
    launch = _Launcher("forward", inputs, rows)
    a = project_input(inputs, rows)  # (dirs, rows, G·n)
    if has_states:
        add_entering_products(a, inputs, rows)
    # The final states are taken from those of all rows.
    keep_states = save or has_states or state_dim > gate_dim
    states = a.new_empty(*a.shape[:2], state_dim) if keep_states else a
    new_output = x.new_zeros if rows.ragged else x.new_empty  # nothing is written where there is no row
    output = new_output(*x.shape[:-1], dirs, units)
    bias = None if inputs.bias is None else inputs.bias.contiguous()
    longest = dirs * rows.tables.longest * rows.batch
    # The h_d that this wavefront and the next one read, in turn.
    operands = x.new_zeros(2, longest * hidden_dim * launch.passes_h)
    products = a.new_empty(longest * gate_dim * (w_hh is not None))
    with torch.cuda.device_of(x):
        for t, count in enumerate(rows.row_counts):
            operand = operands[t % 2]
            if w_hh is not None:
                product = _view(products, dirs, count, gate_dim)
                multiply(_view(operand, dirs, count, hidden_dim), w_hh, out=product)
            launch(
                count,
                t=t,
                a_ptr=a,
                product_ptr=products,
                operand_ptr=operand,
                next_operand_ptr=operands[1 - t % 2],
                state_ptr=states,
                output_ptr=output,
                bias_ptr=bias,
                KEEP_STATES=keep_states,
                KEEP_GATES=save and not recompute,
            )
    final = final_states(inputs, rows, output, states) if has_states else None
    return SweepResults(output, final, a if save and not recompute else None, states if save else None)


@without_autocast
def backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor,
    dfinal: Tensor | None,
    wants_dx: bool,
    wants_weights: bool,
) -> Gradients:
    """See `Engine`."""
    x, units, rows, (output, _, gates, states) = inputs.x, inputs.units, sweep_rows(inputs), results
    dirs, hidden_dim = len(inputs.weight_ih), inputs.ndim * inputs.units
    w_hh_t = None if inputs.weight_hh is None else transposed_recurrent_weights(inputs.weight_hh)
    launch = _Launcher("recompute" if gates is None else "backward", inputs, rows)
    assert states is not None
    states = states[:, : rows.count].contiguous()
    hidden = gather_hidden(inputs, output, rows) if launch.passes_h else None  # (dirs, rows, D·n)
    a = pre_activations(inputs, rows, hidden) if gates is None else gates[:, : rows.count].contiguous()
    # Pre-activations that are computed again are used only here, so da can take their place.
    da = a if gates is None and a.dtype == x.dtype else torch.empty_like(a, dtype=x.dtype)
    longest = rows.tables.longest * rows.batch
    dh = a.new_empty(dirs * longest * hidden_dim * (w_hh_t is not None))
    passed_dim = inputs.ndim * (inputs.state_count + launch.reads_h) * units
    d_prev = a.new_empty(2, dirs * longest * passed_dim)  # of this wavefront and the next one, in turn
    first = launch.arguments["first_ptr"]
    d_first = None if first is None else torch.zeros_like(first)
    blocks, parameters = launch.blocks(longest), launch.parameters
    d_parameters = None
    if parameters is not None:
        shape = dirs, blocks, *parameters.shape[1:]
        d_parameters = parameters.new_zeros(shape, dtype=torch.float64)
    arguments = {
        "grad_ptr": grad,
        "gates_ptr": a,
        "state_ptr": states,
        "hidden_ptr": hidden,
        "next_dh_ptr": dh,
        "last_ptr": None if dfinal is None else by_direction(dfinal),
        "leaving_ptr": None if dfinal is None else face_rows(inputs, rows, leaving=True),
        "da_ptr": da,
        "d_first_ptr": d_first,
        "d_parameter_ptr": d_parameters,
        "blocks": blocks,
    }
    parts = da.split(rows.row_counts, dim=1)
    with torch.cuda.device_of(x):
        for t in reversed(range(len(parts))):
            count = parts[t].shape[1]
            launch(count, t=t, d_prev_ptr=d_prev[t % 2], next_d_prev_ptr=d_prev[1 - t % 2], **arguments)
            if t > 0 and w_hh_t is not None:
                multiply(parts[t], w_hh_t, out=_view(dh, dirs, count, hidden_dim))

    gradients = input_gradients(inputs, da, hidden, rows, wants_dx, wants_weights)
    if d_parameters is not None:
        gradients |= inputs.split_cell_parameters(d_parameters.sum(dim=1).to(x.dtype))
    if d_first is not None:
        if inputs.weight_hh is not None:
            d_first[..., :units] += entering_gradients(da, inputs.weight_hh, inputs, rows)
        gradients["initial"] = from_directions(d_first, inputs)
    return gradients


class _Launcher:
    """Launches a cell's kernel on a wavefront.

    Attributes:
        reads_h: whether the cell's equations read h of the predecessors.
        passes_h: whether those or the gates do.
        parameters: the cell's parameters (dirs, R, n), or None.
    """

    def __init__(self, pass_kind: Pass, inputs: SweepInputs, rows: SweepRows) -> None:
        if inputs.sizes is not None and inputs.sizes.device.type != "cpu":
            raise InputError("sizes must be on the CPU while a CUDA graph is captured: a sweep reads them")
        cell, ndim, units, initial = inputs.cell, inputs.ndim, inputs.units, inputs.initial
        self.kernel = get_kernel(pass_kind, cell, ndim, inputs.present)
        self.reads_h = reads_hidden(cell, ndim)
        self.passes_h = self.reads_h or cell.recurrent
        self.parameters = inputs.cell_parameters()
        self.dirs = len(inputs.weight_ih)
        power = 1 << (units - 1).bit_length()  # units rounded up to a power of 2
        block = power if inputs.norm_weight is not None else min(power, UNITS)
        self.rows = max(1, ELEMENTS // block)
        self.unit_blocks = -(-units // block)
        tables = rows.tables
        self.arguments: dict[str, Any] = {  # of forward and backward
            "starts_ptr": tables.starts,
            "order_ptr": tables.order,
            "predecessors_ptr": tables.predecessors,
            "successors_ptr": tables.successors,
            "first_ptr": None if initial is None else by_direction(initial),
            "entering_ptr": None if initial is None else face_rows(inputs, rows, leaving=False),
            "parameter_ptr": self.parameters,
            "batch": rows.batch,
            "positions": tables.positions,
            "lines": 0 if initial is None else sum(line_counts(inputs.grid)) * inputs.x.shape[0],
            "AXES": ndim,
            "GATES": inputs.gate_count,
            "STATES": inputs.state_count,
            "PARAMETERS": 0 if self.parameters is None else self.parameters.shape[1],
            "UNITS": units,
            "RECURRENT": cell.recurrent,
            "READS_H": self.reads_h,
            "ROWS": self.rows,
            "BLOCK": block,
            "num_warps": min(32, max(4, self.rows * block // 128)),
        }

    def blocks(self, rows: int) -> int:
        """The number of programs that share a wavefront's rows."""
        return -(-rows // self.rows)

    def __call__(self, rows: int, **arguments: Any) -> None:
        if rows > 0:
            grid = (self.blocks(rows), self.unit_blocks, self.dirs)
            self.kernel[grid](**self.arguments, **arguments)  # the first call compiles


def _view(buffer: Tensor, *shape: int) -> Tensor:
    """The first elements of a buffer as a tensor of this shape."""
    return buffer[: prod(shape)].view(shape)
