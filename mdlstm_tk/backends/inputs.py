"""What a backend is given, and what it must be: kernels get addresses, so nothing later would notice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import CellParameters
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction

_CPU = torch.device("cpu")


class SweepInputs(NamedTuple):
    """The inputs of a sweep over a grid with D axes in one or more directions.

    Attributes:
        x: (N, *grid, C).
        weight_ih: (dirs, G·n, C).
        weight_hh: (dirs, D, G·n, n), or None if the cell is not recurrent.
        bias: (dirs, G·n) or None.
        peephole: (dirs, 2D + 1, n) or None, see `CellParameters`.
        norm_weight, norm_bias: (dirs, G + 1, n) or None.
        sizes: (N, D) int64 valid extents, or None if all positions are valid. Outside them h and c are 0.
            They are on the CPU, where sweeps read them, or on the device of x, if they must not be read.
        signs: the directions, dirs · D signs.
        cell: the name of a cell.
    """

    x: Tensor
    weight_ih: Tensor
    weight_hh: Tensor | None
    bias: Tensor | None
    peephole: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    sizes: Tensor | None
    signs: tuple[int, ...]
    cell: str

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The seven differentiable inputs."""
        return self[:7]

    @property
    def parameters(self) -> CellParameters:
        return CellParameters(self.peephole, self.norm_weight, self.norm_bias)

    @property
    def ndim(self) -> int:
        """D."""
        return self.x.dim() - 2

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:-1])

    @property
    def gate_count(self) -> int:
        """G."""
        return cell_traits(self.cell, self.ndim).gates

    @property
    def units(self) -> int:
        """n."""
        return self.weight_ih.shape[1] // self.gate_count

    @property
    def directions(self) -> list[Direction]:
        ndim = self.ndim
        return [self.signs[k : k + ndim] for k in range(0, len(self.signs), ndim)]


class CellTraits(NamedTuple):
    """What the inputs of a sweep depend on: the number of gates, whether the cell is recurrent, and whether
    it can have peepholes."""

    gates: int
    recurrent: bool
    peephole: bool


@cache
def cell_traits(name: str, ndim: int) -> CellTraits:
    """The traits of a cell over D = `ndim` axes."""
    cell = get_cell(name)
    return CellTraits(len(cell.gates(ndim)), cell.recurrent, cell.peephole)


def check_inputs(inputs: SweepInputs) -> None:
    """Check that the inputs fit each other.

    Raises:
        InputError: they do not; the message names the first that does not fit.
    """
    x, weight_ih = inputs.x, inputs.weight_ih
    if x.dim() < 3 or weight_ih.dim() != 3:
        raise InputError(
            "x must be (N, *grid, C) and weight_ih (dirs, G·n, C), "
            f"got shapes {tuple(x.shape)} and {tuple(weight_ih.shape)}"
        )
    ndim, (dirs, gate_dim, _) = x.dim() - 2, weight_ih.shape
    gates, recurrent, peephole = cell_traits(inputs.cell, ndim)
    units = gate_dim // gates
    if dirs < 1 or units < 1:
        raise InputError(f"weight_ih must be (dirs, {gates}·n, C), got shape {tuple(weight_ih.shape)}")
    shapes = (
        x.shape,
        (dirs, gates * units, x.shape[-1]),
        (dirs, ndim, gate_dim, units),
        (dirs, gate_dim),
        (dirs, 2 * ndim + 1, units),
        (dirs, gates + 1, units),
        (dirs, gates + 1, units),
    )
    dtype, device = x.dtype, x.device
    for index, (tensor, shape) in enumerate(zip(inputs.tensors, shapes, strict=True)):
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype != dtype:
            _refuse(SweepInputs._fields[index], tensor, shape, dtype)
        if tensor.device != device:
            _refuse_device(SweepInputs._fields[index], tensor, device)
    if (inputs.weight_hh is not None) != recurrent:
        expected = "a tensor" if recurrent else "None"
        raise InputError(f"weight_hh must be {expected} for cell '{inputs.cell}'")
    if inputs.peephole is not None and not peephole:
        raise InputError(f"peephole must be None for cell '{inputs.cell}', which has none")
    if (inputs.norm_weight is None) != (inputs.norm_bias is None):
        raise InputError("norm_weight and norm_bias must both be tensors or both be None")
    if inputs.sizes is not None:
        check_sizes(inputs.sizes, x.shape[0], ndim)
        if inputs.sizes.device not in (device, _CPU):
            _refuse_device("sizes", inputs.sizes, device)
    signs = inputs.signs
    if len(signs) != dirs * ndim or signs.count(1) + signs.count(-1) != len(signs):
        raise InputError(f"directions must be {dirs}·{ndim} signs (1 or -1), got {list(signs)}")


def check_sizes(sizes: Tensor, batch: int, ndim: int) -> None:
    """Check that `sizes` are valid extents of `batch` samples.

    Raises:
        InputError: they have another shape or dtype.
    """
    if tuple(sizes.shape) != (batch, ndim) or sizes.dtype != torch.int64:
        raise InputError(
            f"sizes must be int64 of shape (N, D) = ({batch}, {ndim}), "
            f"got {sizes.dtype} of shape {tuple(sizes.shape)}"
        )


def check_residuals(
    inputs: SweepInputs, grad: Tensor, output: Tensor, gates: Tensor, c: Tensor, ragged: int | None
) -> None:
    """Check that what backward is given fits the inputs: see `mdlstm_tk.backends.torch.sweep.backward`.

    Gates and c have N·P rows, or `ragged` ones, the rows of a ragged batch.

    Raises:
        InputError: it does not; the message names the first that does not fit.
    """
    x, leading = inputs.x, inputs.x.shape[:-1]
    dtype, device, state = x.dtype, x.device, state_dtype(x)
    dirs, gate_dim, _ = inputs.weight_ih.shape
    rows, units = leading.numel(), gate_dim // cell_traits(inputs.cell, len(leading) - 1).gates
    if ragged is not None and c.dim() == 3 and c.shape[1] == ragged:
        rows = ragged
    h_shape = (*leading, dirs, units)
    if gates.shape != (0,):  # otherwise they are computed again
        check_tensor("gates", gates, (dirs, rows, gate_dim), state, device)
    elif gates.device != device:
        _refuse_device("gates", gates, device)
    check_tensor("grad", grad, h_shape, dtype, device)
    check_tensor("output", output, h_shape, dtype, device)
    check_tensor("c", c, (dirs, rows, units), state, device)


def check_tensor(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """Check the shape, dtype and device of an argument.

    Raises:
        InputError: one of them is another.
    """
    if tensor.shape != shape or tensor.dtype != dtype:
        _refuse(name, tensor, shape, dtype)
    if tensor.device != device:
        _refuse_device(name, tensor, device)


def check_devices(inputs: SweepInputs, **residuals: Tensor) -> None:
    """Check that all tensors are on the device of x; sizes may be on the CPU, too.

    Raises:
        InputError: one is not.
    """
    device = inputs.x.device
    named = [*zip(SweepInputs._fields, inputs.tensors, strict=False), *residuals.items()]
    for name, tensor in named:
        if tensor is not None and tensor.device != device:
            _refuse_device(name, tensor, device)
    if inputs.sizes is not None and inputs.sizes.device not in (device, _CPU):
        _refuse_device("sizes", inputs.sizes, device)


def _refuse(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> NoReturn:
    raise InputError(
        f"{name} must be {dtype} of shape {tuple(shape)}, got {tensor.dtype} of shape {tuple(tensor.shape)}"
    )


def _refuse_device(name: str, tensor: Tensor, device: torch.device) -> NoReturn:
    raise InputError(f"{name} must be on x's device {device}, got {tensor.device}")


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype that gates and states are computed and kept in: float32 for float16 and bfloat16."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
