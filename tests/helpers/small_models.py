"""Small exported models of each kind, written as ONNX graphs: they load in milliseconds and are computed by
hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from helpers.crafted_models import info, node
from mdlstm_tk.io.metadata import Metadata

CLASSES = ("cat", "dög", "<b>")


def write_model(
    path: Path,
    nodes: Sequence[NodeProto] = (),
    constants: dict[str, Any] | None = None,
    *,
    outputs: int = 1,
    axes: int = 4,
    elem_type: int = TensorProto.FLOAT,
    **metadata: Any,
) -> Path:
    """Write a model from x (N, H, W, C) of any extents to y; the default doubles x. Further outputs are
    copies of y.

    Args:
        path: the file.
        nodes: what computes y.
        constants: stored tensors by name.
        outputs: number of features of y.
        axes, elem_type: number of axes of y, and the type of its elements.
        **metadata: fields of the metadata, and those that a kind adds.
    """
    usual = {"version": "0", "form": "scan", "layout": "N H W C", "channels": 1, "outputs": outputs}
    known = {each.name for each in fields(Metadata)} & metadata.keys()
    own = {name: metadata.pop(name) for name in known}
    m = Metadata(**{**usual, **own}, more=metadata)  # type: ignore[arg-type]
    shape, sizes = (None, *m.shape_of(m.grid or (None,) * m.ndim)), (None, m.ndim)
    declared = [
        info(name, TensorProto.INT64, sizes) if name == "sizes" else info(name, TensorProto.FLOAT, shape)
        for name in m.inputs
    ]
    returned = [info(name, elem_type, (None,) * axes) for name in m.output_names]
    copies = [node("Identity", "y", name) for name in m.output_names[1:]]
    computed = [*(nodes or [node("Add", "x x", "y")]), *copies]
    tensors = [numpy_helper.from_array(np.asarray(each), name) for name, each in (constants or {}).items()]
    graph = helper.make_graph(computed, "g", declared, returned, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, m.to_props())
    path.write_bytes(model.SerializeToString())
    return path


SCORES = {"weights": np.float32([[1, 0, -1]]), "start": np.float32([0, 0.5, 0])}


def scores(x: Any) -> Any:
    """The scores of the three classes for values of x: class 0 above 0.5, class 2 below -0.5."""
    return np.float32(x)[..., None] @ SCORES["weights"] + SCORES["start"]


def _averaging(path: Path, axes: list[int], scores: dict[str, Any], **metadata: Any) -> Path:
    """Scores of the mean of x over some axes."""
    nodes = [
        node("ReduceMean", "x axes", "mean", keepdims=0),
        node("MatMul", "mean weights", "m"),
        node("Add", "m start", "y"),
    ]
    constants = {"axes": np.int64(axes), **scores}
    return write_model(path, nodes, constants, outputs=3, axes=4 - len(axes), window=None, **metadata)


def classifier(path: Path, **metadata: Any) -> Path:
    """Scores of the mean of x over the grid."""
    return _averaging(path, [1, 2], SCORES, **{"kind": "classify", "classes": CLASSES, **metadata})


def recogniser(path: Path, scores: dict[str, Any] = SCORES, **metadata: Any) -> Path:
    """Scores of the blank, "a" and "b" at each column, of the mean of x over the rows: white columns are
    blanks, and black ones the letter a."""
    return _averaging(path, [1], scores, **{"kind": "transcribe", "classes": ("a", "b"), **metadata})


def finder(path: Path, **metadata: Any) -> Path:
    """Maps of lines at half the extents: dark positions are on a baseline."""
    nodes = [
        node("Transpose", "x", "planes", perm=[0, 3, 1, 2]),
        node("AveragePool", "planes", "means", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        node("Transpose", "means", "grid", perm=[0, 2, 3, 1]),
        node("MatMul", "grid weights", "m"),
        node("Add", "m start", "y"),
    ]
    constants = {"weights": np.float32([[-40, 0, 0]]), "start": np.float32([20, -20, -20])}
    resize = {"channels": 1, "resize": [200, None]}
    fields = {"kind": "baselines", "window": (2, 2), "preprocessing": resize, **metadata}
    return write_model(path, nodes, constants, outputs=3, **fields)


def segmenter(path: Path, **metadata: Any) -> Path:
    """Scores of x at each position."""
    nodes = [node("MatMul", "x weights", "m"), node("Add", "m start", "y")]
    fields: dict[str, Any] = {"kind": "segment", "classes": CLASSES, **metadata}
    return write_model(path, nodes, SCORES, outputs=3, **fields)


def density(path: Path) -> Path:
    """A log-probability of -2 x for each value."""
    return write_model(
        path, [node("Mul", "x factor", "y")], {"factor": np.float32(-2)}, kind="density", classes=None
    )
