"""The h of predecessors as operands of products: of the whole grid, and where initial states enter it.

Rows as in `mdlstm_tk.backends.tables`; N batch, F lines, D axes, G gates, S states beside h, n units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import (
    by_direction,
    end_rows,
    face_rows,
    line_counts,
    line_ends,
    take_rows,
)
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.backends.tables import SweepRows
from mdlstm_tk.backends.torch.products import multiply, to_visiting_order


class Entering(NamedTuple):
    """The initial states of a sweep, and where they enter it.

    Attributes:
        states: (dirs, F·N, (1 + S)·n).
        lines: (D, dirs, rows) the lines that enter at a row, see `face_rows`.
        rows: for each axis (dirs, F_d·N), the rows where its lines enter, or −1.
        h: for each axis (dirs, F_d·N, n), h of its lines in the dtype of x.
    """

    states: Tensor
    lines: Tensor
    rows: tuple[Tensor, ...]
    h: tuple[Tensor, ...]


def entering_states(inputs: SweepInputs, rows: SweepRows) -> Entering | None:
    """The initial states, if there are any."""
    if inputs.initial is None:
        return None
    ends, _ = line_ends(inputs)
    states = by_direction(inputs.initial)
    counts = [count * inputs.x.shape[0] for count in line_counts(inputs.grid)]
    at = end_rows(ends, inputs, rows).flatten(1).split(counts, dim=1)
    h = states[..., : inputs.units].to(inputs.x.dtype).split(counts, dim=1)
    return Entering(states, face_rows(ends, inputs, rows), at, h)


def add_entering_products(a: Tensor, inputs: SweepInputs, entering: Entering) -> None:
    """Add U_d h_d of the h_d that enter to `a` (dirs, rows, G·n)."""
    if inputs.weight_hh is not None:
        for d, (h_d, rows_d) in enumerate(zip(entering.h, entering.rows, strict=True)):
            _add(a, rows_d, multiply(h_d, inputs.weight_hh[:, d].transpose(1, 2)))


def gather_hidden(output: Tensor, rows: SweepRows, entering: Entering | None) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, with those that enter, (dirs, rows, D·n)."""
    visited = to_visiting_order(output, rows)  # (dirs, visits, batch, n)
    visited = torch.nn.functional.pad(visited, (0, 0, 0, 0, 0, 1))  # the last one, at index −1, is zeros
    hidden = torch.stack([visited[:, index] for index in rows.tables.predecessors], dim=3).flatten(1, 2)
    if entering is not None:
        for d, (h_d, rows_d) in enumerate(zip(entering.h, entering.rows, strict=True)):
            _add(hidden[:, :, d], rows_d, h_d)
    return hidden.flatten(2)


def add_entering_gradients(d_first: Tensor, da: Tensor, inputs: SweepInputs, entering: Entering) -> None:
    """Add U_dᵀ da to the gradient of the h that enter, the first n columns of `d_first`
    (dirs, F·N, (1 + S)·n)."""
    if inputs.weight_hh is not None:
        parts = [
            multiply(take_rows(da, rows_d), inputs.weight_hh[:, d])
            for d, rows_d in enumerate(entering.rows)
        ]
        d_first[..., : inputs.units] += torch.cat(parts, dim=1)


def _add(of_rows: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add `values` (dirs, K, k) at K rows of each direction, which differ where they are not −1; there
    nothing is added."""
    if of_rows.shape[1] > 0:
        direction = torch.arange(len(rows), device=rows.device)[:, None]
        values = values.masked_fill(rows[..., None] < 0, 0)
        of_rows.index_put_((direction, rows.clamp(min=0)), values, accumulate=True)
