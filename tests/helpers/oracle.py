"""The truth about a layer: float64, position by position, with the cells written by hand.

Slow on purpose, and independent of the graph of a cell, of tables and wavefronts; torch differentiates it.
Cells of users are computed by their equations, called with tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk import MDLSTM
from mdlstm_tk.cells import BUILT_IN_CELLS, get_cell

Norm = Callable[[Tensor, int], Tensor]  # layer norm of value k; the identity where there is none
States = dict[str, Sequence[Tensor]]  # by name, "h" among them, those one step back along each axis


def by_hand(cell: str, a: Tensor, before: States, p: Tensor, norm: Norm) -> list[Tensor]:
    """h, c and n (of slstm) at one position, from pre-activations a (G, N, n) and peepholes p (2D + 1, n),
    zeros where there are none."""
    c_d, ndim = before["c"], len(before["c"])

    def s(k: int, peephole: Any = 0.0) -> Tensor:
        return torch.sigmoid(norm(a[k] + peephole, k))

    def mixed(first: int) -> Tensor:  # λ₁c₁ + (1 − λ₁)(λ₂c₂ + …)
        c = c_d[-1]
        for d in reversed(range(ndim - 1)):
            c = s(first + d) * c_d[d] + (1 - s(first + d)) * c
        return c

    g = len(a) - 2
    if cell in ("graves", "mean"):
        i = s(0, sum(p[d] * c_d[d] for d in range(ndim)))
        kept = sum(s(1 + d, p[ndim + d] * c_d[d]) * c_d[d] for d in range(ndim))
        c = i * torch.tanh(norm(a[g], g)) + kept / (ndim if cell == "mean" else 1)
        return [s(g + 1, p[2 * ndim] * c) * torch.tanh(norm(c, g + 2)), c]
    if cell == "stable":
        c = s(0) * torch.tanh(norm(a[g], g)) + s(1) * mixed(2)
        return [s(g + 1) * torch.tanh(norm(c, g + 2)), c]
    if cell == "leaky":
        old, g = mixed(1), ndim
        c = s(0) * torch.tanh(norm(a[g], g)) + (1 - s(0)) * old
        return [torch.tanh(norm(s(g + 1) * old + s(g + 2) * c, g + 3)), c]
    assert cell == "slstm", f"write the equations of '{cell}' by hand"
    terms, rest = [norm(a[0], 0)], norm(a[1], 1)  # the logarithms of the weights of z and of each c_d
    for d in range(ndim - 1):
        mixing = norm(a[2 + d], 2 + d)
        terms.append(rest + torch.nn.functional.logsigmoid(mixing) + before["n"][d])
        rest = rest + torch.nn.functional.logsigmoid(-mixing)
    logs = torch.stack([*terms, rest + before["n"][-1]])
    values = torch.stack([torch.tanh(norm(a[g], g)), *c_d])
    c = (logs.softmax(0) * values).sum(0)
    return [s(g + 1) * c, c, logs.logsumexp(0)]


def by_equations(cell: str, a: Tensor, before: States, norm: Norm) -> list[Tensor]:
    """The same of a cell of users: its equations, called with tensors."""
    definition = get_cell(cell)
    kinds = [gate.activation for gate in definition.gates(len(before["h"]))]
    normed = [norm(value, k) for k, value in enumerate(a)]
    gates = [x if kind is None else getattr(x, kind)() for x, kind in zip(normed, kinds, strict=True)]
    functions = [lambda x: norm(x, len(a)).tanh()][: definition.functions]
    states = {name: list(values) for name, values in before.items()}
    h, new = definition.equations(gates, states, *functions)
    results = (h, *(new[name] for name in definition.states))
    return [torch.as_tensor(value, dtype=a.dtype).expand_as(a[0]) for value in results]


def sweep(
    cell: str,
    x: Tensor,
    weights: Mapping[str, Tensor | None],
    directions: Sequence[Sequence[int]],
    sizes: Any = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n).

    Args:
        cell: its name.
        x: (N, *grid, C), which may be NaN outside the valid extents.
        weights: the parameters of a layer, by the names in `SweepInputs`.
        directions: signs of each.
        sizes: (N, D) valid extents, or None.
        initial: (N, F, dirs, 1 + S, n), or None for zeros.
    """
    (batch, *grid, _), ndim = x.shape, x.dim() - 2
    extents = [grid] * batch if sizes is None else torch.as_tensor(sizes).tolist()
    w = {name: None if p is None else p.double() for name, p in weights.items()}
    units = weights["weight_ih"].shape[1] // len(get_cell(cell).gates(ndim))  # type: ignore[union-attr]
    names = ("h", *get_cell(cell).states)
    shapes = [grid[:d] + grid[d + 1 :] for d in range(ndim)]
    outputs, finals = [], []
    for k, signs in enumerate(directions):
        p = {name: parameter[k] for name, parameter in w.items() if parameter is not None}

        def norm(value: Tensor, row: int, p: dict[str, Tensor] = p) -> Tensor:
            if "norm_weight" not in p:
                return value
            centred = value - value.mean(-1, keepdim=True)
            deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return centred / deviation * p["norm_weight"][row] + p["norm_bias"][row]

        zero = x.new_zeros(len(names), units, dtype=torch.float64)
        h = [[zero[0]] * prod(grid) for _ in range(batch)]
        ends = [[[zero] * prod(shape) for shape in shapes] for _ in range(batch)]
        for sample, extent in enumerate(extents):
            faces = None
            if initial is not None:
                faces = initial[sample, :, k].double().split([prod(shape) for shape in shapes])
            states: dict[tuple[int, ...], Tensor] = {}
            for steps in product(*map(range, extent)):  # how far the sweep has come along each axis
                place = tuple(
                    e - 1 - t if s < 0 else t for t, e, s in zip(steps, extent, signs, strict=True)
                )
                previous = []
                for d in range(ndim):
                    before, line = (*steps[:d], steps[d] - 1, *steps[d + 1 :]), place[:d] + place[d + 1 :]
                    outside = zero if faces is None else faces[d][_flat(line, shapes[d])]
                    previous.append(states.get(before, outside))
                a = p["weight_ih"] @ x[(sample, *place)].double() + p.get("bias", 0)
                if "weight_hh" in p:
                    a = a + sum(u @ state[0] for u, state in zip(p["weight_hh"], previous, strict=True))
                given = {name: [state[j] for state in previous] for j, name in enumerate(names)}
                rows = a.unflatten(0, (-1, units))
                if cell in BUILT_IN_CELLS:
                    peephole = p.get("peephole", zero.new_zeros(2 * ndim + 1, units))
                    new = by_hand(cell, rows, given, peephole, norm)
                else:
                    new = by_equations(cell, rows, given, norm)
                states[steps] = torch.stack(new)
                h[sample][_flat(place, grid)] = new[0]
                for d in range(ndim):
                    if steps[d] == extent[d] - 1:
                        ends[sample][d][_flat(place[:d] + place[d + 1 :], shapes[d])] = states[steps]
        outputs.append(
            torch.stack([torch.stack(row) for row in h]) if batch else x.new_zeros(0, prod(grid), units)
        )
        lines = [torch.stack([line for face in faces for line in face]) for faces in ends]
        shape = (0, sum(map(prod, shapes)), *zero.shape)
        finals.append(torch.stack(lines) if batch else x.new_zeros(shape))
    h_of_all = torch.stack(outputs, dim=-2).double().reshape(batch, *grid, len(directions), units)
    return h_of_all, torch.stack(finals, dim=2).double()


def _flat(place: Sequence[int], grid: Sequence[int]) -> int:
    index = 0
    for coordinate, extent in zip(place, grid, strict=True):
        index = index * extent + coordinate
    return index


def run(
    layer: MDLSTM,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    sizes: Tensor | None = None,
    initial: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """y and the final states of each stacked layer: what `layer` computes with these parameters."""
    x = (x if layer.channels_last else x.movedim(1, -1)).double()
    extents = None if sizes is None else sizes.tolist()
    if any(w > 1 for w in layer.window):
        x, extents = _windows(x, layer.window, extents), _coarser(extents, layer.window)
    finals = []
    for k in range(layer.num_layers):
        weights = {n.removesuffix(f"_l{k}"): p for n, p in parameters.items() if n.endswith(f"_l{k}")}
        start = None if initial is None else initial[k]
        h, final = sweep(layer.cell, x, weights, layer.directions, extents, start)
        finals.append(final)
        x = h.flatten(-2) if layer.merge == "concat" else getattr(h, layer.merge)(-2)
    return x if layer.channels_last else x.movedim(-1, 1), finals


def _windows(x: Tensor, window: Sequence[int], extents: Any) -> Tensor:
    """(N, *grid, C) → (N, *⌈grid/window⌉, C·∏ window), the positions of a window in row-major order before
    their features; zeros outside the grid and outside the valid extents."""
    batch, *grid, channels = x.shape
    coarse = [-(-e // w) for e, w in zip(grid, window, strict=True)]
    zero = x.new_zeros(channels)
    rows = []
    for sample, place in product(range(batch), product(*map(range, coarse))):
        limits = grid if extents is None else extents[sample]
        inside = []
        for offset in product(*map(range, window)):
            position = [t * w + o for t, w, o in zip(place, window, offset, strict=True)]
            valid = all(t < limit for t, limit in zip(position, limits, strict=True))
            inside.append(x[(sample, *position)] if valid else zero)
        rows.append(torch.cat(inside))
    features = channels * prod(window)
    return (
        torch.stack(rows).reshape(batch, *coarse, features) if rows else x.new_zeros(0, *coarse, features)
    )


def _coarser(extents: Any, window: Sequence[int]) -> Any:
    return extents and [[-(-e // w) for e, w in zip(row, window, strict=True)] for row in extents]
