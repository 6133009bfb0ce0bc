"""Packed weights that are kept between calls, for inference.

A packed copy is used again only if the weights still hold the same bytes as when it was made. That is
compared at every call, which takes a tenth of the time of packing, so the copy cannot be stale however the
weights were written: in place, by an optimiser, by `load_state_dict`, through `.data`, or by another
library that shares their memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from mdlstm_tk._util.caches import BoundedCache
from mdlstm_tk.backends.inputs import SweepInputs

_libc = ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class _Entry(NamedTuple):
    weights: list[Tensor]  # copies of weight_ih and, if they are there, weight_hh and bias
    packed: Tensor


_entries: BoundedCache[tuple[object, ...], _Entry] = BoundedCache(64 << 20)


def packed_weights(size: int, inputs: SweepInputs, pack: Callable[[], Tensor]) -> Tensor:
    """The packed weights of a sweep, from an earlier call if its weights were equal to the last bit.

    Args:
        size: how many numbers the packed weights take.
        inputs: of the sweep.
        pack: makes the packed weights.
    """
    weights = [tensor for tensor in inputs[1:4] if tensor is not None]
    pointers = [tensor.data_ptr() for tensor in weights]
    # The key only has to find the likely entry: the bytes decide whether it fits.
    key = (size, weights[0].dtype, weights[0].shape, inputs.bias is None, *pointers)
    entry = _entries.get(key)
    if entry is not None:
        for pointer, copy in zip(pointers, entry.weights, strict=True):
            if _memcmp(pointer, copy.data_ptr(), copy.nbytes) != 0:
                break
        else:
            return entry.packed
    packed = pack()
    nbytes = packed.nbytes + sum(tensor.nbytes for tensor in weights)
    if nbytes <= _entries.max_bytes and all(tensor.is_contiguous() for tensor in weights):
        _entries.add(key, _Entry([tensor.detach().clone() for tensor in weights], packed), nbytes)
    return packed
