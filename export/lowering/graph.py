"""A builder for ONNX graphs in which values are added and multiplied like arrays.

>>> graph = Graph("sweep")
>>> x = Value(graph, "x")
>>> y = graph("Tanh", x * 2 + graph.constant(offset))  # adds the nodes Mul, Add and Tanh
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Shape = Sequence[int | None]
END = 2**31 - 1  # as the end of a slice: up to the last position


@dataclass(frozen=True)
class Value:
    """A tensor in a graph under construction; `+`, `-` and `*` add nodes to that graph.

    Numbers become float32.
    """

    graph: Graph
    name: str

    def __add__(self, other: Value | float) -> Value:
        return self.graph("Add", self, self.graph.operand(other))

    def __sub__(self, other: Value | float) -> Value:
        return self.graph("Sub", self, self.graph.operand(other))

    def __mul__(self, other: Value | float) -> Value:
        return self.graph("Mul", self, self.graph.operand(other))


class Graph:
    """The nodes and constants of a graph, in the order in which they were added.

    Constants with the same content are stored once, and what is computed of integer constants alone is one.
    Operators are those of opset 18.

    Args:
        prefix: first part of the name of everything that is added.
        outer: for the body of an operator, the graph around it, which stores the constants.
    """

    def __init__(self, prefix: str, outer: Graph | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._outer = outer
        self._name_count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def add_input(self, name: str, dtype: np.dtype[Any], *shape: int | None) -> Value:
        """Add an input to a body; None stands for an extent that is not known."""
        value = Value(self, f"{self._prefix}/{name}")
        self.inputs.append(_value_info(value, dtype, shape))
        return value

    def proto(self, name: str, outputs: Sequence[tuple[Value, np.dtype[Any], Shape]]) -> onnx.GraphProto:
        """A body as the attribute that its operator takes.

        ONNX lets a body leave the types of its inputs and outputs out, but OpenVINO does not.

        Args:
            name: the name of the body.
            outputs: its outputs, each with its dtype and shape. A value may be there several times.
        """
        # ONNX Runtime computes wrong numbers where two outputs are one value, or one is an input.
        free = {name for node in self.nodes for name in node.output}
        declared = []
        for value, dtype, shape in outputs:
            output = value if value.name in free else self("Identity", value)
            free.discard(output.name)
            declared.append(_value_info(output, dtype, shape))
        return helper.make_graph(self.nodes, name, self.inputs, declared)

    def within(self, name: str) -> Graph:
        """An empty body for an operator of this graph."""
        return Graph(f"{self._prefix}/{name}", self)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Append `name` to the prefix of everything that is added inside the `with` block."""
        previous = self._prefix
        self._prefix = f"{previous}/{name}"
        try:
            yield
        finally:
            self._prefix = previous

    def __call__(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node with one output, and return that output."""
        return self.add_node(op, 1, *inputs, **attributes)[0]

    def add_node(self, op: str, outputs: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """Add a node with several outputs, and return them."""
        name = self._unique_name(op)
        names = [name if outputs == 1 else f"{name}_{k}" for k in range(outputs)]
        node = helper.make_node(op, [value.name for value in inputs], names, name=name, **attributes)
        arrays = {value.name: array for value in inputs if (array := self.array(value)) is not None}
        if len(arrays) == len({*node.input}) and all(a.dtype.kind in "ib" for a in arrays.values()):
            results: Any = ReferenceEvaluator(node).run(None, arrays)
            return [self.constant(result) for result in results]
        self.nodes.append(node)
        return [Value(self, output) for output in names]

    def constant(self, array: Any) -> Value:
        """A constant tensor with the dtype and shape of `array`."""
        if self._outer is not None:
            return Value(self, self._outer.constant(array).name)
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique_name("constant")
            self.initializers.append(numpy_helper.from_array(array, name))
            self._constants[key], self._arrays[name] = Value(self, name), array
        return self._constants[key]

    def array(self, value: Value) -> np.ndarray | None:
        """The content of a constant; None for other values."""
        return self._arrays.get(value.name)

    def operand(self, number: Value | float) -> Value:
        """A number as a float32 constant; a value as it is."""
        return number if isinstance(number, Value) else self.constant(np.asarray(number, np.float32))

    def integers(self, *values: int) -> Value:
        """A constant int64 tensor with one axis."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: int) -> Value:
        """A constant int64 tensor without axes."""
        return self.constant(np.asarray(value, np.int64))

    def arange(self, end: Value) -> Value:
        """0 … end − 1, for an int64 `end` of shape (1,)."""
        scalar_end = self("Squeeze", end, self.integers(0))  # `Range` takes scalars
        return self("Range", self.scalar(0), scalar_end, self.scalar(1))

    def split(self, value: Value, extents: Sequence[int], axis: int) -> list[Value]:
        """Split along `axis` into parts of these extents."""
        if len(extents) == 1:
            return [value]
        return self.add_node("Split", len(extents), value, self.integers(*extents), axis=axis)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Concatenate along `axis`."""
        return values[0] if len(values) == 1 else self("Concat", *values, axis=axis)

    def reshape(self, value: Value, *shape: int) -> Value:
        """Reshape, where 0 copies an extent and −1 is inferred from the rest."""
        return self("Reshape", value, self.integers(*shape))

    def slice(self, value: Value, start: Value | int, end: Value | int, axis: int = 0) -> Value:
        """Positions start … end − 1 along `axis`; a bound that is a value is int64 (1,)."""
        bounds = (bound if isinstance(bound, Value) else self.integers(bound) for bound in (start, end))
        return self("Slice", value, *bounds, self.integers(axis))

    def cast(self, value: Value, dtype: np.dtype[Any]) -> Value:
        """Cast to another dtype."""
        return self("Cast", value, to=helper.np_dtype_to_tensor_dtype(dtype))

    def _unique_name(self, kind: str) -> str:
        self._name_count += 1
        return f"{self._prefix}/{kind}_{self._name_count}"


def rename(nodes: Iterable[onnx.NodeProto], new_names: Mapping[str, str]) -> None:
    """Rename values of a graph. Bodies use no values from outside but constants, which keep their names."""
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [new_names.get(name, name) for name in names]


def _value_info(value: Value, dtype: np.dtype[Any], shape: Shape) -> onnx.ValueInfoProto:
    """The declaration of a value."""
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(dtype), shape)
