"""The sweep on a GPU: for each wavefront one product by torch and one kernel in Triton.

All directions go in one sweep, laid out as in `unrolled`. The host only launches: nothing waits for
the device, and all memory is taken before the first wavefront, so a sweep can be captured in a CUDA
graph. The products are torch's, in the precision that torch's settings allow (`allow_tf32`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from mdlstm_tk.backends.cuda.codegen import kernel
from mdlstm_tk.backends.tables import Tables, valid_mask
from mdlstm_tk.backends.torch import products
from mdlstm_tk.cells.equations import Cell
from mdlstm_tk.cells.step import CellParameters
from mdlstm_tk.wavefront import Direction

# What a program takes at once: 4 numbers for each thread of 4 warps, and at most so many units of a row.
# A layer norm needs all units, and is given more warps where they are many.
ELEMENTS = 512
UNITS = 128


def forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    parameters: CellParameters,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: Cell,
    save: bool = False,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `mdlstm_tk.operator.wavefront`.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the activated gates, or with
        layer norm the pre-activations, (dirs, P·N, G·n) and c (dirs, P·N, n), in visiting order. Both
        are empty otherwise, and the gates also if `recompute`.
    """
    batch, (dirs, ndim, width, units) = x.shape[0], weight_hh.shape
    tables = Tables.of(x, directions)
    inside = None if sizes is None else valid_mask(x.shape[1:-1], sizes)
    recurrent = weight_hh.transpose(2, 3).flatten(1, 2)  # (dirs, D·n, G·n)
    extra = [None if p is None else p.contiguous() for p in (bias, *vars(parameters).values())]
    a = products.project(x, weight_ih, tables)  # (dirs, P·N, G·n)
    c = a.new_empty(*a.shape[:2], units) if save else a
    output = x.new_empty(*x.shape[:-1], dirs, units)
    longest = dirs * max(tables.counts) * batch
    operands = x.new_zeros(2, longest * ndim * units)  # of one wavefront and of the next, in turn
    reached = a.new_empty(longest * width)
    launch = _Launcher("forward", cell, parameters, weight_hh)
    with torch.cuda.device_of(x):
        for t, count in enumerate(tables.counts):
            operand, next_operand = operands[t % 2], operands[1 - t % 2]
            result = _front(reached, dirs, count * batch, width)
            products.multiply(_front(operand, dirs, count * batch, ndim * units), recurrent, out=result)
            launch(
                count * batch,
                *(a, result, operand, next_operand, c, output, *extra),
                *(tables.starts, tables.visit, tables.back, tables.ahead, inside),
                *(t, batch, tables.positions),
                KEEP_C=save,
                KEEP_GATES=save and not recompute,
            )
    return output, a if save and not recompute else x.new_empty(0), c if save else x.new_empty(0)


def backward(
    grad: Tensor,
    output: Tensor,
    saved_gates: Tensor,
    saved_c: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    parameters: CellParameters,
    sizes: Tensor | None,
    directions: Sequence[Direction],
    cell: Cell,
    wants_dx: bool = True,
) -> list[Tensor | None]:
    """The gradients of x (if `wants_dx`), weight_ih, weight_hh, bias and the cell's parameters.

    Args:
        grad: (N, *grid, dirs, n) gradient of the output.
        output, saved_gates, saved_c: what `forward` returned with `save`; without the gates they are
            computed again.
    """
    batch, (dirs, ndim, _, units) = x.shape[0], weight_hh.shape
    tables = Tables.of(x, directions)
    inside = None if sizes is None else valid_mask(x.shape[1:-1], sizes)
    recurrent = weight_hh.transpose(1, 2).flatten(2, 3)  # (dirs, G·n, D·n)
    extra = [None if p is None else p.contiguous() for p in vars(parameters).values()]
    grad, saved_c = grad.contiguous(), saved_c.contiguous()
    recompute = saved_gates.numel() == 0
    if recompute:
        gates = products.pre_activations(x, weight_ih, weight_hh, bias, output, tables)
    else:
        gates = saved_gates.contiguous()
    da = gates if recompute and gates.dtype == x.dtype else torch.empty_like(gates, dtype=x.dtype)
    longest = max(tables.counts) * batch
    behind_h = saved_c.new_empty(dirs * longest * ndim * units)
    behind_c = saved_c.new_empty(2, dirs * longest * ndim * units)  # of one wavefront and of the one ahead
    launch = _Launcher("recompute" if recompute else "backward", cell, parameters, weight_hh)
    blocks = launch.blocks(longest)
    gradients = parameters.map(lambda p: saved_c.new_zeros(dirs, blocks, *p.shape[1:]))
    parts = da.split([count * batch for count in tables.counts], dim=1)
    with torch.cuda.device_of(x):
        for t in reversed(range(len(parts))):
            launch(
                parts[t].shape[1],
                *(grad, gates, saved_c, behind_h, behind_c[t % 2], behind_c[1 - t % 2], *extra),
                *(da, *vars(gradients).values()),
                *(tables.starts, tables.visit, tables.back, tables.ahead, inside),
                *(t, batch, tables.positions, blocks),
            )
            if t > 0:
                result = _front(behind_h, dirs, parts[t].shape[1], ndim * units)
                products.multiply(parts[t], recurrent, out=result)
    summed = gradients.map(lambda partial: partial.sum(dim=1).to(x.dtype))
    return [
        *products.weight_gradients(da, output, x, weight_ih, bias, tables, wants_dx),
        *vars(summed).values(),
    ]


class _Launcher:
    """Launches a cell's kernel on a wavefront."""

    def __init__(
        self,
        way: Literal["forward", "backward", "recompute"],
        cell: Cell,
        parameters: CellParameters,
        weight_hh: Tensor,
    ) -> None:
        self.dirs, ndim, width, units = weight_hh.shape
        layer_norm = parameters.norm_weight is not None
        self.kernel = kernel(way, cell.name, ndim, parameters.peephole is not None, layer_norm)
        whole = 1 << (units - 1).bit_length()
        block = whole if layer_norm else min(whole, UNITS)
        self.rows = max(1, ELEMENTS // block)
        self.parts = -(-units // block)
        warps = min(32, max(4, self.rows * block // 128))
        self.options = {"AXES": ndim, "GATES": width // units, "UNITS": units, "ROWS": self.rows}
        self.options |= {"BLOCK": block, "num_warps": warps}

    def blocks(self, rows: int) -> int:
        """Programs that share a wavefront's rows."""
        return -(-rows // self.rows)

    def __call__(self, rows: int, *arguments: Any, **options: Any) -> None:
        if rows > 0:
            self.kernel[(self.blocks(rows), self.parts, self.dirs)](*arguments, **self.options, **options)


def _front(buffer: Tensor, *shape: int) -> Tensor:
    """The front of a buffer as a tensor of this shape."""
    return buffer[: prod(shape)].view(shape)
