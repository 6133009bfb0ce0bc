"""Mutate the tensors of a model: dims, types, values and names."""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from fuzz.mutate import TEXTS

EXTENTS = (-1, 0, 1, 2, 3, 7, 1000, 65536, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))


def random_text(rng: random.Random) -> str:
    """A special text that protobuf takes."""
    return rng.choice(TEXTS).encode("utf-8", "replace").decode()


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and all graphs in it."""
    found = [graph]
    for inner in [a.g for n in graph.node for a in n.attribute if a.type == AttributeProto.GRAPH]:
        found += all_graphs(inner)
    return found


def random_tensor(rng: random.Random) -> TensorProto:
    """A tensor of an unusual shape."""
    values = rng.choice(([1], [], [3, 3], [2**40], [0] * 40, [1] * 3000, list(range(9))))
    dtype = rng.choice((np.int64, np.int64, np.float32, np.bool_))
    return numpy_helper.from_array(np.array(values).astype(dtype), rng.choice(("w", "x", "extra")))


def change_values(rng: random.Random, tensor: TensorProto) -> None:
    """Change dims, type, values or name of a tensor."""
    action = rng.randrange(6)
    if action == 0:
        tensor.dims[:] = [
            rng.choice((*EXTENTS, *tensor.dims)) for _ in range(rng.choice((0, 1, 2, 4, 40, 3000)))
        ]
    elif action == 1:
        tensor.data_type = rng.choice((*range(25), 99, -1))
    elif action == 2 and tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, np.int64).copy()
        if values.size:
            values[rng.randrange(values.size)] = rng.choice(EXTENTS)
        tensor.raw_data = values.tobytes()
    elif action == 3:
        tensor.raw_data = rng.choice(
            (b"", bytes(8), b"\xff" * 8, tensor.raw_data * 2, tensor.raw_data[:-1], bytes(10**5))
        )
    elif action == 4:
        tensor.int64_data.extend([rng.choice(EXTENTS)] * rng.choice((1, 4, 3000)))
    else:
        tensor.name = rng.choice((random_text(rng), "x", "y"))


def change_tensors(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change an initializer; add, double or remove one."""
    graph = rng.choice(all_graphs(model.graph))
    action = rng.randrange(5)
    if action == 0 or not graph.initializer:
        graph.initializer.append(random_tensor(rng))
    elif action == 1:
        graph.initializer.append(rng.choice(graph.initializer))
    elif action == 2:
        graph.initializer.remove(rng.choice(graph.initializer))
    else:
        change_values(rng, rng.choice(graph.initializer))
