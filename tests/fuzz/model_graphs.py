"""Mutate models by what they mean: metadata, nodes, attributes, functions, tensors, inputs and outputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from fuzz.model_tensors import (
    EXTENTS,
    all_graphs,
    change_tensors,
    change_values,
    random_tensor,
    random_text,
)
from fuzz.mutate import FLOATS, INTEGERS, mutate_json_text, mutate_number, mutate_text

OPERATORS = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas()}))
DOMAINS = (
    "",
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "own",
    "mdlstm",
    "mdlstm_tk",
    "ai.onnx.contrib",
)
SHAPE_LIKE = ("Reshape", "Expand", "Tile", "ConstantOfShape", "Range", "Pad", "Slice", "Resize", "OneHot")
HEAVY = ("Conv", "MaxPool", "AveragePool", "LpPool", "RoiAlign", "DFT", "STFT", "NonZero", "TopK", "Einsum")
METADATA = "mdlstm."

Change = Callable[[random.Random, onnx.ModelProto], None]


def mutate_model(rng: random.Random, model: onnx.ModelProto, donor: onnx.ModelProto) -> str:
    """Change a model in place, once or a few times; return the names of the changes."""
    changes = {**CHANGES, "donate": lambda rng, model: _donate(rng, model, donor)}
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(WEIGHTED)
        try:
            changes[name](rng, model)
            done.append(name)
        except (ValueError, TypeError, OverflowError, IndexError):  # onnx refuses to make such a thing
            continue
    return "+".join(done) or "nothing"


def _scopes(model: onnx.ModelProto) -> list[Any]:
    """Everything that holds nodes."""
    return [*all_graphs(model.graph), *model.functions]


def _node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    return rng.choice(rng.choice([s for s in _scopes(model) if s.node]).node)


def change_metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change, remove, double or add a field of the metadata."""
    props = [prop for prop in model.metadata_props if prop.key.startswith(METADATA)]
    prop = rng.choice(props)
    action = rng.randrange(12)
    if action == 0:
        model.metadata_props.remove(prop)
    elif action == 1:
        model.metadata_props.add(key=prop.key, value=mutate_json_text(rng, prop.value))
    elif action == 2:
        model.metadata_props.add(
            key=METADATA + random_text(rng), value=_clean(mutate_json_text(rng, prop.value))
        )
    elif action == 3:
        prop.value = rng.choice(props).value
    elif action == 4:
        model.producer_name = model.doc_string = model.graph.name = random_text(rng)
    else:
        prop.value = _clean(mutate_json_text(rng, prop.value))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def change_node(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change a node's operator, domain, overload, name, inputs or outputs."""
    node = _node(rng, model)
    action = rng.randrange(8)
    if action < 2:
        node.op_type = rng.choice(OPERATORS)
    elif action == 2:
        node.domain = rng.choice(DOMAINS)
    elif action == 3:
        node.overload = rng.choice(("a", "", random_text(rng)))
    elif action == 4:
        node.op_type = node.name = random_text(rng)
    else:
        names = node.input if rng.random() < 0.6 and node.input else node.output
        others = [name for other in model.graph.node for name in (*other.input, *other.output)]
        k = rng.randrange(len(names))
        if action == 5:
            names[k] = rng.choice([*others, "", random_text(rng)])
        elif action == 6:
            names.extend([rng.choice([*others, ""])] * rng.choice((1, 1, 2, 200)))
        else:
            del names[k]


def change_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change, add or remove an attribute; or let it refer to one of the function around it."""
    node = _node(rng, model)
    action = rng.randrange(6)
    if action == 0 or not node.attribute:
        name = rng.choice(
            (random_text(rng), "axis", "body", "to", "perm", "value", "num_scan_inputs", "then_branch")
        )
        value: Any = rng.choice(
            (rng.choice(INTEGERS[:20]), 0.5, "text", [1, 2], [0.5], model.graph, random_tensor(rng))
        )
        node.attribute.append(helper.make_attribute(name, value))
        return
    attribute = rng.choice(node.attribute)
    if action == 1:
        node.attribute.remove(attribute)
    elif action == 2:
        attribute.name, attribute.ref_attr_name = rng.choice(("axis", attribute.name)), random_text(rng)
    elif action == 3:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif action == 4:
        node.attribute.append(attribute)
    elif attribute.type == AttributeProto.INT:
        attribute.i = _int64(mutate_number(rng, attribute.i))
    elif attribute.type == AttributeProto.INTS:
        values = [_int64(mutate_number(rng, n)) if rng.random() < 0.4 else n for n in attribute.ints]
        attribute.ints[:] = values * rng.choice((1, 1, 2, 1000))
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS[:6])
    elif attribute.type == AttributeProto.TENSOR:
        change_values(rng, attribute.t)
    else:
        attribute.s = random_text(rng).encode()


def _int64(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def change_signature(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change name, type or shape of an input or output; add, double or remove one."""
    graph = rng.choice(all_graphs(model.graph))
    values = rng.choice((graph.input, graph.output, graph.value_info))
    action = rng.randrange(6)
    if action == 0 or not values:
        kind = rng.choice((1, 1, 7, 8, 9, 10, 11, 14, 0, 99))
        shape = [rng.choice((None, "N", *EXTENTS)) for _ in range(rng.randrange(6))]
        names = [name for node in graph.node for name in node.output]
        values.append(
            helper.make_tensor_value_info(rng.choice([*names, random_text(rng), "z"]), kind, shape)
        )
        return
    value = rng.choice(values)
    tensor = value.type.tensor_type
    if action == 1:
        values.append(value)
    elif action == 2:
        value.name = rng.choice((random_text(rng), "x", "y", "sizes"))
    elif action == 3:
        tensor.elem_type = rng.choice((*range(17), 99))
    elif action == 4:
        kinds = ("sequence_type", "optional_type", "map_type", "sparse_tensor_type")
        getattr(value.type, rng.choice(kinds)).SetInParent()
    elif rng.random() < 0.2:
        values.remove(value)
    else:
        tensor.shape.SetInParent()
        for _ in range(rng.choice((0, 1, 1, 40))):
            tensor.shape.dim.add(dim_value=rng.choice(EXTENTS))
        if tensor.shape.dim:
            rng.choice(tensor.shape.dim).dim_value = rng.choice(EXTENTS)


def change_function(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change a function's name, domain, overload, attributes or nodes; or make one and call it."""
    action = rng.randrange(6)
    if action < 2 or not model.functions:
        name = rng.choice(("f", rng.choice(OPERATORS), "If", "Loop"))
        domain = rng.choice(DOMAINS)
        inner = helper.make_node(rng.choice(("Neg", "Identity", name, *SHAPE_LIKE)), ["a"], ["b"])
        inner.domain = rng.choice(("", domain))
        opsets = [helper.make_opsetid(each, 18 if each == "" else 1) for each in ("", domain)]
        model.functions.append(
            helper.make_function(
                domain, name, ["a"], ["b"], [inner], opsets, attributes=rng.choice(([], ["k"]))
            )
        )
        if domain not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        _insert_call(rng, model.graph, name, domain)
        return
    called = rng.choice(model.functions)
    if action == 2:
        called.name = rng.choice((rng.choice(OPERATORS), random_text(rng)))
    elif action == 3:
        called.domain = rng.choice(DOMAINS)
    elif action == 4:
        caller = rng.choice(model.functions)
        caller.node.append(
            helper.make_node(called.name, list(caller.input), ["again"], domain=called.domain)
        )
    else:
        model.functions.append(called)
        model.functions[-1].overload = rng.choice(("", "o"))


def _insert_call(rng: random.Random, graph: onnx.GraphProto, name: str, domain: str, *more: str) -> None:
    """Insert a node between another node and those that read it."""
    if not graph.node:
        return
    k = rng.randrange(len(graph.node))
    if not graph.node[k].output:
        return
    output = graph.node[k].output[0]
    graph.node[k].output[0] = f"before-{k}"
    graph.node.insert(k + 1, helper.make_node(name, [f"before-{k}", *more], [output], domain=domain))


def insert_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    """Insert an operator that takes a shape from a constant, or that takes long."""
    graph = rng.choice(all_graphs(model.graph))
    name = rng.choice((*SHAPE_LIKE, *HEAVY, rng.choice(OPERATORS)))
    shape = [rng.choice(EXTENTS) for _ in range(rng.choice((1, 2, 4, 5, 2000)))]
    graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), "inserted"))
    _insert_call(rng, graph, name, "", *["inserted"] * rng.choice((0, 1, 1, 2)))


def change_model(rng: random.Random, model: onnx.ModelProto) -> None:
    """Change the versions, or copy, move or remove nodes."""
    action = rng.randrange(6)
    graph = rng.choice(all_graphs(model.graph))
    if action == 0:
        model.ir_version = rng.choice(EXTENTS[:9])
    elif action == 1:
        opset = rng.choice(model.opset_import)
        opset.version = rng.choice((0, 1, 7, 11, 13, 17, 19, 22, 25, 99))
    elif action == 2:
        model.opset_import.append(helper.make_opsetid(rng.choice((*DOMAINS, mutate_text(rng, "own"))), 1))
    elif graph.node:
        node = rng.choice(graph.node)
        if action == 3:
            graph.node.append(node)
        elif action == 4:
            graph.node.insert(rng.randrange(len(graph.node)), node)
        else:
            graph.node.remove(node)


def _donate(rng: random.Random, model: onnx.ModelProto, donor: onnx.ModelProto) -> None:
    """Take something from another model."""
    action = rng.randrange(4)
    if action == 0:
        model.graph.node.append(_node(rng, donor))
    elif action == 1:
        model.functions.extend(donor.functions)
    elif action == 2:
        del model.metadata_props[:]
        model.metadata_props.extend(donor.metadata_props)
    else:
        model.graph.CopyFrom(donor.graph)


CHANGES: dict[str, Change] = {
    "metadata": change_metadata,
    "node": change_node,
    "attribute": change_attribute,
    "tensor": change_tensors,
    "signature": change_signature,
    "function": change_function,
    "insert": insert_operator,
    "model": change_model,
}
WEIGHTED = (*CHANGES, "donate", "metadata", "metadata", "metadata", "attribute", "tensor", "insert")
