"""The numbers of operations of a sweep, for `torch.utils.flop_counter`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mdlstm_tk.backends.inputs import SweepInputs

Shape = Sequence[int]
# Of the arguments of wavefront_backward after the first three: its options follow those of a sweep, three
# results, and two gradients.
OPTIONS = len(SweepInputs._fields) - 3 + 5


def _flops(x: Shape, weight_ih: Shape, weight_hh: Shape | None, *_: Any, **__: Any) -> int:
    """Operations of the products W x and U_d h_d, from the shapes: 2·N·P·dirs·G·n·(C + D·n)."""
    return 2 * prod(x[:-1]) * (prod(weight_ih) + (0 if weight_hh is None else prod(weight_hh)))


def _backward_flops(x: Shape, weight_ih: Shape, weight_hh: Shape | None, *others: Any, **_: Any) -> int:
    """Operations of the gradients of h_d and, if wanted, of W and U_d, and of x; and of the gates computed
    again."""
    recurrent = 0 if weight_hh is None else prod(weight_hh)
    recompute, _, wants_dx, wants_weights = others[OPTIONS:]
    again = _flops(x, weight_ih, weight_hh) if recompute else 0
    products: int = (wants_weights + wants_dx) * prod(weight_ih) + (1 + wants_weights) * recurrent
    return 2 * prod(x[:-1]) * products + again


def register_flops() -> None:
    """Let `torch.utils.flop_counter` count matrix products if it is imported; importing it here is slow.
    A counter has a table of its own, which a layer may come too late for."""
    counter = None if torch.compiler.is_compiling() else sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    packets = {torch.ops.mdlstm.wavefront: _flops, torch.ops.mdlstm.wavefront_backward: _backward_flops}
    for packet, flops in packets.items():
        if packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(flops)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(active := getattr(mode, "counter", mode), counter.FlopCounterMode):
                active.flop_registry.setdefault(packet, counter.flop_registry[packet])
