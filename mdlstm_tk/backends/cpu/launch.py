"""The sweep on the CPU, in Numba (`mdlstm_tk.backends.cpu.kernels`).

It computes in float32 or float64. float16 and bfloat16 become float32 on the way in, and results are
rounded on the way out.

Compiled code is kept on disk, beside the sources or in the user's cache directory (Numba's
`NUMBA_CACHE_DIR` says otherwise), so only the first call with a new cell waits for the compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.backends.cpu import simd
from mdlstm_tk.backends.cpu.compile import Compiled, compiled, packer
from mdlstm_tk.backends.cpu.kernels import backward_scratch, forward_scratch
from mdlstm_tk.backends.cpu.linux import huge_pages
from mdlstm_tk.backends.cpu.split import Partition, split
from mdlstm_tk.backends.cpu.team import run, team
from mdlstm_tk.backends.tables import valid_mask
from mdlstm_tk.backends.torch.products import state_dtype
from mdlstm_tk.cells.equations import Cell
from mdlstm_tk.cells.step import CellParameters
from mdlstm_tk.wavefront import Direction, grid_cache, visiting_order, wavefronts


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
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as `mdlstm_tk.operator.wavefront`.

    Returns:
        h (N, *grid, dirs, n) and, if `save`, what `backward` needs: the activated gates, or with
        layer norm the pre-activations, (dirs, P·N, G·n) and c (dirs, P·N, n), in visiting order. Both
        are empty otherwise, and the gates also if `recompute`.
    """
    dtype = x.dtype
    x, weight_ih, weight_hh, bias = map(_plain, (x, weight_ih, weight_hh, bias))
    parameters = parameters.map(_plain)
    extra = vars(parameters).values()
    shape = _Shape.of(x, weight_hh)
    tables = _tables(tuple(x.shape[1:-1]), tuple(directions))
    kernel = _kernel("forward", cell, shape, parameters)
    packed = _pack(shape, weight_hh, weight_ih, bias)
    rows = shape.positions * shape.batch
    output = huge_pages(x.new_empty(*x.shape[:-1], shape.dirs, shape.units))
    gates = huge_pages(x.new_empty(shape.dirs, rows, shape.width)) if save and not recompute else None
    longest = 0 if save else tables.longest * shape.batch  # then two wavefronts' c are enough
    c = huge_pages(x.new_empty(shape.dirs, 2 * longest if longest else rows, shape.units))
    inside = None if sizes is None else valid_mask(x.shape[1:-1], sizes)
    shared = _at(x, packed, *extra, inside, *tables[:3], output, gates, c)
    numbers = (*shape.sizes, longest, shape.panel, shape.length)
    teams = _split(shape)
    counters = _counters(teams)
    with team(teams.threads) as size:
        scratch = x.new_empty(size, forward_scratch(shape.sizes, shape.length, kernel.spilled))
        arguments = [
            (*shared, *_at(counters[place.group], scratch[place.thread]), *numbers, *place)
            for place in teams.places(size)
        ]
        run(kernel.entry, arguments)
    output = output.to(dtype)
    return output, output.new_empty(0) if gates is None else gates, c if save else output.new_empty(0)


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
        output, saved_gates, saved_c: what `forward` returned with `save`; without the gates they are
            computed again.
    """
    dtype = x.dtype
    grad, output, saved_gates, saved_c = map(_plain, (grad, output, saved_gates, saved_c))
    x, weight_ih, weight_hh, bias = map(_plain, (x, weight_ih, weight_hh, bias))
    parameters = parameters.map(_plain)
    extra = vars(parameters).values()
    shape = _Shape.of(x, weight_hh)
    tables = _tables(tuple(x.shape[1:-1]), tuple(directions))
    recompute = saved_gates.numel() == 0
    kernel = _kernel("recompute" if recompute else "backward", cell, shape, parameters)
    recurrent = shape.ndim * shape.units
    columns = recurrent + (shape.channels if wants_dx else 0)
    packed = x.new_empty(shape.dirs * -(-columns // shape.panel) * shape.panel * shape.width)
    packer("pack_transposed", shape.dtype_name)(
        shape.zero, *_at(packed, weight_hh, weight_ih), *shape.sizes[3:6], columns - recurrent, shape.width,
        shape.panel,
    )  # fmt: skip
    packed_v = _pack(shape, weight_hh, weight_ih, bias) if recompute else None
    longest = tables.longest * shape.batch
    # Each group has a dx of its own: together at most a quarter more memory than what forward kept.
    kept = saved_gates.numel() + saved_c.numel()
    teams = _split(shape, 1 + kept // (4 * x.numel()) if wants_dx and x.numel() else None)
    dx = [x.new_zeros(x.shape) for _ in range(teams.groups)] if wants_dx else []
    behind = x.new_empty(teams.groups, 2, longest, -(-columns // shape.length) * shape.length)
    behind_c = x.new_empty(teams.groups, 2, longest, recurrent)
    dv = x.new_zeros(teams.members, shape.dirs, shape.depth, shape.padded)
    gradients = parameters.map(lambda tensor: tensor.new_zeros(teams.members, *tensor.shape))
    inside = None if sizes is None else valid_mask(x.shape[1:-1], sizes)
    shared = _at(grad, x, packed, packed_v, *extra, inside, *tables[:4], output, saved_gates, saved_c)
    of_groups = (behind, behind_c, _counters(teams))
    of_members = (dv, *vars(gradients).values())
    numbers = (*shape.sizes, longest, columns, shape.panel, shape.length)
    with team(teams.threads) as size:
        scratch = x.new_empty(size, backward_scratch(shape.sizes, shape.length, kernel.spilled))
        arguments = []
        for place in teams.places(size):
            own = (
                dx[place.group] if wants_dx else None,
                *_each(of_groups, place.group),
                *_each(of_members, place.member),
                scratch[place.thread],
            )
            arguments.append((*shared, *_at(*own), *numbers, *place))
        run(kernel.entry, arguments)
    of_v = dv.sum(dim=0)[..., : shape.width].transpose(1, 2)  # (dirs, G·n, K)
    parts = of_v.split([recurrent, shape.channels, 1], dim=-1)
    of_hh, of_ih, of_bias = (part.clone(memory_format=torch.contiguous_format) for part in parts)
    summed = gradients.map(lambda tensor: tensor.sum(dim=0))
    for of_group in dx[1:]:
        dx[0].add_(of_group)
    of_inputs = (
        dx[0] if wants_dx else None,
        of_ih,
        of_hh.unflatten(-1, (shape.ndim, shape.units)).transpose(1, 2),
        None if bias is None else of_bias.squeeze(-1),
        *vars(summed).values(),
    )
    return [None if gradient is None else gradient.to(dtype) for gradient in of_inputs]


@dataclass(frozen=True)
class _Shape:
    """The extents of a sweep, and lengths that follow from them."""

    batch: int  # N
    positions: int  # P
    fronts: int  # T
    dirs: int
    ndim: int  # D
    units: int  # n
    channels: int  # C
    width: int  # G·n
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, weight_hh: Tensor) -> _Shape:
        dirs, ndim, width, units = weight_hh.shape
        batch, *grid, channels = x.shape
        fronts = sum(grid) - ndim + 1
        return cls(batch, prod(grid), fronts, dirs, ndim, units, channels, width, x.dtype)

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the kernels take them."""
        return (
            *(self.batch, self.positions, self.fronts, self.dirs),
            *(self.ndim, self.units, self.channels, self.width),
        )

    @property
    def zero(self) -> np.floating[Any]:
        """By which the kernels know the dtype."""
        return np.float32(0) if self.dtype == torch.float32 else np.float64(0)

    @property
    def dtype_name(self) -> str:
        return "float32" if self.dtype == torch.float32 else "float64"

    @property
    def depth(self) -> int:
        """K, the length of the operand (h_1 | … | h_D | x | 1)."""
        return self.ndim * self.units + self.channels + 1

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return simd.vector_length(self.dtype.itemsize)

    @property
    def panel(self) -> int:
        return simd.panel_width(self.dtype.itemsize)

    @property
    def padded(self) -> int:
        """G·n in whole vectors."""
        return -(-self.width // self.length) * self.length


class _Tables(NamedTuple):
    """`mdlstm_tk.wavefront`'s tables: visit (dirs, P), starts (T + 1), back and ahead (D, P)."""

    visit: Tensor
    starts: Tensor
    back: Tensor
    ahead: Tensor
    longest: int  # positions in the longest wavefront


@grid_cache
def _tables(grid: tuple[int, ...], directions: tuple[Direction, ...]) -> _Tables:
    front = wavefronts(grid)
    visit = np.stack([visiting_order(grid, direction) for direction in directions])
    return _Tables(
        torch.tensor(visit),
        torch.tensor(front.starts),
        torch.tensor(front.back),
        torch.tensor(front.ahead),
        int(np.diff(front.starts).max()),
    )


def _pack(shape: _Shape, weight_hh: Tensor, weight_ih: Tensor, bias: Tensor | None) -> Tensor:
    """V as `packing.pack` lays it out."""
    packed = weight_hh.new_empty(shape.dirs * -(-shape.width // shape.panel) * shape.panel * shape.depth)
    packer("pack", shape.dtype_name)(
        shape.zero, *_at(packed, weight_hh, weight_ih, bias), *shape.sizes[3:], shape.panel
    )
    return packed


def _kernel(
    way: Literal["forward", "backward", "recompute"], cell: Cell, shape: _Shape, parameters: CellParameters
) -> Compiled:
    options = (parameters.peephole is not None, parameters.norm_weight is not None)
    return compiled(way, shape.dtype_name, cell.name, shape.ndim, *options)


def _split(shape: _Shape, most_groups: int | None = None) -> Partition:
    operations = 2 * shape.batch * shape.positions * shape.depth * shape.width  # of a direction
    return split(operations, shape.fronts, shape.dirs, torch.get_num_threads(), most_groups)


def _plain(tensor: Tensor | None) -> Any:
    """As the kernels take it."""
    return None if tensor is None else tensor.to(state_dtype(tensor)).contiguous()


def _each(tensors: Iterable[Tensor | None], index: int) -> list[Tensor | None]:
    """That part of each along its first axis."""
    return [None if tensor is None else tensor[index] for tensor in tensors]


def _at(*tensors: Tensor | None) -> list[int]:
    """Where they lie in memory, 0 for None. The caller keeps them alive."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _counters(teams: Partition) -> Tensor:
    """A zero for each group's barrier, alone in its cache line."""
    return torch.zeros(teams.groups, 16, dtype=torch.int64)
