"""Checks of the arguments of a layer and of its operator. Numbers may be those of NumPy or of torch.

Each function returns the argument as a plain Python value, so that `repr` of a layer shows what its
constructor takes, or raises an `InputError` that names the argument and its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mdlstm_tk._util.checks import fitting
from mdlstm_tk._util.text import counted, one_line
from mdlstm_tk.errors import InputError

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def positive(name: str, value: Any) -> int:
    """An integer of at least 1."""
    number = _integer(value)
    if number is None or number < 1:
        raise InputError(f"{name} must be an integer of at least 1, got {one_line(value)}")
    return number


def extents(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """`ndim` integers of at least 1; one integer stands for all of them."""
    try:
        fitted: Any = fitting(value, int | tuple[int, ...])
    except TypeError:
        fitted = ()
    numbers: tuple[int, ...] = fitted if isinstance(fitted, tuple) else (fitted,) * ndim
    if len(numbers) != ndim or min(numbers) < 1:
        raise InputError(
            f"{name} must be one extent, or {counted(ndim, 'extent')}, of at least 1, got {one_line(value)}"
        )
    return numbers


def probability(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    try:
        number: float = fitting(value, float)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(f"{name} must be a probability from 0 to 1, got {one_line(value)}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False; 1 and 0 stand for them. Any other value would count as true, also "False"."""
    number = int(value) if type(value) in (bool, np.bool_) else _integer(value)
    if number not in (0, 1):
        raise InputError(f"{name} must be True or False, got {one_line(value)}")
    return bool(number)


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {one_line(value)}")
    return str(value)


def tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor."""
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    return value


def check_input(x: Any, ndim: int, input_size: int, channels_last: bool) -> None:
    """Check the type and shape of a layer's input."""
    check_strided("x", tensor("x", x))
    feature_axis, other_axis = (-1, -1 - ndim) if channels_last else (-1 - ndim, -1)
    if x.dim() in (ndim + 1, ndim + 2) and x.shape[feature_axis] == input_size:
        return
    axes = ", ".join(f"E{d + 1}" for d in range(ndim))
    layout = f"{axes}, C" if channels_last else f"C, {axes}"
    hint = ""
    if x.dim() in (ndim + 1, ndim + 2) and x.shape[other_axis] == input_size:
        hint = f"; for this layout create the layer with channels_last={not channels_last}"
    elif x.dim() in (ndim, ndim + 1) and input_size == 1:
        hint = f"; add the axis of the channel with x.unsqueeze({feature_axis})"
    raise InputError(
        f"x must be (N, {layout}), or ({layout}) without a batch axis, with C = {input_size}, "
        f"got shape {tuple(x.shape)}{hint}"
    )


def check_strided(name: str, tensor: torch.Tensor) -> None:
    """Check that a tensor has an entry in memory for each index."""
    if tensor.is_nested or tensor.layout != torch.strided:
        if tensor.is_nested:
            layout, remedy = "nested", f"torch.nested.to_padded_tensor({name}, 0.0), and give sizes"
        else:
            layout, remedy = str(tensor.layout).removeprefix("torch."), ".to_dense()"
        raise InputError(f"{name} must be a dense tensor, got a {layout} one; convert it with {remedy}")


def check_dtype(dtype: Any, name: str = "dtype") -> None:
    """Check that a sweep can be computed in a dtype; None stands for torch's default."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"{name} must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")


def check_factory(device: Any, dtype: Any) -> None:
    """Check that parameters can be made on a device, in a dtype; None stands for torch's default."""
    check_dtype(dtype)
    try:
        torch.empty(0, device=device, dtype=dtype)
    except Exception as error:  # of any class, and some of many lines
        reason = " ".join(str(error).split())
        raise InputError(f"device must be one that torch can use, got {device!r} ({reason:.80})") from None


def _integer(value: Any) -> int | None:
    """The value as an int, or None if it is no integer."""
    try:
        number: int = fitting(value, int)
    except TypeError:
        return None
    return number
