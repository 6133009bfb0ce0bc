"""Each wavefront of an unrolled sweep as one node, to be looked at: model-local ONNX functions."""

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
    """A copy of `model` in which the nodes of each wavefront are in a function, and one node calls it.

    Wavefronts that do the same with other inputs share a function. A runtime puts the nodes back where
    they were when it loads the model, so they run as they did.
    """
    groups = [(name, list(group)) for name, group in groupby(model.graph.node, _wavefront)]
    users: dict[str, set[int]] = {value.name: {-1} for value in model.graph.output}
    for k, (_, group) in enumerate(groups):
        for node in walk(group):
            for used in node.input:
                users.setdefault(used, set()).add(k)
    nodes: list[onnx.NodeProto] = []
    functions: dict[bytes, onnx.FunctionProto] = {}
    for k, (name, group) in enumerate(groups):
        if not name:
            nodes += group
            continue
        made = [output for node in group for output in node.output]
        taken = list(dict.fromkeys(used for node in group for used in node.input if used not in made))
        given = [output for output in made if users.get(output, set()) - {k}]
        short = {"": ""} | {value: f"v{j}" for j, value in enumerate([*taken, *made])}
        body = [_renamed(node, short) for node in group]
        key = b"".join(node.SerializeToString(deterministic=True) for node in body)
        if key not in functions:
            functions[key] = helper.make_function(
                DOMAIN,
                f"Wavefront{len(functions) + 1}",
                [short[value] for value in taken],
                [short[value] for value in given],
                body,
                opset_imports=list(model.opset_import),
            )
        nodes.append(helper.make_node(functions[key].name, taken, given, name=name, domain=DOMAIN))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    if functions:
        result.functions.extend(functions.values())
        result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return result


def _wavefront(node: onnx.NodeProto) -> str:
    """The name of the wavefront that a node belongs to, or ""."""
    match = WAVEFRONT.match(node.name)
    return match[1] if match else ""


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy with other names of what it takes and gives, and its own after the first of the latter.

    (ONNX Runtime 1.20 makes names of nodes from those of others, and so must not find nodes without.)
    """
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names[value] for value in node.input]
    copy.output[:] = [names[value] for value in node.output]
    copy.name = f"{node.op_type}_{copy.output[0]}"
    return copy
