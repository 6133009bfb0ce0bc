"""Check an untrusted model before ONNX Runtime sees a byte of it.

A model passes if it is like the ones that `mdlstm_tk.export` writes:
- its messages have the fields that exported messages have, see schema.py;
- its operators and their attributes are in the table of operators.py;
- its functions are in the domain of exported functions, take no attributes, and call no functions;
- its only control flow is Scan, and no Scan is inside another one or inside a function;
- each value is defined once, before it is used, in the graph that uses it; bodies may also use constants;
- no value can get more than `MAX_RANK` axes, see bounds.py;
- its inputs, outputs and stored tensors are tensors of numbers, and lie in the file as a whole;
- it stays within the limits on nodes, arguments and bytes with all functions expanded.

Everything else is refused, with one line that says what it is.

Limits: without isolation (`mdlstm_tk.runtime.isolation`), a single operator on large tensors runs until it
is done, whatever the timeout. ONNX Runtime itself is trusted with every model that passes. Run models from
determined attackers in a container.
"""

from __future__ import annotations

from mdlstm_tk.errors import InputError
from mdlstm_tk.runtime.io.npy import MAX_BYTES
from mdlstm_tk.runtime.security.graphs import GraphCheck
from mdlstm_tk.runtime.security.interface import ModelSummary, read_opsets, read_properties
from mdlstm_tk.runtime.security.operators import FUNCTION_DOMAIN, FUNCTION_OPSET, IR_VERSION, OPSET
from mdlstm_tk.runtime.security.protobuf import Reader
from mdlstm_tk.runtime.security.refusal import Refusal
from mdlstm_tk.runtime.security.schema import MODEL, Content


def check_model(data: bytes, label: str, max_bytes: int = MAX_BYTES) -> ModelSummary:
    """Check that a model holds nothing but what exported models hold.

    Args:
        data: content of the `.onnx` file.
        label: what error messages call the model.
        max_bytes: maximum size in bytes of the file with all its functions expanded.

    Returns:
        What the file says about the model's inputs and outputs, and its metadata.

    Raises:
        InputError: the model is refused, or is not an ONNX model; the message says why.
    """
    try:
        return _summary(data, max_bytes)
    except Refusal as refusal:
        raise InputError(f"{label} {refusal}") from None


def _summary(data: bytes, max_bytes: int) -> ModelSummary:
    if len(data) > max_bytes:
        raise Refusal(f"takes {len(data)} bytes, more than {max_bytes}; allow more with --max-bytes")
    reader = Reader(data)
    content = Content(reader, MODEL, 0, len(data))
    graph = content.span("graph")
    if graph is None:
        raise Refusal("is not a model that ONNX Runtime can load: it holds no graph")
    opsets = read_opsets(reader, content.spans("opset_import"))
    expected = {b"": OPSET}
    # A model without functions may keep their domain: onnx's inliner leaves it in the file.
    if content.spans("functions") or FUNCTION_DOMAIN in opsets:
        expected[FUNCTION_DOMAIN] = FUNCTION_OPSET
    version = content.number("ir_version")
    if version != IR_VERSION or opsets != expected:
        raise Refusal(
            f"is not in the version of ONNX that `mdlstm export` writes: expected IR version {IR_VERSION} "
            f"with version {OPSET} of the standard operators"
        )
    properties = read_properties(reader, content.spans("metadata_props"))
    check = GraphCheck(reader, max_bytes)
    for span in content.spans("functions"):
        check.read_function(*span)
    inputs, outputs = check.check_graph(*graph)
    return ModelSummary(inputs, outputs, properties)
