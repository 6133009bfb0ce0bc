"""Each wavefront of an unrolled sweep as one node, for graph viewers: model-local ONNX functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby

import onnx
from onnx import helper

from mdlstm_tk.export.lowering.lower import walk

DOMAIN = "mdlstm.functions"
WAVEFRONT = re.compile(r"(.*/wavefront_\d+)/")


def outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move the nodes of each wavefront into a function, and put one node that calls it in their place.

    Wavefronts share a function if they differ only in their inputs and have equal numbers of inputs and
    outputs: on the last wavefront of a sweep nobody reads c. A runtime inlines the functions when it loads
    the model, so its speed is the same.

    Args:
        model: a model in the unrolled form.

    Returns:
        A new model.
    """
    groups = [(name, list(nodes)) for name, nodes in groupby(model.graph.node, _wavefront_name)]
    users: dict[str, set[int]] = {value.name: {-1} for value in model.graph.output}
    for k, (_, group) in enumerate(groups):
        for node in walk(group):
            for value in node.input:
                users.setdefault(value, set()).add(k)
    nodes: list[onnx.NodeProto] = []
    functions: dict[tuple[object, ...], onnx.FunctionProto] = {}
    for k, (name, group) in enumerate(groups):
        if not name:
            nodes += group
            continue
        values = [value for node in group for value in node.output]
        inputs = list(dict.fromkeys(value for node in group for value in node.input if value not in values))
        outputs = [value for value in values if users.get(value, set()) - {k}]
        # The same names in every function make the bodies of equal wavefronts equal byte for byte.
        new_names = {value: f"v{j}" for j, value in enumerate([*inputs, *values])}
        body = [_renamed(node, new_names) for node in group]
        parameters, results = ([new_names[value] for value in part] for part in (inputs, outputs))
        nodes_as_bytes = b"".join(node.SerializeToString(deterministic=True) for node in body)
        key = (nodes_as_bytes, tuple(parameters), tuple(results))
        if key not in functions:
            functions[key] = helper.make_function(
                DOMAIN,
                f"Wavefront{len(functions) + 1}",
                parameters,
                results,
                body,
                opset_imports=list(model.opset_import),
            )
        nodes.append(helper.make_node(functions[key].name, inputs, outputs, name=name, domain=DOMAIN))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    if functions:
        result.functions.extend(functions.values())
        result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return result


def _wavefront_name(node: onnx.NodeProto) -> str:
    """The name of the wavefront that a node belongs to, or "" if it belongs to none."""
    match = WAVEFRONT.match(node.name)
    return match[1] if match else ""


def _renamed(node: onnx.NodeProto, new_names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node whose inputs and outputs are renamed, and whose name derives from its output.

    ONNX Runtime 1.20 derives further names from the names of nodes, so no node may be without one.
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [new_names[value] for value in node.input]
    copy.output[:] = [new_names[value] for value in node.output]
    copy.name = f"{node.op_type}_{copy.output[0]}"
    return copy
