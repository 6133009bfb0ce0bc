"""The sweep on the CPU in float32 and float64, in Numba (`mdlstm_tk.backends.numba_kernels`).

Compiled code is kept on disk, beside the sources or in the user's cache directory (Numba's
`NUMBA_CACHE_DIR` says otherwise), so only the first call with a new cell waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mdlstm_tk.backends import simd
from mdlstm_tk.backends.numba_kernels import BLOCK, compiled, pack, pack_transposed
from mdlstm_tk.backends.step import CellParameters
from mdlstm_tk.cells import Cell
from mdlstm_tk.wavefront import Direction, Indices, visiting_order, wavefronts

Array = npt.NDArray[np.floating]


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `mdlstm_tk.op.wavefront`.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the activated gates, or with
        layer norm the pre-activations, (dirs, P·N, G·n) and c (dirs, P·N, n), in visiting order. Both
        are empty otherwise.
    """
    shape = _Shape.of(x, weight_hh)
    tables = _tables(tuple(x.shape[1:-1]), tuple(directions))
    kernel, spilled = _kernel("forward", cell, shape, parameters)
    panels = -(-shape.width // shape.panel)
    packed = x.new_empty(shape.dirs * panels * shape.depth * shape.panel)
    pack(
        _flat(packed), _flat(weight_hh), _flat(weight_ih), _flat(bias, x), shape.dirs, shape.ndim,
        shape.units, shape.width, shape.channels, shape.panel,
    )  # fmt: skip
    rows = shape.dirs * shape.positions * shape.batch
    output = x.new_empty(*x.shape[:-1], shape.dirs, shape.units)
    gates = x.new_empty(rows * shape.width if save else 0)
    c = x.new_empty(rows * shape.units)
    threads = 1
    scratch = BLOCK * (shape.depth + shape.padded + shape.ndim * shape.units)
    scratch += spilled * shape.units + shape.width
    kernel(
        _flat(x), _flat(packed), *_extra(parameters, x), _inside(x, sizes), tables.visit, tables.starts,
        tables.back, _flat(output), _flat(gates), _flat(c), _flat(x.new_empty(threads * scratch)),
        np.zeros(1, np.int64), shape.sizes, shape.width, shape.panel, shape.length, 0, threads,
    )  # fmt: skip
    if not save:
        return output, gates, x.new_empty(0)
    return output, gates.view(shape.dirs, -1, shape.width), c.view(shape.dirs, -1, shape.units)


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
        output, saved_gates, saved_c: what `forward` returned with `save`.
    """
    shape = _Shape.of(x, weight_hh)
    tables = _tables(tuple(x.shape[1:-1]), tuple(directions))
    kernel, spilled = _kernel("backward", cell, shape, parameters)
    recurrent = shape.ndim * shape.units
    columns = recurrent + (shape.channels if wants_dx else 0)
    packed = x.new_empty(shape.dirs * -(-columns // shape.panel) * shape.width * shape.panel)
    pack_transposed(
        _flat(packed), _flat(weight_hh), _flat(weight_ih), shape.dirs, shape.ndim, shape.units,
        shape.width, columns - recurrent, shape.panel,
    )  # fmt: skip
    threads = 1
    longest = int(np.diff(tables.starts).max()) * shape.batch
    dx = x.new_zeros(x.shape) if wants_dx else None
    dv = x.new_zeros(threads, shape.dirs, shape.depth, shape.padded)
    gradients = parameters.map(lambda tensor: tensor.new_zeros(threads, *tensor.shape))
    behind = x.new_empty(2 * longest * -(-columns // shape.length) * shape.length)
    behind_c = x.new_empty(2 * longest * recurrent)
    scratch = BLOCK * (shape.depth + shape.padded) + recurrent + (2 + spilled) * shape.units
    kernel(
        _flat(grad), _flat(x), _flat(packed), *_extra(parameters, x), _inside(x, sizes), tables.visit,
        tables.starts, tables.back, tables.ahead, _flat(output), _flat(saved_gates), _flat(saved_c),
        _flat(dx, x), _flat(dv), *_extra(gradients, x), _flat(behind), _flat(behind_c),
        _flat(x.new_empty(threads * scratch)), np.zeros(1, np.int64), shape.sizes, shape.width,
        columns, shape.panel, shape.length, 0, threads,
    )  # fmt: skip
    of_v = dv.sum(dim=0)[..., : shape.width].transpose(1, 2)  # (dirs, G·n, K)
    parts = of_v.split([recurrent, shape.channels, 1], dim=-1)
    of_hh, of_ih, of_bias = (part.clone(memory_format=torch.contiguous_format) for part in parts)
    summed = gradients.map(lambda tensor: tensor.sum(dim=0))
    return [
        dx,
        of_ih,
        of_hh.unflatten(-1, (shape.ndim, shape.units)).transpose(1, 2),
        None if bias is None else of_bias.squeeze(-1),
        summed.peephole,
        summed.norm_weight,
        summed.norm_bias,
    ]


@dataclass(frozen=True)
class _Shape:
    """The extents of a sweep: N, P, dirs, D, n and C; and lengths that follow from them."""

    batch: int
    positions: int
    dirs: int
    ndim: int
    units: int
    channels: int
    width: int  # G·n
    itemsize: int

    @classmethod
    def of(cls, x: Tensor, weight_hh: Tensor) -> _Shape:
        dirs, ndim, width, units = weight_hh.shape
        batch, *grid, channels = x.shape
        positions = int(np.prod(grid))
        return cls(batch, positions, dirs, ndim, units, channels, width, x.element_size())

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.batch, self.positions, self.dirs, self.ndim, self.units, self.channels

    @property
    def depth(self) -> int:
        """K, the length of the operand (h_1 | … | h_D | x | 1)."""
        return self.ndim * self.units + self.channels + 1

    @property
    def length(self) -> int:
        return simd.vector_length(self.itemsize)

    @property
    def panel(self) -> int:
        return simd.panel_width(self.itemsize)

    @property
    def padded(self) -> int:
        """G·n in whole vectors."""
        return -(-self.width // self.length) * self.length


@dataclass(frozen=True)
class _Tables:
    """`mdlstm_tk.wavefront`'s tables, flat: visit (dirs, P), starts (T + 1), back and ahead (D, P)."""

    visit: Indices
    starts: Indices
    back: Indices
    ahead: Indices


@lru_cache(maxsize=64)
def _tables(grid: tuple[int, ...], directions: tuple[Direction, ...]) -> _Tables:
    front = wavefronts(grid)
    visit = np.stack([visiting_order(grid, direction) for direction in directions])
    ahead = np.full_like(front.back, -1)
    for back, forth in zip(front.back, ahead, strict=True):
        (there,) = np.nonzero(back >= 0)
        forth[back[there]] = there
    tables = (visit, front.starts, front.back, ahead)
    return _Tables(*(np.array(table, dtype=np.int64).reshape(-1) for table in tables))


def _kernel(way: str, cell: Cell, shape: _Shape, parameters: CellParameters) -> tuple[object, int]:
    options = (parameters.peephole is not None, parameters.norm_weight is not None)
    return compiled(way, cell.name, shape.ndim, *options)


def _flat(tensor: Tensor | None, like: Tensor | None = None) -> Array:
    """The numbers of a tensor as a flat array, or an empty one of the dtype of `like`."""
    if tensor is None:
        assert like is not None
        tensor = like.new_empty(0)
    return tensor.detach().contiguous().view(-1).numpy()


def _extra(parameters: CellParameters, like: Tensor) -> list[Array]:
    return [_flat(tensor, like) for tensor in vars(parameters).values()]


def _inside(x: Tensor, sizes: Tensor | None) -> npt.NDArray[np.bool_]:
    """(N, P) flat: does the position lie inside that sample's valid extent? Empty if all do."""
    if sizes is None:
        return np.empty(0, dtype=np.bool_)
    grid = tuple(x.shape[1:-1])
    coordinates = np.indices(grid).reshape(len(grid), -1)  # (D, P)
    return (coordinates < sizes.numpy()[:, :, None]).all(axis=1).reshape(-1)
