"""What a model says about its inputs, its outputs and itself, read before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mdlstm_tk.runtime.security.operators import NUMBER_TYPES
from mdlstm_tk.runtime.security.protobuf import Reader
from mdlstm_tk.runtime.security.refusal import Refusal, holds, printable
from mdlstm_tk.runtime.security.schema import (
    DIMENSION,
    OPSET,
    PROPERTY,
    SHAPE,
    TENSOR_TYPE,
    TYPE,
    VALUE,
    Content,
    Span,
)
from mdlstm_tk.runtime.security.tensors import MAX_EXTENT


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: its name.
        dtype: NumPy's name for the type of its elements, such as "float32".
        shape: its extents, None where an extent is free; the first axis is the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ModelSummary:
    """What a file says about a model, whatever ONNX Runtime makes of it.

    Attributes:
        inputs: in the order of the file.
        outputs: in the order of the file.
        metadata_props: the entries of `metadata_props`, as they are in the file.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata_props: Mapping[str, str]


def read_value(reader: Reader, start: int, end: int) -> TensorSpec:
    """Read the declaration of an input or output: a tensor of numbers with a known number of axes.

    Raises:
        Refusal: it is something else.
    """
    content = Content(reader, VALUE, start, end)
    name = _text(content.text("name"), "the name of an input or output")
    if not name:
        raise holds("an input or output without a name")
    type_span = content.span("type")
    tensor_span = Content(reader, TYPE, *type_span).span("tensor_type") if type_span else None
    if tensor_span is None:
        raise holds(f"{name!a} without a type")
    tensor = Content(reader, TENSOR_TYPE, *tensor_span)
    number_type, shape_span = tensor.number("elem_type") or 0, tensor.span("shape")
    if number_type not in NUMBER_TYPES:
        raise holds(f"{name!a}, which is no tensor of numbers")
    if shape_span is None:
        raise holds(f"{name!a} with an unknown number of axes")
    shape = [_extent(reader, *span) for span in Content(reader, SHAPE, *shape_span).spans("dim")]
    return TensorSpec(name, NUMBER_TYPES[number_type][0], tuple(shape))


def _extent(reader: Reader, start: int, end: int) -> int | None:
    content = Content(reader, DIMENSION, start, end)
    extent = content.number("dim_value")
    if extent is not None and ("dim_param" in content or extent > MAX_EXTENT):
        raise holds("an extent that is no number of positions")
    return extent


def read_properties(reader: Reader, spans: list[Span]) -> dict[str, str]:
    """Read the entries of `metadata_props`.

    Raises:
        Refusal: two entries have the same key, or an entry is not UTF-8.
    """
    properties: dict[str, str] = {}
    for span in spans:
        content = Content(reader, PROPERTY, *span)
        key = _text(content.text("key"), "a key of metadata_props")
        if key in properties:
            raise holds(f"two entries {printable(key.encode())} of metadata_props")
        properties[key] = _text(
            content.text("value"), f"the entry {printable(key.encode())} of metadata_props"
        )
    return properties


def read_opsets(reader: Reader, spans: list[Span]) -> dict[bytes, int | None]:
    """Read the version of each domain in `opset_import`."""
    contents = [Content(reader, OPSET, *span) for span in spans]
    opsets = {content.text("domain"): content.number("version") for content in contents}
    if len(opsets) < len(contents):
        raise holds("a domain with two versions")
    return opsets


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refusal(
            f"has damaged metadata or names: {what} is not UTF-8; export the model again"
        ) from None
