"""Second stage of an export: replace each node that is a sweep by standard ONNX operators."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import onnx
from onnx import helper, numpy_helper

from mdlstm_tk.cells.step import CELL_PARAMETERS, cell_of_graph
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.capture import DOMAIN, IR_VERSION
from mdlstm_tk.export.lowering.graph import Graph, Value, rename
from mdlstm_tk.export.lowering.scan import Scan
from mdlstm_tk.export.lowering.step import Sweep
from mdlstm_tk.export.lowering.unrolled import Unrolled
from mdlstm_tk.export.lowering.write import write_sweep
from mdlstm_tk.inputs import TENSORS
from mdlstm_tk.io.metadata import Form
from mdlstm_tk.wavefront import Direction

FORMS: dict[Form, type[Scan | Unrolled]] = {"unrolled": Unrolled, "scan": Scan}
COMPUTED = ("x", "initial", "sizes")  # the inputs of a node that are no weights


def lower(model: onnx.ModelProto, form: Form = "unrolled") -> onnx.ModelProto:
    """Replace each sweep, which is one node, by standard operators, and remove the exporter's debug data.

    Args:
        model: a model that `torch.onnx.export` made with `translation_table`.
        form: "unrolled" writes every wavefront out; "scan" writes one loop over them.

    Returns:
        A new model that uses standard operators only.

    Raises:
        MDLSTMError: a sweep's weights are computed in the graph instead of being constants, or its grid
            is free but the form needs a fixed one, or it has both states and sizes.
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
        results = [value.name for value in write_sweep(graph, sweep, FORMS[form])]
        rename(graph.nodes, dict(zip(results, node.output, strict=False)))  # `final` may be missing
        nodes += graph.nodes
        new_initializers += graph.initializers

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


def _read_sweep(
    node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], graph: Graph, form: str
) -> Sweep:
    """The content of a node."""
    names = {name: value for name, value in zip(TENSORS, node.input, strict=False) if value}
    present = tuple(name for name in CELL_PARAMETERS if name in names)
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    grid = tuple(attributes["grid"])
    if min(grid) < 1 and form == "unrolled":
        raise MDLSTMError(
            f"{_module_path(node)}: form 'unrolled' needs a fixed grid, got {grid}; give form=\"scan\""
        )
    x, initial, sizes = (Value(graph, names.pop(n)) if n in names else None for n in COMPUTED)
    assert x is not None
    if initial is not None and sizes is not None:
        raise MDLSTMError(
            f"{_module_path(node)}: a layer with initial or final states cannot be exported with sizes; "
            "leave sizes out"
        )
    for value in names.values():
        if value not in tensors:
            raise MDLSTMError(
                f"{_module_path(node)}: the weight '{value}' is computed in the graph, expected a "
                "constant; remove parametrizations before the export"
            )
    signs = list(attributes["directions"])
    directions: list[Direction] = [tuple(signs[k : k + len(grid)]) for k in range(0, len(signs), len(grid))]
    return Sweep(
        x=x,
        parameters={name: numpy_helper.to_array(tensors[value]) for name, value in names.items()},
        grid=grid if form == "unrolled" else (-1,) * len(grid),
        directions=directions,
        cell=cell_of_graph(attributes["cell"].decode(), len(grid), present),
        initial=initial,
        sizes=sizes,
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
