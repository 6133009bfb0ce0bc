"""Shapes, a layer of each, and what it is compared with, for the scripts of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from measuring import Step
from torch import Tensor

from mdlstm_tk import MDLSTM
from mdlstm_tk._util.sizes import format_size, parse_size
from mdlstm_tk.wavefront import batch_rows

ALL = (("directions", "all"),)


@dataclass(frozen=True)
class Shape:
    """One layer and its input: N samples of a grid with C features, and n hidden units.

    Attributes:
        batch: N, the number of samples.
        grid: extents of the grid.
        channels: C, the number of features at each position.
        units: n, the number of hidden units.
        options: further arguments of `MDLSTM`.
    """

    batch: int
    grid: tuple[int, ...]
    channels: int
    units: int
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape from text such as "16,32x32,1,64".

        Raises:
            ValueError: the text is not N,GRID,C,n.
        """
        batch, grid, channels, units = (word.strip() for word in text.split(","))
        extents = parse_size(grid, max(2, grid.count("x") + 1))
        return cls(int(batch), extents, int(channels), int(units))

    def __str__(self) -> str:
        extras = "".join(f", {name}={value}" for name, value in self.options)
        return f"{self.batch}, {format_size(self.grid)}, {self.channels}, {self.units}{extras}"

    @property
    def num_directions(self) -> int:
        return 2 ** len(self.grid) if dict(self.options).get("directions") == "all" else 1

    @property
    def gate_dim(self) -> int:
        """G·n, the length of a position's pre-activations."""
        return (3 + len(self.grid)) * self.units

    @property
    def positions(self) -> int:
        """N·P, the positions of all samples."""
        return self.batch * prod(self.grid)

    @property
    def wavefronts(self) -> int:
        """T, the steps of a sweep."""
        return sum(self.grid) - len(self.grid) + 1


SHAPES = (
    Shape(16, (8, 8), 1, 16),
    Shape(16, (32, 32), 1, 64),
    Shape(4, (64, 64), 16, 32),
    Shape(1, (128, 128), 1, 32),
    Shape(1, (16, 16, 16), 1, 32),
    Shape(16, (32, 32), 1, 64, ALL),
)


def contenders(
    shape: Shape, training: bool, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Step], MDLSTM, Tensor]:
    """Build everything that is measured for one shape.

    Returns:
        A step of each of "layer", "floor" and "nn.LSTM"; the layer; and its input, (N, *grid, C).
    """
    factory = {"device": device, "dtype": dtype}
    layer, x = make_layer(shape, factory)
    # One step for each wavefront, over about the same number of positions in all.
    lstm = torch.nn.LSTM(shape.channels, shape.units, batch_first=True, **factory)
    rows = max(1, round(shape.num_directions * shape.positions / shape.wavefronts))
    sequences = torch.randn(rows, shape.wavefronts, shape.channels, **factory)
    steps = {
        "layer": make_step(layer, x, training),
        "floor": floor(shape, training, factory),
        "nn.LSTM": make_step(lstm, sequences, training),
    }
    return steps, layer, x


def make_layer(shape: Shape, factory: Mapping[str, Any]) -> tuple[MDLSTM, Tensor]:
    """The layer of a shape and its input (N, *grid, C), with the device and dtype in `factory`."""
    layer = MDLSTM(shape.channels, shape.units, ndim=len(shape.grid), **dict(shape.options))
    return layer.to(**factory), torch.randn(shape.batch, *shape.grid, shape.channels, **factory)


def floor(shape: Shape, training: bool, factory: Mapping[str, Any]) -> Step:
    """Build the matrix-product floor: the products of a sweep by torch, and nothing else.

    Forward: one (N·P, C) × (C, G·n), and for each wavefront one (rows, D·n) × (D·n, G·n) into a buffer that
    is reused. Backward: for each wavefront one (rows, G·n) × (G·n, D·n), and the two products that give the
    gradients of the weights.
    """
    gate_dim, recurrent_dim = shape.gate_dim, len(shape.grid) * shape.units
    table = batch_rows((shape.grid,) * shape.batch, shape.grid, ())
    rows = np.diff(table.starts).tolist()  # of each wavefront
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
    """A forward pass of a module without gradients, or one that ends with the gradients of all parameters.
    The module returns a tensor, or a tuple whose first entry is one."""

    def output() -> Tensor:
        y = layer(x)
        return y if isinstance(y, Tensor) else y[0]

    def train() -> None:
        layer.zero_grad()
        output().backward(gradient)

    infer = torch.no_grad()(output)
    gradient = torch.randn_like(infer())
    return train if training else infer
