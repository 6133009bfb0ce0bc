"""Check the tensors that a file stores."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from mdlstm_tk.runtime.security.bounds import INTEGERS, MANY, Bound
from mdlstm_tk.runtime.security.operators import NUMBER_TYPES
from mdlstm_tk.runtime.security.protobuf import Reader
from mdlstm_tk.runtime.security.refusal import holds
from mdlstm_tk.runtime.security.schema import TENSOR, Content

MAX_EXTENT = 2**31


@dataclass(frozen=True)
class StoredTensor:
    """The name of a stored tensor, the number of its type, and what rules need to know of it."""

    name: bytes
    data_type: int
    bound: Bound


def read_tensor(reader: Reader, start: int, end: int) -> StoredTensor:
    """Check the tensor in data[start:end].

    Raises:
        Refusal: its numbers are not in the file, or are not as many as its shape says, or are no numbers.
    """
    content = Content(reader, TENSOR, start, end)
    data_type, dims = content.number("data_type"), content.numbers("dims")
    if data_type is None:
        raise holds("a tensor without a type")
    if data_type not in NUMBER_TYPES:
        raise holds("a tensor of strings or of an unknown type")
    count = prod(dims)
    a, b = content.span("raw_data") or (0, 0)
    _, item_bytes = NUMBER_TYPES[data_type]
    if max(dims, default=0) > MAX_EXTENT or b - a != count * item_bytes:
        raise holds(f"a tensor whose shape needs {count * item_bytes} bytes, but which has {b - a}")
    distinct, integer = 0, data_type in INTEGERS
    divisor = False
    if integer and count <= MANY:
        numbers = np.frombuffer(reader.data, NUMBER_TYPES[data_type][0], count, a).tolist()
        lowest = min(numbers, default=0)
        divisor = {0, -1}.isdisjoint(numbers)
        # −1 and 2 may be the same axis, so that axes are certain to differ only if they have one sign.
        one_sign = lowest >= 0 or max(numbers) < 0
        if len(dims) == 1 and len(set(numbers)) == count and one_sign:
            distinct = count
    bound = Bound(len(dims), min(count, MANY), distinct, integer, divisor)
    return StoredTensor(content.text("name"), data_type, bound)
