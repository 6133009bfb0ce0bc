"""Functions of one number against their definitions, with tolerances that are relative to each result."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FUNCTIONS = ("exp", "log", "sqrt", "tanh", "sigmoid", "softplus")


def whole_range(dtype: torch.dtype) -> Tensor:
    """Numbers of all sizes and both signs, subnormal ones, 0, infinities and NaN among them."""
    info = torch.finfo(dtype)
    exponents = np.linspace(np.log10(float(info.smallest_normal)) - 6, np.log10(info.max), 1501)
    sizes = np.concatenate([10**exponents, np.linspace(0.01, 1.05 * np.log(info.max), 2000), [20, 88, 709]])
    numbers = torch.from_numpy(np.concatenate([sizes, -sizes, [0, np.inf, -np.inf, np.nan]]))
    return numbers.to(dtype)


def exact(name: str, x: Tensor) -> np.ndarray:
    """The function of x in long double, which on most computers has more digits than float64."""
    wide = x.detach().cpu().numpy().astype(np.longdouble)
    decay = np.exp(-abs(wide))
    if name == "sigmoid":
        return np.asarray(np.where(wide < 0, decay, 1) / (1 + decay))
    if name == "softplus":
        return np.asarray(np.maximum(wide, 0) + np.log1p(decay))
    return np.asarray(getattr(np, name)(wide))


def assert_precise(name: str, x: Tensor, result: Tensor, ulps: float, subnormal: bool = False) -> None:
    """Compare a result with the function of x.

    Args:
        name: one of `FUNCTIONS`.
        x, result: in the same dtype.
        ulps: the error that is allowed, in the distance from 1 to the next number, relative to each result.
        subnormal: whether results below the smallest normal number need to be right, too, and not only as
            small.
    """
    info = torch.finfo(x.dtype)
    with np.errstate(all="ignore"):
        expected = exact(name, x)
        rounded = torch.from_numpy(expected.astype(np.float64)).to(x.dtype)
        least = info.smallest_normal * (info.eps if subnormal else 1)
        tolerance = ulps * info.eps * abs(expected) + (ulps if subnormal else 1) * least
        wide = result.detach().cpu().numpy().astype(np.longdouble)
        right = (abs(wide - expected) <= tolerance) | (wide == rounded.numpy())
        right |= np.isnan(wide) & np.isnan(expected)
    wrong = [f"{name}({x[k]:.9g}) = {result[k]:.9g}, not {rounded[k]:.9g}" for k in np.flatnonzero(~right)]
    assert not wrong, f"{len(wrong)} of {len(x)}: {'; '.join(wrong[:3])}"
