"""The inputs of a sweep, and what they must be: kernels get addresses, so nothing later would notice."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mdlstm_tk._util.arguments import check_strided
from mdlstm_tk._util.text import counted
from mdlstm_tk.cells import Cell, get_cell
from mdlstm_tk.cells.step import CELL_PARAMETERS
from mdlstm_tk.errors import InputError
from mdlstm_tk.wavefront import Direction, check_positions

_CPU = torch.device("cpu")


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
            see `mdlstm_tk.backends.boundary`. None for zeros, and then there are no final states.
        sizes: (N, D) int64 valid extents, or None if all positions are valid. Outside them states are 0.
            They are on the CPU, where sweeps read them, or on the device of x, if they must not be read.
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

    def without_tensors(self) -> SweepInputs:
        """What is no tensor and cannot change; the tensors are None until `with_tensors` sets them."""
        return self.with_tensors([None] * len(TENSORS))

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> SweepInputs:
        """The same with other tensors: the differentiable ones, or these and `sizes`."""
        fields: Any = (*tensors, *self[len(tensors) :])
        return SweepInputs(*fields)

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

SCHEMA_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "tuple[int, ...]": "int[]",
    "Cell": "str",
}
SCHEMA = ", ".join(
    f"{SCHEMA_TYPES[kind.__forward_arg__]} {name}" for name, kind in SweepInputs.__annotations__.items()
)
"""The arguments of torch's operator, generated from the fields."""

TENSORS = SweepInputs._fields[: SweepInputs._fields.index("signs")]
DIFFERENTIABLE = SweepInputs._fields[: SweepInputs._fields.index("sizes")]


class Engine(Protocol):
    """A backend: its modules `sweep` are engines. float16 and bfloat16 are computed in float32 where sums
    and states are concerned, and rounded on the way out."""

    def forward(self, inputs: SweepInputs, save: bool = False, recompute: bool = False) -> SweepResults:
        """Run the sweep.

        Args:
            inputs: of the sweep.
            save: keep what `backward` needs.
            recompute: keep no gates.
        """

    def backward(
        self,
        inputs: SweepInputs,
        results: SweepResults,
        grad: Tensor,
        dfinal: Tensor | None,
        wants_dx: bool,
        wants_weights: bool,
    ) -> Gradients:
        """The gradients of all inputs that are there; those of x and of the parameters if they are wanted.

        Args:
            inputs: as for `forward`.
            results: those of `forward` with `save`; `final` is not needed. Gates and states may have more
                rows than the sweep, and gates that are None are computed again.
            grad: (N, *grid, dirs, n) gradient of the output, contiguous.
            dfinal: the gradient of the final states, contiguous, if there are any.
            wants_dx: whether the gradient of x is needed.
            wants_weights: whether that of any parameter is; frozen ones cost no product.
        """


def check_inputs(inputs: SweepInputs) -> None:
    """Check that the inputs fit each other and are on one device.

    Raises:
        InputError: they do not; the message names the first that does not fit.
    """
    check_devices(inputs)
    x, weight_ih = inputs.x, inputs.weight_ih
    if x.dim() < 3 or weight_ih.dim() != 3:
        raise InputError(
            "x must be (N, *grid, C) and weight_ih (dirs, G·n, C), "
            f"got shapes {tuple(x.shape)} and {tuple(weight_ih.shape)}"
        )
    (batch, *grid, channels), dirs, cell = x.shape, weight_ih.shape[0], inputs.cell
    ndim, gates, units = len(grid), inputs.gate_count, inputs.units
    if dirs < 1 or units < 1:
        raise InputError(f"weight_ih must be (dirs, {gates}·n, C), got shape {tuple(weight_ih.shape)}")
    check_positions(tuple(grid))
    dtype = x.dtype
    if (inputs.weight_hh is not None) != cell.recurrent:
        expected = "a tensor" if cell.recurrent else "None"
        raise InputError(f"weight_hh must be {expected} for cell '{cell.name}'")
    if inputs.peephole is not None and not cell.peephole:
        raise InputError(f"peephole must be None for cell '{cell.name}', which has none")
    for name, shape in parameter_shapes(cell, ndim, dirs, channels, units).items():
        if (parameter := getattr(inputs, name)) is not None:
            check_tensor(name, parameter, shape, dtype)
    if (inputs.norm_weight is None) != (inputs.norm_bias is None):
        raise InputError("norm_weight and norm_bias must both be tensors or both be None")
    if inputs.initial is not None:
        check_tensor("initial", inputs.initial, boundary_shape(inputs), state_dtype(x))
    if inputs.sizes is not None:
        check_tensor("sizes", inputs.sizes, (batch, ndim), torch.int64)
    signs = inputs.signs
    if len(signs) != dirs * ndim or signs.count(1) + signs.count(-1) != len(signs):
        raise InputError(f"directions must be {dirs}·{ndim} signs (1 or -1), got {list(signs)}")


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


def check_gates(cell: str, weight_ih: Tensor, ndim: int, units: int) -> None:
    """Check that the cell of a name has as many gates as a layer has weights for. A sweep cannot tell two
    gates of 4 units from four of 2.

    Raises:
        InputError: it was defined again, with other gates, after the layer was created.
    """
    check_strided("weight_ih", weight_ih)
    if weight_ih.dim() != 3 or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return
    gates, (created, rest) = _gate_count(cell, ndim), divmod(weight_ih.shape[1], units)
    if created != gates and rest == 0:
        raise InputError(
            f"cell '{cell}' has {counted(gates, 'gate')}, and the layer was created with {created}; "
            "after another definition of a cell, create its layers again"
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _gate_count(cell: str, ndim: int) -> int:
    return len(get_cell(cell).gates(ndim))


def boundary_shape(inputs: SweepInputs) -> tuple[int, ...]:
    """(N, F, dirs, 1 + S, n), the shape of initial and final states."""
    grid = inputs.grid
    lines = sum(prod((*grid[:d], *grid[d + 1 :])) for d in range(len(grid)))
    return inputs.x.shape[0], lines, inputs.weight_ih.shape[0], 1 + inputs.state_count, inputs.units


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Check the shape and dtype of an argument.

    Raises:
        InputError: one of them is another.
    """
    if tensor.shape != shape or tensor.dtype != dtype:
        raise InputError(
            f"{name} must be {dtype} of shape {tuple(shape)}, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def check_devices(inputs: SweepInputs, **others: Tensor | None) -> None:
    """Check that all tensors are dense and on the device of x; sizes may be on the CPU, too.

    Raises:
        InputError: one is not.
    """
    device, sizes = inputs.x.device, inputs.sizes
    others["sizes"] = None if sizes is None or sizes.device == _CPU else sizes
    for name, tensor in (*zip(DIFFERENTIABLE, inputs.tensors, strict=True), *others.items()):
        if tensor is None:
            continue
        check_strided(name, tensor)
        if tensor.device != device:
            raise InputError(f"{name} must be on x's device {device}, got {tensor.device}")


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype that gates and states are computed and kept in: float32 for float16 and bfloat16."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
