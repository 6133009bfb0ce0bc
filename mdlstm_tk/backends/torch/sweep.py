"""The sweep wavefront by wavefront in plain torch operations, on any device and in any dtype.

All directions run in one sweep. Their tensors are laid out in visiting order with rows (visit, sample), so
a wavefront is a contiguous slice, and a direction is only another order of visiting. A ragged batch is one
sample here, whose positions are the valid ones of all samples: see `mdlstm_tk.backends.tables`. float16 and
bfloat16 inputs are multiplied as they are; gates and states are float32.

Notation: N batch, P positions, T wavefronts, K positions of one wavefront, G gates, S states beside h, n
units, D axes. h and the other states of a row lie side by side, (1 + S)·n numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdlstm_tk.backends.boundary import at_entries, at_rows, final_states
from mdlstm_tk.backends.inputs import Gradients, SweepInputs, SweepResults
from mdlstm_tk.backends.tables import SweepRows, sweep_rows
from mdlstm_tk.backends.torch import products
from mdlstm_tk.backends.torch.evaluate import evaluate
from mdlstm_tk.cells.graph import Kernel
from mdlstm_tk.cells.step import Pass, pass_kernel


def forward(inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
    """See `Engine`."""
    x, units, rows = inputs.x, inputs.units, sweep_rows(inputs)
    dirs, states, counts, batch = len(inputs.weight_ih), inputs.state_count, rows.tables.counts, rows.batch
    w_hh = None if inputs.weight_hh is None else products.recurrent_weights(inputs.weight_hh)
    a = list(products.pre_activations(inputs, rows, None).split(rows.row_counts, dim=1))  # W x + b so far
    step = _CellKernel("forward", inputs)
    entering = _entering(inputs, rows)
    invalid = _invalid_masks(rows)

    zero = a[0].new_zeros(dirs, 1, batch, (1 + states) * units)
    previous = zero  # the previous wavefront, then a row of zeros: (dirs, K + 1, N, (1 + S)·n)
    waves = []
    for t, count in enumerate(counts):
        prev = _predecessors(t, previous, rows, entering)
        if w_hh is not None and (t > 0 or entering is not None):
            operand = torch.cat([of_axis[..., :units] for of_axis in prev], dim=-1)  # (dirs, K·N, D·n)
            a[t] = a[t] + products.multiply(operand.to(x.dtype), w_hh)
        h, *others = step({"a": _rows(a[t], units), **_previous_slots(prev, units)})[: 1 + states]
        h = h.to(x.dtype).to(h.dtype)  # as the next wavefront sees it
        wave = torch.cat([h, *others], dim=-1).unflatten(1, (count, batch))  # (dirs, K, N, (1 + S)·n)
        if invalid is not None:
            wave = wave.masked_fill(invalid[t], 0)
        waves.append(wave)
        previous = torch.cat([wave, zero], dim=1)

    visited = torch.cat(waves, dim=1)  # (dirs, P, N, (1 + S)·n)
    output = products.to_grid_order(visited[..., :units].to(x.dtype), rows).permute(2, 1, 0, 3)
    output = output.reshape(*x.shape[:-1], dirs, units).contiguous()
    other_states = visited[..., units:].flatten(1, 2)  # (dirs, rows, S·n)
    final = None if inputs.initial is None else final_states(inputs, rows, output, other_states)
    if not save:
        return SweepResults(output, final)
    gates = None if recompute else torch.cat(a, dim=1)
    return SweepResults(output, final, gates, other_states.contiguous())


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
    assert states is not None
    dirs, batch = len(inputs.weight_ih), rows.batch
    tables, counts, dtype = rows.tables, rows.tables.counts, states.dtype
    h = products.to_visiting_order(output, rows).to(dtype)  # (dirs, P, N, n)
    other_states = states[:, : rows.count].unflatten(1, h.shape[1:3])
    waves = torch.cat([h, other_states], dim=-1).split(counts, dim=1)
    dh = products.to_visiting_order(grad, rows).to(dtype)
    d_waves = list(torch.nn.functional.pad(dh, (0, inputs.state_count * units)).split(counts, dim=1))
    hidden = products.gather_hidden(inputs, output, rows)
    a = products.pre_activations(inputs, rows, hidden) if gates is None else gates[:, : rows.count]
    a_waves = a.split(rows.row_counts, dim=1)
    w_hh_t = None if inputs.weight_hh is None else products.transposed_recurrent_weights(inputs.weight_hh)
    step = _CellKernel("recompute", inputs)
    entering, leaving = _entering(inputs, rows), None
    if dfinal is not None:
        at_ends = at_rows(dfinal, inputs, rows, leaving=True).sum(dim=0)
        leaving = at_ends.unflatten(1, h.shape[1:3]).split(counts, dim=1)  # T × (dirs, K, N, (1 + S)·n)
    invalid = _invalid_masks(rows)

    zero = waves[0].new_zeros(dirs, 1, *waves[0].shape[2:])
    da: list[Tensor] = []
    of_parameters: list[Tensor] = []  # for each wavefront (dirs, rows of the parameters, n)
    of_entering: list[Tensor] = []  # for each wavefront (D, dirs, K·N, (1 + S)·n)
    for t in reversed(range(len(counts))):
        before = torch.cat([waves[t - 1], zero], dim=1) if t > 0 else zero
        prev = _predecessors(t, before, rows, entering)
        d_wave = d_waves[t] if leaving is None else d_waves[t] + leaving[t]
        if invalid is not None:
            d_wave = d_wave.masked_fill(invalid[t], 0)
        dh, *dstates = _rows(d_wave.flatten(1, 2), units)
        step_gradients = step(
            {
                "gates": _rows(a_waves[t], units),
                **_previous_slots(prev, units),
                "state": _rows(waves[t].flatten(1, 2), units)[1:],
                "dh": [dh],
                **step.gradients_of_one_successor(dstates, torch.zeros_like(dh)),
            }
        )
        if invalid is not None:  # states are 0 there, which a cell may divide by
            step_gradients = [row.masked_fill(invalid[t].flatten(1, 2), 0) for row in step_gradients]
        d_prev = step.of_previous(step_gradients)  # D × (dirs, K·N, (1 + S)·n), h by the equations alone
        if step.parameters:
            parts = [row.sum(dim=1) for row in step_gradients[-step.parameters :]]
            of_parameters.append(torch.stack(parts, dim=1))
        da.append(torch.cat(step_gradients[: inputs.gate_count], dim=-1).to(x.dtype))  # (dirs, K·N, G·n)
        if w_hh_t is not None:
            for d_rows, dh_d in zip(
                d_prev, products.multiply(da[-1], w_hh_t).split(units, dim=-1), strict=True
            ):
                d_rows[..., :units] += dh_d
        if entering is not None:
            of_entering.append(torch.stack(d_prev))
        if t > 0:  # the last row takes what leads outside the grid
            d_before = torch.zeros_like(before)
            for index, d_rows in zip(tables.previous[t], d_prev, strict=True):
                d_before.index_add_(1, index, d_rows.unflatten(1, (counts[t], batch)))
            d_waves[t - 1] = d_waves[t - 1] + d_before[:, :-1]

    all_da = torch.cat(da[::-1], dim=1)
    gradients = products.input_gradients(inputs, all_da, hidden, rows, wants_dx, wants_weights)
    if of_parameters:
        # torch sums many numbers in parts, which is more precise than adding one wavefront after another.
        summed = torch.stack(of_parameters).sum(dim=0).to(x.dtype)
        gradients |= inputs.split_cell_parameters(summed)
    if of_entering:
        d_prev_of_all = torch.cat(of_entering[::-1], dim=2)
        gradients["initial"] = at_entries(d_prev_of_all, inputs, rows)
    return gradients


def _entering(inputs: SweepInputs, rows: SweepRows) -> tuple[Tensor, ...] | None:
    """The states that enter at each wavefront, (D, dirs, K·N, (1 + S)·n), if there are initial states."""
    if inputs.initial is None:
        return None
    states = at_rows(inputs.initial, inputs, rows, leaving=False)
    parts: tuple[Tensor, ...] = states.split(rows.row_counts, dim=2)
    return parts


def _predecessors(
    t: int, before: Tensor, rows: SweepRows, entering: tuple[Tensor, ...] | None
) -> list[Tensor]:
    """(dirs, K·N, (1 + S)·n) for each axis, from the previous wavefront and a row of zeros."""
    prev = [before.index_select(1, index).flatten(1, 2) for index in rows.tables.previous[t]]
    return prev if entering is None else [a + b for a, b in zip(prev, entering[t], strict=True)]


class _CellKernel:
    """A kernel of the cell, evaluated on the rows (dirs, K·N, n) of a wavefront."""

    def __init__(self, pass_kind: Pass, inputs: SweepInputs) -> None:
        self.kernel: Kernel = pass_kernel(pass_kind, inputs.cell, inputs.ndim, inputs.present)
        self.ndim, self.states = inputs.ndim, inputs.state_count
        packed = inputs.cell_parameters()
        self.slots = {} if packed is None else {"parameter": packed.unsqueeze(1).unbind(-2)}  # (dirs, 1, n)
        self.parameters = 0 if packed is None else packed.shape[1]

    def __call__(self, slots: dict[str, Sequence[Tensor]]) -> list[Tensor]:
        """The values of all stores."""
        like = next(iter(slots.values()))[0]
        return evaluate(self.kernel, self.slots | slots, like)

    def gradients_of_one_successor(
        self, dstates: Sequence[Tensor], zero: Tensor
    ) -> dict[str, Sequence[Tensor]]:
        """The slots of the gradients from successors, where only their sums are known: that of h is in the
        slot `dh`, and those of the other states, `dstates`, stand for the first axis."""
        zeros = [zero] * self.ndim
        other_axes = [zero] * (self.states * (self.ndim - 1))
        return {"dh_next": zeros, "dh_read_next": zeros, "dstate_next": [*dstates, *other_axes]}

    def of_previous(self, results: Sequence[Tensor]) -> list[Tensor]:
        """For each axis the gradients of h and the other states of the predecessors, side by side."""
        of = {name: [] for name in ("dh_read_prev", "dstate_prev")}  # type: dict[str, list[Tensor]]
        for store, result in zip(self.kernel.stores, results, strict=True):
            if store.slot in of:
                of[store.slot].append(result)
        like = results[0]
        dh = of["dh_read_prev"] or [torch.zeros_like(like)] * self.ndim
        return [
            torch.cat([dh[d], *of["dstate_prev"][d * self.states : (d + 1) * self.states]], dim=-1)
            for d in range(self.ndim)
        ]


def _rows(side_by_side: Tensor, units: int) -> tuple[Tensor, ...]:
    """(…, k·n) → k × (…, n)."""
    parts: tuple[Tensor, ...] = side_by_side.unflatten(-1, (-1, units)).unbind(-2)
    return parts


def _previous_slots(prev: Sequence[Tensor], units: int) -> dict[str, Sequence[Tensor]]:
    """The slots of h and the other states of the predecessors, from (dirs, K·N, (1 + S)·n) of each axis."""
    rows = [_rows(of_axis, units) for of_axis in prev]
    return {
        "h_prev": [of_axis[0] for of_axis in rows],
        "state_prev": [row for of_axis in rows for row in of_axis[1:]],
    }


def _invalid_masks(rows: SweepRows) -> tuple[Tensor, ...] | None:
    """For each wavefront (dirs, K, N, 1), true where the position is not valid; None if all are."""
    if rows.valid_mask is None:
        return None
    invalid = ~rows.valid_mask.flatten(1).T[rows.tables.order]  # (dirs, P, N)
    masks: tuple[Tensor, ...] = invalid.unsqueeze(-1).split(rows.tables.counts, dim=1)
    return masks
