"""Make an exported model wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from helpers.crafted_models import node, tensor


def damage(model: Path, damaged: Path, wavefront: int) -> None:
    """Halve one tanh on one wavefront of a file."""
    onnx.save(with_scaled_tanh(onnx.load(model), f"/wavefront_{wavefront}/", 0.5), damaged)


def with_scaled_tanh(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The model in which the output of the first Tanh with `name` in its name is multiplied."""
    nodes = model.graph.node
    at, step = next((k, n) for k, n in enumerate(nodes) if name in n.name and n.op_type == "Tanh")
    result = step.output[0]
    step.output[0] += "_unscaled"
    nodes.insert(at + 1, node("Mul", f"{step.output[0]} factor", result))
    model.graph.initializer.append(tensor("factor", factor, np.float32))
    return model
