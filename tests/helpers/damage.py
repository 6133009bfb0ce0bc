"""Make an exported model wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def damage(model: Path, damaged: Path, wavefront: int) -> None:
    """Halve one tanh on one wavefront of a file."""
    onnx.save(with_scaled_tanh(onnx.load(model), f"/wavefront_{wavefront}/", 0.5), damaged)


def with_scaled_tanh(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The model in which the output of the first Tanh with `name` in its name is multiplied."""
    step = next(n for n in model.graph.node if name in n.name and n.op_type == "Tanh")
    renamed = step.output[0] + "_scaled"
    for node in model.graph.node:
        for k, value in enumerate(node.input):
            if value == step.output[0]:
                node.input[k] = renamed
    at = list(model.graph.node).index(step) + 1
    model.graph.node.insert(at, onnx.helper.make_node("Mul", [step.output[0], "factor"], [renamed]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    return model
