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
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}

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
        array = np.ascontiguousarray(array)
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

    def reshape(self, value: Value, *shape: int) -> Value:
        """With another shape; 0 keeps an extent, −1 takes what is left."""
        return self("Reshape", value, self.constant(np.asarray(shape, np.int64)))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}_{self._count}"
