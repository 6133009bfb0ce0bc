"""Stage two: replace each `mdlstm::Wavefront` node by standard ops, and clean up after the exporter."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
from mdlstm_tk.cells.equations import get_cell
from onnx import helper, numpy_helper

from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.capture import DOMAIN, IR_VERSION
from mdlstm_tk.export.lowering.graph import Graph, Value
from mdlstm_tk.export.lowering.scan import write_scan
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.export.lowering.unrolled import write_unrolled
from mdlstm_tk.wavefront import Direction

FORMS: dict[str, Callable[[Graph, Sweep], Value]] = {"unrolled": write_unrolled, "scan": write_scan}


def lower(model: onnx.ModelProto, form: str = "unrolled") -> onnx.ModelProto:
    """A copy of `model` in standard ops alone.

    Args:
        model: as `capture`, or `torch.onnx.export` with `translation_table`, made it.
        form: a name in `FORMS`.

    Raises:
        MDLSTMError: a sweep's weights are computed in the graph, or its grid is not fixed but the form
            needs that, or it stands in a branch or a loop.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    sweeps = 0
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        graph = Graph(f"{_place(node)}_{sweeps}")
        sweeps += 1
        result = FORMS[form](graph, _read(node, tensors, graph, form))
        last = graph.nodes[-1]
        assert list(last.output) == [result.name]
        last.output[0] = node.output[0]
        nodes += graph.nodes
        added += graph.initializers

    inner = (*(body for node in nodes for body in bodies(node)), *model.functions)
    if any(node.domain == DOMAIN for part in inner for node in walk(part.node)):
        raise MDLSTMError(
            "a sweep inside a branch or a loop of the network cannot be exported; move the MDLSTM layer out"
        )
    used = {name for node in walk(nodes) for name in node.input}
    kept = [tensor for tensor in [*model.graph.initializer, *added] if tensor.name in used]
    for node in nodes:
        node.ClearField("metadata_props")  # the exporter's stack traces
        node.ClearField("doc_string")
    graph_proto = helper.make_graph(
        nodes, "mdlstm", model.graph.input, model.graph.output, initializer=kept
    )
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    return helper.make_model(
        graph_proto,
        opset_imports=opsets,
        ir_version=IR_VERSION,
        producer_name="mdlstm-tk",
        functions=model.functions,
    )


def _read(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], graph: Graph, form: str) -> Sweep:
    """What a Wavefront node holds."""
    inputs = [*node.input, *[""] * (8 - len(node.input))]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    grid = tuple(attributes["grid"])
    if min(grid) < 1 and form == "unrolled":
        raise MDLSTMError(f"{_place(node)}: the grid must be fixed to write its sweep out, got {grid}")

    def array(name: str) -> np.ndarray | None:
        if not name:
            return None
        if name not in tensors:
            raise MDLSTMError(
                f"{_place(node)}: the weight '{name}' is computed in the graph; it must be a constant "
                "(remove parametrizations before the export)"
            )
        return numpy_helper.to_array(tensors[name])

    x, *parameters, sizes = inputs
    weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias = map(array, parameters)
    assert weight_ih is not None and weight_hh is not None
    signs = list(attributes["directions"])
    directions: list[Direction] = [tuple(signs[k : k + len(grid)]) for k in range(0, len(signs), len(grid))]
    return Sweep(
        x=Value(graph, x),
        weight_ih=weight_ih,
        weight_hh=weight_hh,
        bias=bias,
        peephole=peephole,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        sizes=Value(graph, sizes) if sizes else None,
        grid=grid,
        directions=directions,
        cell=get_cell(attributes["cell"].decode()),
    )


def _place(node: onnx.NodeProto) -> str:
    """The module in the network that a sweep is of, if the exporter has told: the last scope but one."""
    told = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    scopes = [str(scope) for scope in ast.literal_eval(told)]
    place = scopes[-2] if len(scopes) > 1 else ""
    return place.removeprefix("module").removeprefix(".") or "mdlstm"


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those in their bodies."""
    for node in nodes:
        yield node
        for body in bodies(node):
            yield from walk(body.node)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that an operator takes, as a Scan does."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]
