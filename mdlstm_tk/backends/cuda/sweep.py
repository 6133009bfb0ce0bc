"""Run the sweep on a GPU: for each wavefront one matrix product by torch and one Triton kernel.

All directions run in one sweep, laid out as in the torch backend. Nothing waits for the device, and all
memory is allocated before the first wavefront, so a sweep can be captured in a CUDA graph.
The products are torch's, in the precision that torch's settings allow (`allow_tf32`).

Padded positions have no rows, for which the values of `sizes` are needed on the CPU. The layer waits for
them if they are on the device.

Notation: G gates, S states beside h, n units, D axes, R rows and L lines of a `SweepRows`.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from mdlstm_tk.backends.cuda.codegen import get_kernel
from mdlstm_tk.backends.cuda.products import gather_hidden, input_gradients, multiply
from mdlstm_tk.cells.step import Pass, reads_hidden
from mdlstm_tk.inputs import Gradients, SweepInputs, SweepResults, without_autocast
from mdlstm_tk.states import boundary_rows, from_boundary_rows
from mdlstm_tk.wavefront import SweepRows, sweep_rows, visited

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
    x, units, rows = inputs.x, inputs.units, sweep_rows(inputs)
    dirs, gate_dim, _ = inputs.weight_ih.shape
    launch = _Launcher("forward", inputs, rows)
    a = multiply(visited(x, rows), inputs.weight_ih.transpose(1, 2))  # (dirs, R, G·n)
    states, entering = _states(inputs, rows, a.new_empty(dirs, rows.count, inputs.state_count * units))
    # Nothing is written where there is no row.
    output = (x.new_zeros if rows.count < rows.places else x.new_empty)(*x.shape[:-1], dirs, units)
    hidden = products = w_hh = None
    if launch.passes_h:
        hidden = gather_hidden(x.new_zeros(dirs, rows.count, units), entering[..., :units], rows)
    if inputs.weight_hh is not None:  # (h_1 | … | h_D) times this is Σ_d U_d h_d
        w_hh = inputs.weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
        products = a.new_empty(dirs * rows.longest * gate_dim)
    arguments = {
        "a_ptr": a,
        "product_ptr": products,
        "hidden_ptr": hidden,
        "state_ptr": states,
        "output_ptr": output,
        "bias_ptr": None if inputs.bias is None else inputs.bias.contiguous(),
        "KEEP_GATES": save and not recompute,
    }
    end = 0
    with torch.cuda.device_of(x):
        for t, count in enumerate(rows.counts):
            start, end = end, end + count
            if hidden is not None and products is not None and w_hh is not None:
                multiply(hidden[:, start:end], w_hh, out=_view(products, dirs, count, gate_dim))
            launch(count, t=t, **arguments)
    states = states[:, : rows.count]
    final = None
    if inputs.initial is not None:
        h = output.reshape(rows.places, dirs, units)[rows.order[:, rows.ends], rows.direction]
        leaving = torch.cat([h.to(states.dtype), states[:, rows.ends]], dim=2)
        final = from_boundary_rows(leaving, rows, inputs)
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
    x, units, rows, (output, _, gates, saved) = inputs.x, inputs.units, sweep_rows(inputs), results
    dirs, hidden_dim, w_hh = len(inputs.weight_ih), inputs.ndim * inputs.units, inputs.weight_hh
    launch = _Launcher("recompute" if gates is None else "backward", inputs, rows)
    assert saved is not None
    states, entering = _states(inputs, rows, saved[:, : rows.count])
    hidden = None  # (dirs, R, D·n)
    if launch.passes_h:
        h = output.reshape(rows.places, dirs, units)[rows.order, rows.direction]
        hidden = gather_hidden(h, entering[..., :units], rows)
    if gates is not None:
        a = gates[:, : rows.count].contiguous()
    else:
        a = multiply(visited(x, rows), inputs.weight_ih.transpose(1, 2))
        if hidden is not None and w_hh is not None:
            a += multiply(hidden, w_hh.transpose(2, 3).flatten(1, 2))
        if inputs.bias is not None:
            a += inputs.bias[:, None]
    # Pre-activations that are computed again are used only here, so da can take their place.
    da = a if gates is None and a.dtype == x.dtype else torch.empty_like(a, dtype=x.dtype)
    # da times this is the gradient of (h_1 | … | h_D).
    w_hh_t = None if w_hh is None else w_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)
    dh = a.new_empty(dirs * rows.longest * hidden_dim * (w_hh is not None))
    passed_dim = inputs.ndim * (inputs.state_count + launch.reads_h) * units
    d_prev = a.new_empty(2, dirs * rows.longest * passed_dim)  # of this wavefront and the next one, in turn
    d_first = torch.zeros_like(entering)
    blocks, parameters = launch.blocks(rows.longest), launch.parameters
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
        "last_ptr": torch.zeros_like(entering) if dfinal is None else boundary_rows(dfinal, rows),
        "da_ptr": da,
        "d_first_ptr": d_first,
        "d_parameter_ptr": d_parameters,
        "blocks": blocks,
    }
    parts = da.split(rows.counts, dim=1)
    with torch.cuda.device_of(x):
        for t in reversed(range(len(parts))):
            count = parts[t].shape[1]
            launch(count, t=t, d_prev_ptr=d_prev[t % 2], next_d_prev_ptr=d_prev[1 - t % 2], **arguments)
            if t > 0 and w_hh_t is not None:
                multiply(parts[t], w_hh_t, out=_view(dh, dirs, count, hidden_dim))

    gradients = input_gradients(inputs, da, hidden, rows, wants_dx, wants_weights)
    if d_parameters is not None:
        gradients |= inputs.split_cell_parameters(d_parameters.sum(dim=1).to(x.dtype))
    if inputs.initial is not None:
        if w_hh_t is not None:  # of each line along the axis that it enters
            of_axes = multiply(da[:, rows.slots // inputs.ndim], w_hh_t).unflatten(2, (inputs.ndim, units))
            index = (rows.slots % inputs.ndim)[None, :, None, None].expand(dirs, -1, 1, units)
            d_first[..., :units] += of_axes.gather(2, index.long()).squeeze(2)
        gradients["initial"] = from_boundary_rows(d_first, rows, inputs)
    return gradients


def _states(inputs: SweepInputs, rows: SweepRows, states: Tensor) -> tuple[Tensor, Tensor]:
    """The states of rows (dirs, R, S·n) and after them those of lines, and all states of lines
    (dirs, L, (1 + S)·n), h first."""
    entering = states.new_zeros(len(states), len(rows.ends), (1 + inputs.state_count) * inputs.units)
    if inputs.initial is not None:
        entering = boundary_rows(inputs.initial, rows)
    return torch.cat([states, entering[..., inputs.units :]], dim=1), entering


class _Launcher:
    """Launches a cell's kernel on a wavefront.

    Attributes:
        reads_h: whether the cell's equations read h of the predecessors.
        passes_h: whether those or the gates do.
        parameters: the cell's parameters (dirs, R, n), or None.
    """

    def __init__(self, pass_kind: Pass, inputs: SweepInputs, rows: SweepRows) -> None:
        cell, ndim, units = inputs.cell, inputs.ndim, inputs.units
        self.kernel = get_kernel(pass_kind, cell, ndim, inputs.present)
        self.reads_h = reads_hidden(cell, ndim)
        self.passes_h = self.reads_h or cell.recurrent
        self.parameters = inputs.cell_parameters()
        self.dirs = len(inputs.weight_ih)
        power = 1 << (units - 1).bit_length()  # units rounded up to a power of 2
        block = power if inputs.norm_weight is not None else min(power, UNITS)
        self.rows = max(1, ELEMENTS // block)
        self.unit_blocks = -(-units // block)
        self.arguments: dict[str, Any] = {  # of forward and backward
            "starts_ptr": rows.starts,
            "order_ptr": rows.order,
            "predecessors_ptr": rows.predecessors,
            "successors_ptr": rows.successors,
            "parameter_ptr": self.parameters,
            "rows": rows.count,
            "lines": len(rows.ends),
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
