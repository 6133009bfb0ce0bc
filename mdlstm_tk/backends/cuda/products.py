"""The h of predecessors as operands of products: of the whole grid, and where initial states enter it.

Rows as in `mdlstm_tk.backends.tables`; N batch, F lines, D axes, G gates, S states beside h, n units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import (
    at_rows,
    by_direction,
    end_rows,
    face_rows,
    line_counts,
    take_rows,
)
from mdlstm_tk.backends.inputs import SweepInputs
from mdlstm_tk.backends.tables import SweepRows
from mdlstm_tk.backends.torch.products import multiply, to_visiting_order


class Entering:
    """The rows where initial states enter a sweep.

    Attributes:
        lines: (D, dirs, rows) the lines that enter at a row, see `face_rows`.
        rows: for each axis (dirs, F_d·N), the rows where its lines enter, or −1.
    """

    def __init__(self, inputs: SweepInputs, rows: SweepRows) -> None:
        self.counts = [count * inputs.x.shape[0] for count in line_counts(inputs.grid)]
        self.lines = face_rows(inputs, rows, leaving=False)
        self.rows = end_rows(inputs, rows, leaving=False).flatten(1).split(self.counts, dim=1)

    def add_products(self, a: Tensor, initial: Tensor, weight_hh: Tensor) -> None:
        """Add U_d h_d of the h_d that enter to `a` (dirs, rows, G·n)."""
        h = by_direction(initial[..., :1, :]).to(weight_hh.dtype).split(self.counts, dim=1)
        direction = torch.arange(len(a), device=a.device)[:, None]
        for d, (h_d, rows_d) in enumerate(zip(h, self.rows, strict=True)):
            product = multiply(h_d, weight_hh[:, d].transpose(1, 2)).masked_fill(rows_d[..., None] < 0, 0)
            if a.shape[1] > 0:  # the rows differ where they are not −1
                a.index_put_((direction, rows_d.clamp(min=0)), product, accumulate=True)

    def gradients(self, da: Tensor, weight_hh: Tensor) -> Tensor:
        """(dirs, F·N, n) U_dᵀ da, the gradient of the h that enter, from that of `a`."""
        parts = [multiply(take_rows(da, rows_d), weight_hh[:, d]) for d, rows_d in enumerate(self.rows)]
        return torch.cat(parts, dim=1)


def gather_hidden(inputs: SweepInputs, output: Tensor, rows: SweepRows) -> Tensor:
    """(h_1 | … | h_D) of the predecessors of every row, with those that enter, (dirs, rows, D·n)."""
    visited = to_visiting_order(output, rows)  # (dirs, visits, batch, n)
    visited = torch.nn.functional.pad(visited, (0, 0, 0, 0, 0, 1))  # the last one, at index −1, is zeros
    hidden = torch.stack([visited[:, index] for index in rows.tables.predecessors], dim=3).flatten(1, 2)
    if inputs.initial is not None:
        hidden += at_rows(inputs.initial[..., :1, :], inputs, rows, leaving=False).permute(1, 2, 0, 3)
    return hidden.flatten(2)
