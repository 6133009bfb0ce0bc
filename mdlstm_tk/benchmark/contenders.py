"""Contenders of a measurement: the layer, its matrix products alone, `nn.LSTM`, the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.dispatch import Backend
from mdlstm_tk.benchmark.shapes import Shape
from mdlstm_tk.layer import MDLSTM
from mdlstm_tk.wavefront import wavefronts

Step = Callable[[], object]  # one forward pass, or one with its backward pass


def contenders(
    shape: Shape, training: bool, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Step], MDLSTM, Tensor]:
    """Build everything that is measured for one shape.

    Returns:
        A step of each of "layer", "floor", "nn.LSTM" and "torch backend"; the layer; and its input,
        (N, *grid, C).
    """
    factory = {"device": device, "dtype": dtype}
    layer, x = make_layer(shape, "auto", factory)
    steps = {
        "layer": make_step(layer, x, training),
        "floor": floor(shape, training, factory),
        "nn.LSTM": make_step(*_lstm(shape, factory), training),
        "torch backend": make_step(*make_layer(shape, "torch", factory), training),
    }
    return steps, layer, x


def make_layer(
    shape: Shape, backend: Backend = "auto", factory: Mapping[str, Any] | None = None
) -> tuple[MDLSTM, Tensor]:
    """The layer of a shape and its input (N, *grid, C), with the device and dtype in `factory`."""
    factory, options = factory or {}, dict(shape.options)
    layer = MDLSTM(shape.channels, shape.units, ndim=len(shape.grid), backend=backend, **options)
    return layer.to(**factory), torch.randn(shape.batch, *shape.grid, shape.channels, **factory)


def floor(shape: Shape, training: bool, factory: Mapping[str, Any] | None = None) -> Step:
    """Build the matrix-product floor: the products of a sweep by torch, and nothing else.

    Forward: one (N·P, C) × (C, G·n), and for each wavefront one (rows, D·n) × (D·n, G·n) into a buffer that
    is reused. Backward: for each wavefront one (rows, G·n) × (G·n, D·n), and the two products that give the
    gradients of the weights.
    """
    factory = factory or {}
    gate_dim, recurrent_dim = shape.gate_dim, len(shape.grid) * shape.units
    rows = (np.diff(wavefronts(shape.grid).starts) * shape.batch).tolist()  # of each wavefront
    longest = max(rows)

    def randn(*extents: int) -> Tensor:
        return torch.randn(*extents, **factory)

    x, w_ih = randn(shape.positions, shape.channels), randn(shape.channels, gate_dim)
    w_hh, w_hh_transposed = randn(recurrent_dim, gate_dim), randn(gate_dim, recurrent_dim)
    h_prev, pre_activations = randn(longest, recurrent_dim), randn(longest, gate_dim)
    dh_prev = randn(longest, recurrent_dim)
    da, h = randn(shape.positions, gate_dim), randn(shape.positions, recurrent_dim)

    def step() -> None:
        for _ in range(shape.num_directions):
            torch.mm(x, w_ih)
            for count in rows[1:]:
                torch.mm(h_prev[:count], w_hh, out=pre_activations[:count])
            if training:
                for count in rows[1:]:
                    torch.mm(pre_activations[:count], w_hh_transposed, out=dh_prev[:count])
                torch.mm(da.T, h)
                torch.mm(da.T, x)

    return step


def make_step(layer: torch.nn.Module, x: Tensor, training: bool) -> Step:
    """A forward pass of a module without gradients, or one with its backward pass.

    Args:
        layer: returns a tensor, or a tuple whose first entry is one.
        x: its input.
        training: whether the step ends with the gradients of all parameters.
    """

    def output() -> Tensor:
        y = layer(x)
        return y if isinstance(y, Tensor) else y[0]

    @torch.no_grad()
    def infer() -> None:
        output()

    def train() -> None:
        layer.zero_grad()
        output().backward(gradient)

    with torch.no_grad():
        gradient = torch.randn_like(output())
    return train if training else infer


def _lstm(shape: Shape, factory: Mapping[str, Any]) -> tuple[torch.nn.Module, Tensor]:
    """`torch.nn.LSTM` with one step per wavefront, over about the same number of positions in all."""
    layer = torch.nn.LSTM(shape.channels, shape.units, batch_first=True, **factory)
    rows = max(1, round(shape.num_directions * shape.positions / shape.wavefronts))
    return layer, torch.randn(rows, shape.wavefronts, shape.channels, **factory)
