"""What the operator's tensors must be. Kernels get addresses, so nobody else would notice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mdlstm_tk.errors import InputError

NAMES = ("x", "weight_ih", "weight_hh", "bias", "peephole", "norm_weight", "norm_bias")


def check_devices(inputs: Sequence[Tensor | None], sizes: Tensor | None = None) -> None:
    """The operator's first seven inputs, and sizes, lie on one device.

    Raises:
        InputError: they do not.
    """
    device = None if inputs[0] is None else inputs[0].device
    for name, tensor in zip((*NAMES, "sizes"), (*inputs, sizes), strict=True):
        if tensor is not None and tensor.device != device:
            raise InputError(f"{name} must be on x's device {device}, got {tensor.device}")


def check_inputs(inputs: Sequence[Tensor | None], sizes: Tensor | None, signs: Sequence[int]) -> None:
    """The operator's first seven inputs go with each other, and with the sizes and signs.

    Raises:
        InputError: they do not; the message names the first that is off.
    """
    check_devices(inputs, sizes)
    x, weight_ih, weight_hh, *_ = inputs
    assert x is not None and weight_ih is not None and weight_hh is not None
    if weight_hh.dim() != 4 or x.dim() != weight_hh.shape[1] + 2:
        raise InputError(
            "x must be (N, *grid, C) with D grid axes, and weight_hh (dirs, D, G·n, n), "
            f"got shapes {tuple(x.shape)} and {tuple(weight_hh.shape)}"
        )
    dirs, ndim, _, units = weight_hh.shape
    gates = 3 + ndim
    shapes = {
        "x": tuple(x.shape),
        "weight_ih": (dirs, gates * units, x.shape[-1]),
        "weight_hh": (dirs, ndim, gates * units, units),
        "bias": (dirs, gates * units),
        "peephole": (dirs, 2 * ndim + 1, units),
        "norm_weight": (dirs, gates + 1, units),
        "norm_bias": (dirs, gates + 1, units),
    }
    for name, tensor in zip(NAMES, inputs, strict=True):
        if tensor is not None and (tuple(tensor.shape) != shapes[name] or tensor.dtype != x.dtype):
            raise InputError(
                f"{name} must be {x.dtype} of shape {shapes[name]}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    check_sizes(sizes, x.shape[0], ndim)
    if len(signs) != dirs * ndim or any(sign not in (1, -1) for sign in signs):
        raise InputError(f"directions must be {dirs}·{ndim} signs (1 or -1), got {list(signs)}")


def check_sizes(sizes: Tensor | None, batch: int, ndim: int) -> None:
    """Sizes, if there are any, are those of `batch` samples.

    Raises:
        InputError: they have another shape or dtype.
    """
    if sizes is not None and (tuple(sizes.shape) != (batch, ndim) or sizes.dtype != torch.int64):
        raise InputError(
            f"sizes must be int64 of shape (N, D) = ({batch}, {ndim}), "
            f"got {sizes.dtype} of shape {tuple(sizes.shape)}"
        )
