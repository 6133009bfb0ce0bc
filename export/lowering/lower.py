"""Second stage of an export: replace each node that is a sweep by standard ONNX operators."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mdlstm_tk.cells import get_cell
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.capture import DOMAIN, IR_VERSION
from mdlstm_tk.export.lowering.graph import Graph, Value, rename
from mdlstm_tk.export.lowering.scan import write_scan
from mdlstm_tk.export.lowering.state_scan import write_state_scan
from mdlstm_tk.export.lowering.state_unrolled import write_state_unrolled
from mdlstm_tk.export.lowering.step import Sweep, direction_label
from mdlstm_tk.export.lowering.unrolled import write_unrolled
from mdlstm_tk.wavefront import Direction

FORMS: dict[str, Callable[[Graph, Sweep], Value]] = {"unrolled": write_unrolled, "scan": write_scan}
STATE_FORMS: dict[str, Callable[[Graph, Sweep, Value, Value], tuple[Value, Value, Value]]] = {
    "unrolled": write_state_unrolled,
    "scan": write_state_scan,
}
# Extents from which one direction after the other is faster than all in one chain, and takes less memory.
ONE_BY_ONE_FROM = 512
INPUTS = 8  # of a Wavefront node; optional ones may be missing at the end. Initial states come after them


def lower(
    model: onnx.ModelProto, form: str = "unrolled", *, separate_products: bool = False
) -> onnx.ModelProto:
    """Replace each sweep, which is one node, by standard operators, and remove the exporter's debug data.

    Args:
        model: a model that `torch.onnx.export` made with `translation_table`.
        form: "unrolled" writes every wavefront out; "scan" writes one loop over them.
        separate_products: whether h and x enter products of their own and biases are added afterwards, as
            quantisation needs it; see `Sweep`.

    Returns:
        A new model that uses standard operators only.

    Raises:
        MDLSTMError: a sweep's weights are computed in the graph instead of being constants, or its grid
            is free but the form needs a fixed one, or the sweep stands inside a branch or a loop.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    new_initializers: list[onnx.TensorProto] = []
    sweep_count = 0
    for node in model.graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        graph = Graph(f"{_module_path(node)}_{sweep_count}")
        sweep_count += 1
        sweep = _read_sweep(node, tensors, graph, form)
        results = _write(graph, replace(sweep, separate_products=separate_products), node, form)
        rename(graph.nodes, dict(zip((value.name for value in results), node.output, strict=True)))
        nodes += graph.nodes
        new_initializers += graph.initializers

    inner_graphs = (*(graph for node in nodes for graph in subgraphs(node)), *model.functions)
    if any(node.domain == DOMAIN for graph in inner_graphs for node in walk(graph.node)):
        raise MDLSTMError(
            "an MDLSTM layer inside a branch or a loop of the network cannot be exported; "
            "move the layer out of it"
        )
    used = {name for node in walk(nodes) for name in node.input}
    initializers = [t for t in (*model.graph.initializer, *new_initializers) if t.name in used]
    for node in nodes:
        node.ClearField("metadata_props")  # the exporter's stack traces
        node.ClearField("doc_string")
    graph_proto = helper.make_graph(
        nodes, "mdlstm", model.graph.input, model.graph.output, initializer=initializers
    )
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    return helper.make_model(
        graph_proto,
        opset_imports=opsets,
        ir_version=IR_VERSION,
        producer_name="mdlstm-tk",
        functions=model.functions,
    )


def _write(graph: Graph, sweep: Sweep, node: onnx.NodeProto, form: str) -> tuple[Value, ...]:
    """Add the nodes that take the place of a node, and return their results."""
    if node.op_type == "Wavefront":
        return (_write_stateless(graph, sweep, form),)
    if sweep.sizes is not None:
        raise MDLSTMError(
            f"{_module_path(node)}: a layer with initial or final states cannot be exported with sizes; "
            "leave sizes out"
        )
    h_first, c_first = (Value(graph, name) for name in node.input[INPUTS:])
    return STATE_FORMS[form](graph, sweep, h_first, c_first)


def _write_stateless(graph: Graph, sweep: Sweep, form: str) -> Value:
    """Add the nodes of a sweep without states, and return h (N, *grid, dirs, n)."""
    if sweep.dirs == 1 or min(sweep.grid) < ONE_BY_ONE_FROM:
        return FORMS[form](graph, sweep)
    parts = []
    for k, direction in enumerate(sweep.directions):
        with graph.scope(f"direction_{direction_label(direction)}"):
            parts.append(FORMS[form](graph, sweep.of_direction(k)))
    return graph.concat(parts, axis=-2)


def _read_sweep(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], graph: Graph, form: str
) -> Sweep:
    """What the nodes of sweeps with and without states have in common."""
    inputs = [*node.input[:INPUTS], *[""] * (INPUTS - len(node.input))]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    grid = tuple(attributes["grid"])
    if min(grid) < 1 and form == "unrolled":
        raise MDLSTMError(
            f"{_module_path(node)}: form 'unrolled' needs a fixed grid, got {grid}; use form 'scan'"
        )

    def array(name: str) -> np.ndarray | None:
        if not name:
            return None
        if name not in tensors:
            raise MDLSTMError(
                f"{_module_path(node)}: the weight '{name}' is computed in the graph, expected a constant; "
                "remove parametrizations before the export"
            )
        return numpy_helper.to_array(tensors[name])

    x, *parameters, sizes = inputs
    weight_ih, weight_hh, bias, peephole, norm_weight, norm_bias = map(array, parameters)
    assert weight_ih is not None
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


def _module_path(node: onnx.NodeProto) -> str:
    """The path of the layer in the network, such as "body", if the exporter recorded it, else "mdlstm"."""
    recorded = (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes")
    scopes = [str(scope) for scope in ast.literal_eval(next(recorded, "[]"))]
    path = scopes[-2] if len(scopes) > 1 else ""  # the last scope is the operator
    return path.removeprefix("module").removeprefix(".") or "mdlstm"


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, including those of subgraphs at any depth."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among the attributes of a node, such as the body of a Scan."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]
