"""Floating-point operations of a sweep, as `torch.utils.flop_counter` counts them: of its matrix products.

A product of (rows, k) and (k, columns) takes 2 · rows · k · columns of them. The rows are all N·P
positions, whatever `sizes` says, since formulas see shapes only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

Shape = Sequence[int]


def register() -> None:
    """Tell `torch.utils.flop_counter` the formulas."""
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.mdlstm.wavefront)(wavefront_flops)
    register_flop_formula(torch.ops.mdlstm.wavefront_backward)(wavefront_backward_flops)


def register_states() -> None:
    """The same for the operators with states; what enters from a face counts as at other positions."""
    from torch.utils.flop_counter import register_flop_formula

    register_flop_formula(torch.ops.mdlstm.wavefront_states)(wavefront_flops)
    register_flop_formula(torch.ops.mdlstm.wavefront_states_backward)(wavefront_backward_flops)


def wavefront_flops(x: Shape, weight_ih: Shape, weight_hh: Shape | None, *_: Any, **__: Any) -> int:
    """W x and, for each axis, U_d h_d: 2·N·P·dirs·G·n·(C + D·n)."""
    return 2 * prod(x[:-1]) * (prod(weight_ih) + _numel(weight_hh))


def wavefront_backward_flops(
    grad: Shape,
    output: Shape,
    gates: Shape,
    c: Shape,
    x: Shape,
    weight_ih: Shape,
    weight_hh: Shape | None,
    *others: Any,
    **_: Any,
) -> int:
    """The gradients of W, U_d, h_d and, if wanted, x; and those of the pre-activations if they are computed
    again."""
    rows, recompute = prod(x[:-1]), tuple(gates) == (0,)
    wants_dx: bool = others[-1]
    products = (1 + wants_dx) * prod(weight_ih) + 2 * _numel(weight_hh)
    again = wavefront_flops(x, weight_ih, weight_hh) if recompute else 0
    return 2 * rows * products + again


def _numel(shape: Shape | None) -> int:
    return 0 if shape is None else prod(shape)
