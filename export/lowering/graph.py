"""Writing an ONNX graph as one writes arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Value:
    """A tensor in a graph under construction; `+`, `-` and `*` add nodes to it."""

    graph: Graph
    name: str

    def __add__(self, other: Value) -> Value:
        return self.graph("Add", self, other)

    def __sub__(self, other: Value) -> Value:
        return self.graph("Sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            other = self.graph.constant(np.asarray(other, np.float32))
        return self.graph("Mul", self, other)


class Graph:
    """Nodes and constants, in order. Constants of equal content are stored once.

    Args:
        prefix: put before the name of everything that is added.
        outer: the graph that this is the body of; it keeps the constants.
    """

    def __init__(self, prefix: str, outer: Graph | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[str] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._outer = outer
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

    def body(self) -> Graph:
        """An empty graph that may use this one's values, for an operator that takes one."""
        return Graph(f"{self._prefix}/body", self)

    def input(self, name: str) -> Value:
        """Add an input to a body."""
        self.inputs.append(f"{self._prefix}/{name}")
        return Value(self, self.inputs[-1])

    def proto(self, name: str, outputs: Sequence[Value]) -> onnx.GraphProto:
        """A body as an attribute."""
        names = [self.inputs, [value.name for value in outputs]]
        inputs, results = ([onnx.ValueInfoProto(name=value) for value in part] for part in names)
        return helper.make_graph(self.nodes, name, inputs, results)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names of what is added inside start with `name`, too."""
        outer = self._prefix
        self._prefix = f"{outer}/{name}"
        try:
            yield
        finally:
            self._prefix = outer

    def constant(self, array: Any) -> Value:
        """A constant tensor."""
        if self._outer is not None:
            return self._outer.constant(array)
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._name("constant")
            self.initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = Value(self, name)
        return self._constants[key]

    def __call__(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        """Add a node with one output."""
        return self.multi(op, 1, *inputs, **attributes)[0]

    def multi(self, op: str, outputs: int, *inputs: Value, **attributes: Any) -> list[Value]:
        """Add a node with several outputs."""
        name = self._name(op)
        names = [name if outputs == 1 else f"{name}_{k}" for k in range(outputs)]
        self.nodes.append(
            helper.make_node(op, [value.name for value in inputs], names, name=name, **attributes)
        )
        return [Value(self, output) for output in names]

    def split(self, value: Value, widths: Sequence[int], axis: int) -> list[Value]:
        """Parts of these widths along an axis."""
        if len(widths) == 1:
            return [value]
        return self.multi(
            "Split", len(widths), value, self.constant(np.asarray(widths, np.int64)), axis=axis
        )

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Joined along an axis."""
        return values[0] if len(values) == 1 else self("Concat", *values, axis=axis)

    def integers(self, *values: int) -> Value:
        """A constant list of int64."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: int) -> Value:
        """A constant int64 without axes."""
        return self.constant(np.asarray(value, np.int64))

    def reshape(self, value: Value, *shape: int) -> Value:
        """With another shape; 0 keeps an extent, −1 takes what is left."""
        return self("Reshape", value, self.integers(*shape))

    def cut(self, value: Value, start: Value, end: Value) -> Value:
        """From start to end along the first axis."""
        return self("Slice", value, start, end, self.integers(0))

    def cast(self, value: Value, dtype: np.dtype[Any]) -> Value:
        """As another type."""
        return self("Cast", value, to=helper.np_dtype_to_tensor_dtype(dtype))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}_{self._count}"
