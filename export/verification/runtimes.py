"""The runners of the cases of a verification: sessions, the evaluator of onnx, and the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from math import erf
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mdlstm_tk.export.verification.cases import Case
from mdlstm_tk.io import Array
from mdlstm_tk.io.metadata import Extents as Grid
from mdlstm_tk.io.metadata import Metadata
from mdlstm_tk.runtime import Session
from mdlstm_tk.runtime.shapes import crop
from mdlstm_tk.runtime.tiles.session import TiledSession

Inputs = dict[str, Array]
Outputs = dict[str, Array]
Runtime = Callable[[Inputs], Outputs]
NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16)


def expected_outputs(run: Runtime, cases: Iterable[Case], together: bool = True) -> dict[str, Outputs]:
    """The outputs of a reference on each case, by the names of cases.

    All cases of one grid are computed in one batch if `together`, since the time of the float64 reference
    depends on the number of positions and hardly on the batch.
    """
    groups: dict[object, list[Case]] = {}
    for case in cases:
        shapes = tuple((name, value.shape[1:]) for name, value in case.inputs.items())
        groups.setdefault(shapes if together else case.name, []).append(case)
    expected: dict[str, Outputs] = {}
    for group in groups.values():
        batch = {name: np.concatenate([case.inputs[name] for case in group]) for name in group[0].inputs}
        outputs, start = run(batch), 0
        for case in group:
            end = start + len(case.inputs["x"])
            expected[case.name] = {name: y[start:end] for name, y in outputs.items()}
            start = end
    return expected


def session_run(session: Session | TiledSession, in_one_tile: bool = False) -> Runtime:
    """Runs a session; tiles are of two windows along each axis, so that small grids have several, if not
    the whole grid is to be one."""
    first = session.metadata.output_names[0]

    def run(inputs: Inputs) -> Outputs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on random numbers that training has not seen
            if isinstance(session, TiledSession):
                windows = np.prod([stage.window for stage in session.archive.stages], axis=0)
                tile = max(inputs["x"].shape) if in_one_tile else 2 * int(windows.max())
                return {first: session(inputs["x"], tile)}
            outputs = session(**inputs)
        return outputs if isinstance(outputs, dict) else {first: outputs}

    return run


def with_padding(run: Runtime, metadata: Metadata, limit: Grid) -> Runtime:
    """Runs a model that takes `sizes` on smaller grids.

    The samples are padded with their values again to the grid `limit`, after a first sample that fills
    it, so that one batch has several sizes. A model that reads the padding returns something else than for
    the samples alone.
    """

    def run_padded(inputs: Inputs) -> Outputs:
        x = inputs["x"]
        grid = metadata.grid_of(x.shape)
        padded = np.resize(x, (1 + len(x), *metadata.shape_of(limit))).astype(x.dtype)
        padded[1:, *map(slice, x.shape[1:])] = x
        sizes = np.asarray([limit, *[grid] * len(x)], np.int64)
        further = {
            name: np.concatenate([value[:1], value]) for name, value in inputs.items() if name != "x"
        }
        outputs = run({"x": padded, "sizes": sizes, **further})
        return {
            name: crop(y[1:], metadata.windows[name], grid, limit, metadata) for name, y in outputs.items()
        }

    return run_padded


class GatherElements(OpRun):
    """The operator as ONNX defines it. That of onnx takes neither negative axes nor over 32 entries."""

    op_domain, op_schema = "", onnx.defs.get_schema("GatherElements")

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        others = [slice(extent) for extent in indices.shape]
        others[axis] = slice(None)
        return (np.take_along_axis(data[tuple(others)], indices, axis),)


class Erf(OpRun):
    """The operator in the precision of its input. That of onnx rounds to float32."""

    op_domain, op_schema = "", onnx.defs.get_schema("Erf")

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(erf, otypes=[np.float64])(x).astype(x.dtype),)


OPERATORS = [GatherElements, Erf]


def graph_run(model: onnx.ModelProto, names: list[str], in_double: bool = False) -> Runtime:
    """Runs a graph with outputs of these names in the reference evaluator of onnx, in float64 if asked."""
    evaluator = ReferenceEvaluator(in_float64(model) if in_double else model, new_ops=OPERATORS)

    def run(inputs: Inputs) -> Outputs:
        feeds = dict(inputs)
        if in_double:
            feeds = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
        outputs: Any = evaluator.run(names, feeds)
        return {name: np.asarray(y) for name, y in zip(names, outputs, strict=True)}

    return run


def evaluate_graph(model: onnx.ModelProto, names: list[str], inputs: Inputs) -> Outputs:
    """The outputs of a graph in float64."""
    return graph_run(model, names, in_double=True)(inputs)


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model in which all float32 and float16 tensors and casts are float64.

    It is the reference where the network is not at hand: it tells whether a runtime computes the graph, but
    not whether the graph is that of the network.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for part in list(_parts(wide)):
        if isinstance(part, TensorProto) and part.data_type in NARROW:
            array = numpy_helper.to_array(part).astype(np.float64)
            part.CopyFrom(numpy_helper.from_array(array, part.name))
        elif isinstance(part, onnx.TypeProto.Tensor) and part.elem_type in NARROW:
            part.elem_type = TensorProto.DOUBLE
        elif isinstance(part, onnx.NodeProto) and part.op_type == "Cast":
            for attribute in part.attribute:
                if attribute.name == "to" and attribute.i in NARROW:
                    attribute.i = TensorProto.DOUBLE
        elif isinstance(part, onnx.NodeProto) and part.op_type == "ConstantOfShape" and not part.attribute:
            zero = numpy_helper.from_array(np.zeros(1))  # its default value is a float32 zero
            part.attribute.append(helper.make_attribute("value", zero))
    return wide


def _parts(message: Message) -> Iterator[Message]:
    """A protobuf message and all that it holds, at any depth."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _parts(part)
