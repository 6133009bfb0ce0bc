"""Samples of different sizes in one batch: which positions are valid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt
import torch
from torch import Tensor

from mdlstm_tk.arguments import one_line
from mdlstm_tk.errors import InputError

Sizes = Tensor | npt.ArrayLike  # what users may give as `sizes`
INTEGERS = {
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
}


def as_sizes(sizes: Sizes, x: Tensor, has_batch_axis: bool = True) -> Tensor:
    """Convert the `sizes` that a user gives.

    Args:
        sizes: (N, D) integers, from 1 to the extents of the grid: a tensor on any device, a NumPy array or
            a list. Values are checked where that needs no wait for a GPU.
        x: (N, *grid, C), the padded batch.
        has_batch_axis: whether `sizes` has one; if not, it is (D,), and N is 1.

    Returns:
        (N, D) int64 on the device of x.

    Raises:
        InputError: they have another type or shape, or values outside the grid.
    """
    grid = tuple(x.shape[1:-1])
    shape = (x.shape[0], len(grid)) if has_batch_axis else (len(grid),)
    meaning = f"(N, D) = {shape}" if has_batch_axis else f"(D,) = {shape}"
    if not isinstance(sizes, Tensor):
        try:
            sizes = torch.tensor(sizes, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # a text, lists of different lengths, a huge number
            message = f"sizes must be integers of shape {meaning}, got {one_line(sizes)}"
            raise InputError(message) from None
    if tuple(sizes.shape) != shape or sizes.dtype not in INTEGERS:
        dtype = str(sizes.dtype).removeprefix("torch.")
        raise InputError(
            f"sizes must be integers of shape {meaning}, got {dtype} of shape {tuple(sizes.shape)}"
        )
    sizes = sizes.to(torch.int64).reshape(-1, len(grid))
    if _has_values(sizes):
        rows = sizes.tolist()  # faster than comparing small tensors
        wrong = [
            row for row in rows if not all(1 <= n <= limit for n, limit in zip(row, grid, strict=True))
        ]
        if wrong:
            raise InputError(
                f"sizes must lie between 1 and the extents of the grid {grid}, got {wrong[0]} "
                f"for sample {rows.index(wrong[0])}"
            )
    return sizes.to(x.device)


def fills_grid(sizes: Tensor, grid: Sequence[int]) -> bool:
    """Whether every sample fills the grid; False as well where reading `sizes` is not possible or slow."""
    return _has_values(sizes) and all(row == list(grid) for row in sizes.tolist())


def _has_values(tensor: Tensor) -> bool:
    """Whether reading the tensor is possible and fast: it is not on a GPU, and no graph is captured."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and not torch._C._are_functorch_transforms_active()
    )


def valid_mask(grid: Sequence[int], sizes: Tensor) -> Tensor:
    """Whether each position lies inside its sample's valid extents.

    Args:
        grid: the D extents of the padded batch.
        sizes: (N, D) int64, the valid extents of each sample.

    Returns:
        (N, *grid) bool, on the device of `sizes`.
    """
    batch = sizes.shape[0]  # not len(sizes), which is a constant in an export
    valid = sizes.new_ones(batch, *grid, dtype=torch.bool)
    for d, extent in enumerate(grid):
        below = torch.arange(extent, device=sizes.device) < sizes[:, d, None]  # (N, E_d)
        valid = valid & below.view(-1, *(extent if axis == d else 1 for axis in range(len(grid))))
    return valid
