"""The inputs of a sweep, and the one check of them: kernels get addresses, and would notice nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from math import prod
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from mdlstm_tk.cells import Cell
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction, check_positions

Run = TypeVar("Run", bound="Callable[..., Any]")


class SweepInputs(NamedTuple):
    """The inputs of a sweep over a grid with D axes in one or more directions.

    Attributes:
        x: (N, *grid, C).
        weight_ih: (dirs, G·n, C).
        weight_hh: (dirs, D, G·n, n), or None if the cell is not recurrent.
        bias: (dirs, G·n) or None.
        peephole: (dirs, 2D + 1, n) or None.
        norm_weight, norm_bias: (dirs, rows, n) or None; see `CELL_PARAMETERS`.
        initial: (N, F, dirs, 1 + S, n), the states that the sweep starts from, h first, in `state_dtype`;
            see `mdlstm_tk.states`. None for zeros, and then there are no final states.
        sizes: (N, D) int64 valid extents, or None if all positions are valid. Outside them states are 0.
            Backends get them on the CPU; in a captured graph they are where x is.
        signs: the directions, dirs · D signs.
        cell: the cell, the same in forward and backward; operators get its `graph_name`.
    """

    x: Tensor
    weight_ih: Tensor
    weight_hh: Tensor | None
    bias: Tensor | None
    peephole: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    initial: Tensor | None
    sizes: Tensor | None
    signs: tuple[int, ...]
    cell: Cell

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The differentiable inputs, named by `DIFFERENTIABLE`."""
        tensors: Any = self[: len(DIFFERENTIABLE)]
        return tensors  # type: ignore[no-any-return]

    def with_tensors(self, tensors: Iterable[Tensor | None]) -> SweepInputs:
        """The same with other differentiable inputs."""
        return self._replace(**dict(zip(DIFFERENTIABLE, tensors, strict=True)))  # type: ignore[arg-type]

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
        return len(self.cell.gates(self.ndim))

    @property
    def state_count(self) -> int:
        """S, the number of states beside h."""
        return len(self.cell.states)

    @property
    def units(self) -> int:
        """n."""
        return self.weight_ih.shape[1] // self.gate_count

    @property
    def directions(self) -> tuple[Direction, ...]:
        ndim = self.ndim
        return tuple(self.signs[k : k + ndim] for k in range(0, len(self.signs), ndim))

    @property
    def present(self) -> tuple[str, ...]:
        """The names of the cell's parameters that are there."""
        return tuple(name for name in CELL_PARAMETERS if getattr(self, name) is not None)

    def cell_parameters(self) -> Tensor | None:
        """The cell's parameters one after another, (dirs, rows, n), or None if there are none."""
        parameters = [getattr(self, name) for name in self.present]
        return torch.cat(parameters, dim=1) if parameters else None

    def split_cell_parameters(self, rows: Tensor) -> dict[str, Tensor]:
        """The reverse of `cell_parameters`, by name: also of gradients."""
        counts = [getattr(self, name).shape[1] for name in self.present]
        return dict(zip(self.present, rows.split(counts, dim=1), strict=True))


TENSORS = SweepInputs._fields[: SweepInputs._fields.index("signs")]
DIFFERENTIABLE = SweepInputs._fields[: SweepInputs._fields.index("sizes")]


class SweepResults(NamedTuple):
    """The results of a backend's `forward`.

    Attributes:
        output: h (N, *grid, dirs, n), in the dtype of x.
        final: (N, F, dirs, 1 + S, n), the states that leave the grid, in `state_dtype`; None without
            initial states.
        gates: for `backward` of the same backend, if it was asked for: numbers in a layout of its own, at
            most dirs · N·P · G·n. None if `backward` is to compute them again.
        states: the same for the states beside h, at most dirs · N·P · S·n. None if `backward` was not
            asked for.
    """

    output: Tensor
    final: Tensor | None = None
    gates: Tensor | None = None
    states: Tensor | None = None


Gradients = dict[str, Tensor | None]
"""The gradients of a sweep by the names in `DIFFERENTIABLE`."""


def check_inputs(inputs: SweepInputs) -> None:
    """Check that the inputs fit each other and are on one device.

    Raises:
        InputError: they do not; the message names the first that does not fit.
    """
    x, weight_ih, cell = inputs.x, inputs.weight_ih, inputs.cell
    check_tensor("x", x, x.shape, weight_ih.dtype, weight_ih.device)
    if x.dim() < 3 or weight_ih.dim() != 3 or not len(weight_ih) or not inputs.units:
        shapes = f"{tuple(x.shape)} and {tuple(weight_ih.shape)}"
        raise InputError(f"x must be (N, *grid, C) and weight_ih (dirs, G·n, C), got {shapes}")
    ndim, dirs = inputs.ndim, len(weight_ih)
    check_positions(inputs.grid)
    if (inputs.weight_hh is not None) != cell.recurrent or (
        inputs.peephole is not None and not cell.peephole
    ):
        raise InputError(f"weight_hh and peephole must be those that cell '{cell.name}' has")
    if len(inputs.signs) != dirs * ndim or not {1, -1}.issuperset(inputs.signs):
        raise InputError(f"directions must be {dirs}·{ndim} signs (1 or -1), got {list(inputs.signs)}")
    for name, shape in parameter_shapes(cell, ndim, dirs, x.shape[-1], inputs.units).items():
        check_tensor(name, getattr(inputs, name), shape, x.dtype, x.device)
    if inputs.initial is not None:
        check_tensor("initial", inputs.initial, boundary_shape(inputs), state_dtype(x), x.device)
    if (sizes := inputs.sizes) is not None:
        check_tensor("sizes", sizes, (len(x), ndim), torch.int64, sizes.device)


def check_tensor(
    name: str, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    """Check a tensor; None is always right.

    Raises:
        InputError: its shape, dtype or device is another.
    """
    if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype or tensor.device != device):
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        raise InputError(f"{name} must be {dtype} of shape {tuple(shape)} on {device}, got {found}")


def parameter_shapes(
    cell: Cell, ndim: int, dirs: int, features: int, units: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters that a layer with a cell may have, by the names in `SweepInputs`."""
    rows = len(cell.gates(ndim)) * units
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (dirs, rows, features)}
    if cell.recurrent:
        shapes["weight_hh"] = (dirs, ndim, rows, units)
    shapes["bias"] = (dirs, rows)
    return shapes | {name: (dirs, count(cell, ndim), units) for name, count in CELL_PARAMETERS.items()}


def boundary_shape(inputs: SweepInputs) -> tuple[int, ...]:
    """(N, F, dirs, 1 + S, n), the shape of initial and final states."""
    grid = inputs.grid
    lines = sum(prod((*grid[:d], *grid[d + 1 :])) for d in range(len(grid)))
    return inputs.x.shape[0], lines, inputs.weight_ih.shape[0], 1 + inputs.state_count, inputs.units


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype that gates and states are computed and kept in: float32 for float16 and bfloat16."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives x, or None where it is off or the device has none. Autocast leaves
    float64 and integers alone."""
    device = x.device.type
    if (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(run: Run) -> Run:
    """Turn autocast off inside a function of inputs and more: they have its dtype already, and float32
    inside a sweep is intended."""

    @wraps(run)
    def call(inputs: SweepInputs, *others: Any, **options: Any) -> Any:
        if autocast_dtype(inputs.x) is None:
            return run(inputs, *others, **options)
        with torch.autocast(inputs.x.device.type, enabled=False):
            return run(inputs, *others, **options)

    return cast("Run", call)
