"""One step of a cell on torch tensors: activate the gates, apply the equations; and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mdlstm_tk.cells import LAYER_NORM_EPS, Cell

Pull = Callable[[Tensor], Tensor]


@dataclass
class CellParameters:
    """What a cell needs beside its pre-activations; leading axes broadcast against theirs.

    Attributes:
        peephole: (..., 2D + 1, n) weights from c_d to i (D rows), from c_d to f_d (D rows), from
            the new c to o; or None.
        norm_weight: (..., G + 1, n) layer-norm scale of each gate, then of c; or None.
        norm_bias: (..., G + 1, n) the shifts.
    """

    peephole: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> CellParameters:
        """With `function` applied to each that is there."""
        rows = (self.peephole, self.norm_weight, self.norm_bias)
        return CellParameters(*(None if row is None else function(row) for row in rows))


def _normalise(value: Tensor, row: int, parameters: CellParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of (..., n): the result, the unscaled result and 1/σ (..., 1)."""
    assert parameters.norm_weight is not None and parameters.norm_bias is not None
    centred = value - value.mean(dim=-1, keepdim=True)
    rstd = (centred.square().mean(dim=-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
    unit = centred * rstd
    weight, bias = parameters.norm_weight[..., row, :], parameters.norm_bias[..., row, :]
    return unit * weight + bias, unit, rstd


def _activate(value: Tensor, row: int, name: str, parameters: CellParameters) -> Tensor:
    if parameters.norm_weight is not None:
        value, _, _ = _normalise(value, row, parameters)
    return value.tanh() if name in ("g", "squash") else value.sigmoid()


def _see_states(pre: list[Tensor], c: Sequence[Tensor], peephole: Tensor) -> None:
    """Add to the pre-activations of i and f_d what they see of c_d."""
    for d, state in enumerate(c):
        pre[0] = pre[0] + peephole[..., d, :] * state
        pre[1 + d] = pre[1 + d] + peephole[..., len(c) + d, :] * state


def cell_step(
    cell: Cell, a: Tensor, c: Sequence[Tensor], parameters: CellParameters
) -> tuple[Tensor, Tensor]:
    """New h and c of a set of cells.

    Args:
        cell: the equations.
        a: (..., G, n) pre-activations W x + Σ_d U_d h_d + b.
        c: D states (..., n), one step back along each axis.
        parameters: peepholes and layer norm.

    Returns:
        h (..., n) and c (..., n).
    """
    names = cell.gates(len(c))
    last = len(names) - 1
    pre = list(a.unbind(-2))
    peephole = parameters.peephole
    if peephole is not None:
        _see_states(pre, c, peephole)

    def squash(value: Tensor) -> Tensor:
        return _activate(value, len(names), "squash", parameters)

    def late_gate(gate: Tensor, new: Tensor) -> Tensor:
        if peephole is None:
            return gate
        return _activate(gate + peephole[..., -1, :] * new, last, names[last], parameters)

    gates = [
        value if peephole is not None and row == last else _activate(value, row, name, parameters)
        for row, (name, value) in enumerate(zip(names, pre, strict=True))
    ]
    return cell.step(gates, c, squash, late_gate)


def cell_step_backward(
    cell: Cell,
    a: Tensor,
    c: Sequence[Tensor],
    new: Tensor,
    dh: Tensor,
    dc: Tensor,
    parameters: CellParameters,
    gradients: CellParameters,
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of `cell_step`.

    Args:
        cell: the equations.
        a: (dirs, R, G, n) as for `cell_step`, over R rows.
        c: D states (dirs, R, n).
        new: (dirs, R, n) the c that `cell_step` returned.
        dh: (dirs, R, n) gradient of h.
        dc: (dirs, R, n) gradient of the new c.
        parameters: (dirs, 1, rows, n) each.
        gradients: (dirs, rows, n) each; the gradients of the parameters are added to these.

    Returns:
        The gradients of a (dirs, R, G, n) and of the D states c.
    """
    names = cell.gates(len(c))
    last = len(names) - 1
    pre = list(a.unbind(-2))
    if parameters.peephole is not None:
        _see_states(pre, c, parameters.peephole)
        pre[last] = pre[last] + parameters.peephole[..., -1, :] * new

    def forward(value: Tensor, row: int, name: str) -> tuple[Tensor, Pull]:
        """The activated value, and the function that pulls a gradient back to `value`."""
        unit = rstd = value
        if parameters.norm_weight is not None:
            value, unit, rstd = _normalise(value, row, parameters)
        active = value.tanh() if name in ("g", "squash") else value.sigmoid()

        def pull(gradient: Tensor) -> Tensor:
            slope = 1 - active * active if name in ("g", "squash") else active * (1 - active)
            gradient = gradient * slope
            if parameters.norm_weight is None:
                return gradient
            assert gradients.norm_weight is not None and gradients.norm_bias is not None
            gradients.norm_weight[:, row] += (gradient * unit).sum(dim=1)
            gradients.norm_bias[:, row] += gradient.sum(dim=1)
            gradient = gradient * parameters.norm_weight[..., row, :]
            along = (gradient * unit).mean(dim=-1, keepdim=True)
            return (gradient - gradient.mean(dim=-1, keepdim=True) - unit * along) * rstd

        return active, pull

    gates, pulls = zip(
        *(forward(value, row, name) for row, (name, value) in enumerate(zip(names, pre, strict=True))),
        strict=True,
    )
    late: list[Tensor] = []

    def late_gate(gradient: Tensor, dnew: Tensor) -> Tensor:
        if parameters.peephole is None:
            return dnew
        late.append(pulls[last](gradient))
        return dnew + parameters.peephole[..., -1, :] * late[0]

    def squash(value: Tensor) -> tuple[Tensor, Pull]:
        return forward(value, len(names), "squash")

    dgates, states = cell.back(gates, c, new, dh, dc, squash, late_gate)
    early = len(names) - len(late)
    da = [pull(gradient) for pull, gradient in zip(pulls[:early], dgates, strict=False)] + late
    if parameters.peephole is not None:
        assert gradients.peephole is not None
        ndim = len(c)
        for d, state in enumerate(c):
            gradients.peephole[:, d] += (da[0] * state).sum(dim=1)
            gradients.peephole[:, ndim + d] += (da[1 + d] * state).sum(dim=1)
            seen = parameters.peephole[..., d, :] * da[0]
            states[d] = states[d] + seen + parameters.peephole[..., ndim + d, :] * da[1 + d]
        gradients.peephole[:, 2 * ndim] += (da[last] * new).sum(dim=1)
    return torch.stack(da, dim=-2), states
