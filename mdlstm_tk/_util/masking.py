"""Samples of different sizes in one batch: which positions are valid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from mdlstm_tk.errors import InputError

Sizes = Tensor | npt.ArrayLike  # what users may give as `sizes`


def is_captured() -> bool:
    """Tell whether something captures or observes operators. Values of tensors cannot be read then."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or is_in_torch_dispatch_mode()
    )


def as_sizes(sizes: Any, x: Tensor) -> Tensor:
    """Convert the `sizes` that a user gives.

    Args:
        sizes: (N, D) integers, from 1 to the extents of the grid: a tensor on any device, a NumPy array or
            a list. Values on a GPU are not checked, since that would wait for it.
        x: (N, *grid, C), the padded batch.

    Returns:
        (N, D) int64 on the device of x.

    Raises:
        InputError: `sizes` has another type or shape, or values outside the grid.
    """
    checked = to_int64(sizes, (x.shape[0], x.dim() - 2))
    if checked.device.type == "cpu" and not is_captured():
        read_sizes(checked, x.shape[1:-1])
    return checked.to(x.device)


def to_int64(sizes: Any, shape: Sequence[int]) -> Tensor:
    """`sizes` as a tensor in int64.

    Raises:
        InputError: they are no integers, or have another shape.
    """
    given: Tensor = sizes if isinstance(sizes, Tensor) else torch.tensor(sizes, device="cpu")
    is_integer = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if tuple(given.shape) != tuple(shape) or not is_integer:
        found = f"{given.dtype} of shape {tuple(given.shape)}"
        raise InputError(f"sizes must be integers of shape {tuple(shape)}, got {found}")
    return given.to(torch.int64)


def read_sizes(sizes: Tensor, grid: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The valid extents of each sample, from sizes (N, D).

    Raises:
        InputError: they do not lie between 1 and the extents of the grid.
    """
    rows = tuple(map(tuple, sizes.tolist()))  # faster than comparing small tensors
    for sample, row in enumerate(rows):
        if not all(1 <= n <= limit for n, limit in zip(row, grid, strict=True)):
            raise InputError(
                f"sizes must lie between 1 and the extents of the grid {tuple(grid)}, got {list(row)} "
                f"for sample {sample}"
            )
    return rows


def valid_mask(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """The mask of the positions inside their sample's valid extents.

    Args:
        grid: the D extents of the padded batch.
        sizes: (N, D) int64, the valid extents of each sample.

    Returns:
        (N, *grid) bool, on the device of `sizes`.
    """
    batch = sizes.shape[0]  # not len(sizes), which is a constant in an export
    of_axes = [sizes.new_ones(batch, *[1] * len(grid), dtype=torch.bool)]  # all that D = 0 axes have
    for d, extent in enumerate(grid):
        below = torch.arange(extent, device=sizes.device) < sizes[:, d, None]  # (N, E_d)
        of_axes.append(below.view(-1, *(extent if axis == d else 1 for axis in range(len(grid)))))
    is_plain = type(sizes) is Tensor and not torch._C._are_functorch_transforms_active()
    if is_plain and sizes.device.type == "cpu" and not is_captured():  # NumPy takes a tenth of torch's time
        return torch.from_numpy(reduce(and_, [below.numpy() for below in of_axes]))
    return reduce(and_, of_axes)
