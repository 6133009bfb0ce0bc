"""The table of operators that models may use is what exports emit: not less, and not more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import onnx
import pytest
from helpers import layers
from helpers.sweeps import FORMS, GRIDS, Sweep
from mdlstm_tk.runtime.security import operators
from mdlstm_tk.runtime.security.model_check import check_model
from mdlstm_tk.runtime.security.operators import INT, OPERATORS, STRING
from onnx import defs

from mdlstm_tk.cells import BUILT_IN_CELLS
from mdlstm_tk.export import capture, lower
from mdlstm_tk.export.lowering import functions
from mdlstm_tk.export.lowering.functions import outline
from mdlstm_tk.export.lowering.lower import walk
from mdlstm_tk.export.quantization import quantize

Form = tuple[bytes, bytes, object]
"""An operator, one of its attributes, and its value if the attribute is an enumeration."""

OPTIONS: dict[str, dict] = {
    "no bias, float16": {"bias": False, "dtype": np.float16},
    "peephole, layer norm": {"peephole": True, "layer_norm": True},
    "many units": {"units": 65, "directions": [(-1, 1), (-1, -1)]},
    **{cell: {"cell": cell, "directions": "all"} for cell in BUILT_IN_CELLS},
}


def sweeps() -> Iterator[onnx.ModelProto]:
    """Every form and option of a sweep, also in int8 and with functions."""
    cases = [(2, options) for options in OPTIONS.values()]
    cases += [(ndim, {"ndim": ndim, "cell": "stable", "directions": 1}) for ndim in GRIDS]
    cases.append((3, {"ndim": 3, "directions": [(1, 1, 1), (-1, 1, -1)]}))
    for ndim, options in cases:
        sweep, grid = Sweep.random(**options), GRIDS[ndim]
        for form in FORMS:
            captured = sweep.captured([-1] * ndim if form.endswith("free") else grid, sizes=True)
            for int8 in (False, True)[: 1 if "dtype" in options else 2]:
                model = lower(captured, form.split(",")[0], separate_products=int8)
                model = quantize(model) if int8 else model
                yield model
                if form == "unrolled":
                    yield outline(model)


@pytest.fixture(scope="module")
def models() -> list[onnx.ModelProto]:
    exported = [layers.exported(group, any_grid=True) for group in layers.ANY_GRID]
    exported += [layers.exported(group) for group in layers.ONE_GRID]
    return [*exported, *sweeps()]


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from walk(chain(model.graph.node, *(function.node for function in model.functions)))


def test_whatever_is_exported_passes(models: list[onnx.ModelProto]) -> None:
    for model in models:
        summary = check_model(model.SerializeToString(), "the model")
        declared = [[value.name for value in values] for values in (model.graph.input, model.graph.output)]
        assert [
            [value.name for value in values] for values in (summary.inputs, summary.outputs)
        ] == declared


def forms_of(name: bytes, attribute: bytes) -> set[Form]:
    """What the table says about an attribute: one form, or one for each value of an enumeration."""
    values = OPERATORS[name].attributes[attribute].values
    return {(name, attribute, value) for value in values} if values else {(name, attribute, None)}


def test_whatever_is_allowed_is_exported(models: list[onnx.ModelProto]) -> None:
    emitted: set[Form] = set()
    names = set()
    for node in chain.from_iterable(map(nodes, models)):
        name = node.op_type.encode()
        names.add(name)
        for attribute in node.attribute:
            key = attribute.name.encode()
            value = {INT: attribute.i, STRING: attribute.s}.get(attribute.type)
            enumerated = not node.domain and OPERATORS[name].attributes[key].values is not None
            emitted.add((name, key, value if enumerated else None))
    allowed = {
        form for name, op in OPERATORS.items() for key in op.attributes for form in forms_of(name, key)
    }
    assert set(OPERATORS) - names == set()
    assert allowed - emitted == set()


def test_the_table_agrees_with_the_definitions_of_onnx() -> None:
    for name, operator in OPERATORS.items():
        schema = defs.get_schema(name.decode(), operators.OPSET)
        assert operator.min_inputs >= schema.min_input, name
        assert operator.max_inputs <= schema.max_input, name
        assert operator.max_outputs <= schema.max_output, name
        kinds = {key: int(attribute.type.value) for key, attribute in schema.attributes.items()}
        for key, attribute in operator.attributes.items():
            assert kinds[key.decode()] == attribute.kind, (name, key)
        required = {key for key, attribute in schema.attributes.items() if attribute.required}
        assert required <= {key.decode() for key in operator.attributes}, name


def test_the_versions_are_those_of_exports() -> None:
    assert (operators.OPSET, operators.IR_VERSION) == (capture.OPSET, capture.IR_VERSION)
    assert operators.FUNCTION_DOMAIN.decode() == functions.DOMAIN
