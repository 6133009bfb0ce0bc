"""Upper bounds for the ranks of all values of a graph, derived operator by operator before it is loaded.

A shape of 100 000 ones takes 400 KB in a file, but a tensor of that shape takes ONNX Runtime gigabytes and
half a minute to describe, and `Gather` adds the ranks of its inputs, so that ranks could double from node
to node. Each operator of the table in operators.py therefore has a rule here that bounds what it returns.
No rule reads a value, except for constant axes.

The rules also follow which integers may be 0 or −1. ONNX Runtime 1.32 ends the process when it divides the
smallest integer by −1; version 1.20 also does when it divides by 0. Extents pass, since torch divides by
them: a model that divides by an extent of 0 still ends the process in old versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mdlstm_tk.runtime.security.refusal import holds
from mdlstm_tk.runtime.security.schema import MAX_ATTRIBUTE_NUMBERS, MAX_RANK

MANY = 1000  # larger numbers of elements make no difference


class Bound(NamedTuple):
    """What is known of a value.

    Attributes:
        rank: the largest number of axes that it can have.
        elements: the largest number of elements that it can have, at most `MANY`; None if it is not known.
        distinct: the number of elements if it is a constant of different axes, else 0.
        integer: whether its elements are integers.
        divisor: whether no element can be 0 or −1.
    """

    rank: int
    elements: int | None = None
    distinct: int = 0
    integer: bool = False
    divisor: bool = False


ABSENT = Bound(0)  # stands for an optional input that is missing

Attributes = Mapping[bytes, int | bytes]
"""The integers and strings among the attributes of a node."""

Rule = Callable[[Attributes, Sequence[Bound], int], list[Bound]]
"""Maps attributes, inputs and number of outputs to outputs. Raises `Refusal`."""


def _elements(value: Bound, limit: int = MAX_RANK) -> int:
    """The largest number of elements of an input that describes a shape."""
    if value.elements is None or value.elements > limit:
        found = "an unknown number of" if value.elements is None else f"more than {limit}"
        raise holds(f"a shape with {found} elements")
    return value.elements


def _check_lengths(inputs: Sequence[Bound], limit: int = MAX_RANK) -> None:
    """Check inputs whose length ONNX Runtime compares with a rank, so that it may be unknown here."""
    for value in inputs:
        if value.elements is not None:
            _elements(value, limit)


def _product(values: Sequence[Bound]) -> int | None:
    count = 1
    for value in values:
        if value.elements is None:
            return None
        count *= value.elements
    return min(count, MANY)


def identity(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """The input itself."""
    return [inputs[0]] * outputs


def first(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """At most as many axes and elements as the first input."""
    return [Bound(inputs[0].rank, inputs[0].elements)] * outputs


def second(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """At most as many axes and elements as the second input."""
    return [Bound(inputs[1].rank, inputs[1].elements)] * outputs


def first_rank(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """As many axes as the first input, and any extents."""
    return [Bound(inputs[0].rank)] * outputs


def broadcast(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """Operators on elements: extents of 1 are repeated."""
    rank = max(value.rank for value in inputs)
    count = _product(inputs)
    if rank < 2 and count is not None:
        count = max(value.elements or 0 for value in inputs)
    return [Bound(rank, count)] * outputs


def matmul(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(max(value.rank for value in inputs))] * outputs


def gemm(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(2)] * outputs


def einsum(attributes: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """The number of letters in the result, and while it is computed, of all different letters."""
    equation = attributes.get(b"equation")
    if not isinstance(equation, bytes):
        raise holds("an Einsum without an equation")
    operands, result = equation.replace(b" ", b"").split(b"->")
    if operands.count(b",") + 1 != len(inputs):
        raise holds("an Einsum of another number of tensors than its equation has")
    if len(set(operands) - {ord(",")}) > MAX_RANK:
        raise holds(f"an Einsum over more than {MAX_RANK} axes")
    return [Bound(len(result))] * outputs


def concat(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    counts = [value.elements for value in inputs]
    known = [count for count in counts if count is not None]
    count = min(sum(known), MANY) if len(known) == len(counts) else None
    return [Bound(max(value.rank for value in inputs), count)] * outputs


def split(attributes: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """ONNX Runtime trusts `num_outputs`, and writes beyond its memory if it is wrong."""
    if attributes.get(b"num_outputs", outputs) != outputs:
        raise holds("a Split into another number of parts than it has outputs")
    _check_lengths(inputs[1:], outputs)
    return [Bound(inputs[0].rank, inputs[0].elements)] * outputs


def gather(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """Indices take the place of one axis."""
    rank = max(inputs[0].rank - 1, 0) + inputs[1].rank
    return [Bound(rank, _product(inputs[:2]))] * outputs


def gather_nd(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """The last axis of the indices, which may have the extent 0, counts the axes that they replace."""
    return [Bound(inputs[0].rank + max(inputs[1].rank - 1, 0))] * outputs


def shape(attributes: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    count = inputs[0].rank
    start, end = attributes.get(b"start", 0), attributes.get(b"end", count)
    assert isinstance(start, int) and isinstance(end, int)
    if start >= 0 and end >= 0:
        count = min(count, max(end - start, 0))
    return [Bound(1, count)] * outputs


def reshape(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(_elements(inputs[1]), inputs[0].elements)] * outputs


def expand(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(max(inputs[0].rank, _elements(inputs[1])))] * outputs


def constant_of_shape(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(_elements(inputs[0]))] * outputs


def unsqueeze(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    return [Bound(inputs[0].rank + _elements(inputs[1]), inputs[0].elements)] * outputs


def squeeze(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """Removes as many axes as are certain to be different, since ONNX Runtime ignores repeated ones."""
    _check_lengths(inputs[1:])
    removed = inputs[1].distinct if len(inputs) > 1 else 0
    return [Bound(max(inputs[0].rank - removed, 0), inputs[0].elements)] * outputs


def reduce(attributes: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """The sum of no elements is one element, so that (0, 9) may become (1, 9)."""
    _check_lengths(inputs[1:])
    rank, count = inputs[0].rank, 1 if inputs[0].rank < 2 else None
    if not attributes.get(b"keepdims", 1) and len(inputs) > 1:
        rank = max(rank - inputs[1].distinct, 0)
    return [Bound(rank, count)] * outputs


def arg_reduce(attributes: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    rank, count = inputs[0].rank, 1 if inputs[0].rank < 2 else None
    return [Bound(rank if attributes.get(b"keepdims", 1) else max(rank - 1, 0), count)] * outputs


def slice_(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    _check_lengths(inputs[1:])
    return [Bound(inputs[0].rank, inputs[0].elements)] * outputs


def resized(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """Pad, Tile and Resize: as many axes as the first input; the others have a number or two for each."""
    _check_lengths(inputs[1:], MAX_ATTRIBUTE_NUMBERS)
    return [Bound(inputs[0].rank)] * outputs


def vector(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """One axis of any extent."""
    return [Bound(1)] * outputs


def recurrent(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """LSTM and GRU: all outputs (T, directions, N, n), then the last states (directions, N, n)."""
    return [Bound(4), Bound(3), Bound(3)][:outputs]


def quantized(_: Attributes, inputs: Sequence[Bound], outputs: int) -> list[Bound]:
    """DynamicQuantizeLinear: the values, their scale and their zero point."""
    return [Bound(inputs[0].rank, inputs[0].elements), Bound(0, 1), Bound(0, 1)][:outputs]


INTEGERS = 3, 5, 6, 7, 2  # TensorProto.DataType
TYPES = {  # whether outputs are integers, where they differ from the first input
    **dict.fromkeys((b"ArgMax", b"ArgMin", b"MatMulInteger", b"Shape"), (True,)),
    b"TopK": (None, True),
    b"DynamicQuantizeLinear": (True, False, True),
    **dict.fromkeys(
        (b"And", b"Equal", b"Greater", b"GreaterOrEqual", b"IsInf", b"IsNaN", b"Less", b"LessOrEqual"),
        (False,),
    ),
    **dict.fromkeys((b"Not", b"Or", b"Xor"), (False,)),
}
# These return elements of their first input as they are.
MOVES = b"""
    Expand Gather GatherElements GatherND Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze
""".split()


def with_numbers(
    operator: bytes, attributes: Attributes, inputs: Sequence[Bound], outputs: Sequence[Bound]
) -> list[Bound]:
    """Add what numbers the outputs of an operator hold.

    Raises:
        Refusal: it divides integers by what may be 0 or −1.
    """
    source = inputs[1] if operator == b"Where" else inputs[0]
    if operator in (b"Div", b"Mod") and source.integer and not inputs[1].divisor:
        raise holds("a division of integers by a number that may be 0 or -1, which can end the process")
    types: tuple[bool | None, ...] = TYPES.get(operator, ())
    kind = {b"Cast": b"to", b"ConstantOfShape": b"value"}.get(operator)
    if kind is not None:
        types = (attributes.get(kind) in INTEGERS,)
    types += (None,) * (len(outputs) - len(types))
    divisor = (
        operator == b"Shape"
        or (operator in MOVES and source.divisor)
        or (operator == b"Concat" and all(value.divisor for value in inputs))
    )
    return [
        output._replace(integer=source.integer if integer is None else integer, divisor=divisor)
        for output, integer in zip(outputs, types, strict=False)
    ]
