"""Memory of tensors on the CPU: the only place where addresses are taken.

Kernels read and write whatever lies at an address. So `pointer` gives one away only for a tensor whose
memory is what its dtype and size say, and `plain` makes such a tensor of others.

Arrays are cleared, copied and added by NumPy and `memset`, on this thread. torch would wake its own threads
for that, which would then keep the cores busy that the sweep is to share.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mdlstm_tk.errors import InputError

HALF = (torch.float16, torch.bfloat16)
HUGE_PAGE = 2 << 20


def plain(tensor: Tensor) -> Tensor:
    """The tensor as kernels read it: contiguous, in float32 or float64, and with its signs in memory."""
    if tensor.dtype in HALF:
        tensor = tensor.float()
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    if tensor.is_neg():  # a view such as z.conj().imag
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def pointer(
    name: str, tensor: Tensor | None, dtype: torch.dtype | None = None, count: int | None = None
) -> int:
    """The address of a tensor, which kernels take for that of `count` numbers in `dtype`; 0 for None.

    Raises:
        InputError: it is something else. A subclass of Tensor that wraps others has no memory, and a view
            with the negative bit holds the numbers with the other sign.
    """
    if tensor is None:
        return 0
    if (
        type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
        and (tensor.is_cpu and tensor.layout == torch.strided and tensor.is_contiguous())
        and not tensor.is_neg()
        and (dtype is None or tensor.dtype == dtype)
        and (count is None or tensor.numel() == count)
        and ((address := tensor.data_ptr()) or not tensor.numel())
    ):
        return address
    if tensor.is_cpu and tensor.numel() and not tensor.untyped_storage().nbytes():
        raise InputError(f"{name} has no memory any more: its storage was resized to 0 bytes")
    raise InputError(
        f"{name} must be a plain tensor on the CPU of {count} numbers in {dtype}, got "
        f"{type(tensor).__name__} of shape {tuple(tensor.shape)} in {tensor.dtype} on {tensor.device}"
    )


def own(tensor: Tensor | None) -> int:
    """The address of memory that a sweep has just taken for itself; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def new(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for a result. If it is large, the system is asked for pages of 2 MiB: touching fresh memory in
    pages of 4 KiB takes a quarter of the time of training at 1, 512×512, n 32."""
    tensor = like.new_empty(shape)
    if tensor.nbytes >= HUGE_PAGE and sys.platform == "linux":
        first = pointer("a result", tensor)
        start = -(-first // HUGE_PAGE) * HUGE_PAGE
        length = first + tensor.nbytes - start
        if length >= HUGE_PAGE:
            _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    tensor = new(like, shape)
    ctypes.memset(pointer("a result", tensor), 0, tensor.nbytes)
    return tensor


def copy(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    copied = tensor.new_empty(tensor.shape)
    np.copyto(copied.numpy(), tensor.detach().resolve_neg().numpy())
    return copied


def total(parts: Tensor) -> Tensor:
    """The sum of parts[0], parts[1], …, in memory of its own, which keeps no parts alive."""
    if len(parts) == 1:
        return parts[0]
    result, (first, *others) = parts.new_empty(parts.shape[1:]), parts.numpy()
    for other in others:
        first = np.add(first, other, out=result.numpy())
    return result
