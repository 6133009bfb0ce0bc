"""Check the attributes of a node against the table of operators."""

from __future__ import annotations

import struct
from math import isfinite, prod

from mdlstm_tk.runtime.security.operators import (
    FLOAT,
    GRAPH,
    INT,
    INTS,
    STRING,
    TENSOR,
    Attribute,
    Operator,
)
from mdlstm_tk.runtime.security.protobuf import Reader, signed
from mdlstm_tk.runtime.security.refusal import holds, printable
from mdlstm_tk.runtime.security.schema import ATTRIBUTE, Content, Span
from mdlstm_tk.runtime.security.tensors import read_tensor

VALUE_FIELDS = {FLOAT: "f", INT: "i", STRING: "s", TENSOR: "t", GRAPH: "g", INTS: "ints"}

Values = dict[bytes, int | bytes]
"""The integers and strings among the attributes of a node, and the type of a tensor, by name."""


def read_attributes(
    reader: Reader, name: bytes, operator: Operator, spans: list[Span]
) -> tuple[Values, Span]:
    """Check the attributes of a node.

    Args:
        reader: of the file.
        name: of the operator.
        operator: what the table says about it.
        spans: where the attributes lie in the file.

    Returns:
        The integers and strings among them, and where the body lies, which is (0, 0) if there is none.

    Raises:
        Refusal: an attribute is not in the table, has another type, or a value that it may not have.
    """
    values: Values = {}
    body = (0, 0)
    seen = set()
    for span in spans:
        content = Content(reader, ATTRIBUTE, *span)
        key = content.text("name")
        expected = operator.attributes.get(key)
        if expected is None:
            raise holds(f"the attribute {printable(key)} of {name.decode()}")
        if key in seen:
            raise holds(f"the attribute {printable(key)} of {name.decode()} twice")
        seen.add(key)
        field = VALUE_FIELDS[expected.kind]
        allowed = {"name", "type", field}
        # Without elements, a list leaves no trace in the file.
        if (
            content.number("type") != expected.kind
            or not allowed - ({"ints"} & allowed) <= content.names() <= allowed
        ):
            raise holds(f"the attribute {key.decode()} of {name.decode()} with a wrong type")
        if expected.kind == GRAPH:
            body = content.spans(field)[0]
        elif not _is_valid(reader, content, expected, field):
            raise holds(
                f"the attribute {key.decode()} of {name.decode()} with a value that no export gives it"
            )
        elif expected.kind == INT:
            values[key] = signed(content.numbers(field)[0])
        elif expected.kind == STRING:
            values[key] = content.text(field)
        elif expected.kind == TENSOR:
            values[key] = read_tensor(reader, *content.spans(field)[0]).data_type
    return values, body


def _is_valid(reader: Reader, content: Content, expected: Attribute, field: str) -> bool:
    if expected.kind == FLOAT:
        return isfinite(struct.unpack("<f", content.text(field))[0])
    if expected.kind == TENSOR:
        return read_tensor(reader, *content.spans(field)[0]).bound[:2] == (1, 1)
    if expected.kind == STRING:
        text = content.text(field)
        if expected.pattern is not None:
            return expected.pattern.fullmatch(text) is not None
        return text in (expected.values or ())
    numbers = [signed(value) for value in content.numbers(field)]
    if expected.values is not None:
        return numbers[0] in expected.values
    within = all(expected.lowest <= number <= expected.highest for number in numbers)
    return within and (expected.limit is None or prod(numbers) <= expected.limit)
