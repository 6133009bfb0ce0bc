"""Samples of different sizes in one batch: which positions are valid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import debug_unwrap

from mdlstm_tk._util.arguments import check_strided
from mdlstm_tk._util.checks import check_unmasked
from mdlstm_tk._util.tensor_classes import is_wrapper
from mdlstm_tk._util.text import one_line
from mdlstm_tk.errors import InputError

Sizes = Tensor | npt.ArrayLike  # what users may give as `sizes`


def as_sizes(sizes: Sizes, x: Tensor) -> Tensor:
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
    sizes = _as_int64(sizes, x, True)
    if sizes.device.type == "cpu":
        if is_readable(sizes):
            read_sizes(sizes, x.shape[1:-1])
        else:
            _check_transformed(sizes, x.shape[1:-1])
    return sizes.to(x.device)


def sizes_of_sweep(sizes: Sizes, x: Tensor, has_batch_axis: bool = True) -> Tensor | None:
    """The `sizes` that a user gives as `SweepInputs` has them.

    If they are on a GPU, this waits for it; nothing later does.

    Args:
        sizes, x: as for `as_sizes`.
        has_batch_axis: whether `sizes` has one; if not, it is (D,), and N is 1.

    Returns:
        (N, D) int64: on the CPU if the values can be read, else on the device of x. None if the values can
        be read and every sample fills the grid.

    Raises:
        InputError: as for `as_sizes`.
    """
    sizes = _as_int64(sizes, x, has_batch_axis)
    if not is_readable(sizes):
        _check_transformed(sizes, x.shape[1:-1])
        return sizes.to(x.device)
    sizes, full = sizes.cpu(), tuple(x.shape[1:-1])
    return None if all(row == full for row in read_sizes(sizes, full)) else sizes


def _as_int64(sizes: Sizes, x: Tensor, has_batch_axis: bool) -> Tensor:
    """(N, D) int64, on the device that they are on."""
    grid = tuple(x.shape[1:-1])
    shape = (x.shape[0], len(grid)) if has_batch_axis else (len(grid),)
    meaning = f"(N, D) = {shape}" if has_batch_axis else f"(D,) = {shape}"
    if not isinstance(sizes, Tensor):
        captured = torch.compiler.is_compiling()
        if not captured:
            check_unmasked("sizes", sizes)
        if isinstance(sizes, np.ndarray):
            # torch takes no view with its columns reversed, (W, H) as (H, W), and no foreign byte order,
            # of which torch.compile knows nothing.
            sizes = sizes.copy() if captured else sizes.astype(sizes.dtype.newbyteorder("="))
        try:
            rows: Any = sizes
            is_of_tensors = len(rows) > 0 and all(isinstance(row, Tensor) for row in rows)
            sizes = torch.stack(list(rows)) if is_of_tensors else torch.tensor(rows, device="cpu")
        except (TypeError, ValueError, RuntimeError):  # a text, lists of different lengths, a huge number
            message = f"sizes must be integers of shape {meaning}, got {one_line(sizes)}"
            raise InputError(message) from None
    check_strided("sizes", sizes)
    if type(sizes) is not Tensor and not is_wrapper(
        sizes
    ):  # a subclass with memory has values like any tensor
        sizes = sizes.as_subclass(Tensor)
    is_integer = not (sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool)
    if tuple(sizes.shape) != shape or not is_integer:
        dtype = str(sizes.dtype).removeprefix("torch.")
        raise InputError(
            f"sizes must be integers of shape {meaning}, got {dtype} of shape {tuple(sizes.shape)}"
        )
    if sizes.is_meta and not x.is_meta:
        raise InputError(f"sizes must have values, got a tensor on the device meta, and x on {x.device}")
    return sizes.to(torch.int64).reshape(-1, len(grid))


def read_sizes(sizes: Tensor, grid: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The valid extents of each sample, from sizes (N, D) on the CPU.

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


def _check_transformed(sizes: Tensor, grid: Sequence[int]) -> None:
    """Check sizes (N, D) inside a transform of `torch.func`. `vmap` hides which values belong to which
    call, but not the lowest and the highest of all calls.

    Raises:
        InputError: they do not lie between 1 and the extents of the grid.
    """
    if not _has_values(sizes) or type(debug_unwrap(sizes)) is not Tensor or sizes.numel() == 0:
        return
    if torch._C._len_torch_dispatch_stack():  # a mode, such as that of `make_fx`, records what is read
        return
    for d, limit in enumerate(grid):
        low, high = (int(debug_unwrap(n).min()) for n in (sizes[:, d].amin(), -sizes[:, d].amax()))
        if low < 1 or -high > limit:
            raise InputError(
                f"sizes must lie between 1 and the extents of the grid {tuple(grid)}, got "
                f"{low if low < 1 else -high} along axis {d}"
            )


def is_readable(sizes: Tensor) -> bool:
    """Tell whether the values can be read: no graph is being captured, and no transform is active."""
    return _has_values(sizes) and not torch._C._are_functorch_transforms_active()


def _has_values(sizes: Tensor) -> bool:
    """Tell whether there are values, which may be those of all calls that a transform makes: no graph is
    being captured."""
    return (
        type(sizes) is Tensor
        and not sizes.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is None  # as of `make_fx`
        and not (sizes.is_cuda and torch.cuda.is_current_stream_capturing())
    )


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
    if sizes.device.type == "cpu" and is_readable(sizes):  # NumPy takes a tenth of torch's time for this
        return torch.from_numpy(reduce(and_, [below.numpy() for below in of_axes]))
    return reduce(and_, of_axes)
