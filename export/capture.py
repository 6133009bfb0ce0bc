"""Stage one: `torch.onnx.export`, with each sweep as a single `mdlstm::Wavefront` node.

Letting the exporter trace the sweep's loop instead takes minutes and fixes the batch size.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import defs
from onnxscript import opset18 as op
from onnxscript import values
from torch import Tensor, nn

from mdlstm_tk import op as _registers_the_operator  # noqa: F401
from mdlstm_tk.errors import MDLSTMError

DOMAIN = "mdlstm"
OPSET = 18  # ONNX Runtime 1.20, the oldest supported, knows up to 21; LayerNormalization came with 17
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`: how the wavefront operator is translated.

    The model that comes out still holds `mdlstm::Wavefront` nodes; `lower` replaces them.
    """
    _register_schema()
    return {torch.ops.mdlstm.wavefront.default: _translate}


def capture(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """The module as ONNX, one node a sweep, first axis of input "x" and output "y" free.

    Args:
        module: in eval mode, from one tensor to one tensor.
        example: an input; its batch must be at least 2, as 1 would be taken for a constant.

    Raises:
        MDLSTMError: torch cannot export the module; names torch's reason.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise MDLSTMError(f"torch cannot export {type(module).__name__}: {reason}") from error
    assert program is not None
    return program.model_proto


def _translate(
    x: Any,
    weight_ih: Any,
    weight_hh: Any,
    bias: Any,
    peephole: Any,
    norm_weight: Any,
    norm_bias: Any,
    sizes: Any,
    directions: Sequence[int],
    cell: str,
    *_: Any,
) -> Any:
    """The sweep as one node."""
    grid = [extent if isinstance(extent, int) else -1 for extent in x.shape[1:-1]]
    y = values.Opset(DOMAIN, 1).Wavefront(
        x,
        weight_ih,
        weight_hh,
        bias,
        peephole,
        norm_weight,
        norm_bias,
        sizes,
        directions=list(directions),
        grid=grid,
        cell=cell,
    )
    unused = op.Constant(value_floats=[0.0])  # what backward needs, and nobody reads here
    return y, unused, unused


def _register_schema() -> None:
    """Tell onnx of `mdlstm::Wavefront`, which onnxscript refuses to build otherwise."""
    if defs.has("Wavefront", domain=DOMAIN):
        return
    schema = defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    kinds = schema.AttrType if hasattr(schema, "AttrType") else defs.OpSchema.AttrType
    defs.register_schema(
        schema(
            "Wavefront",
            DOMAIN,
            1,
            doc="A multi-dimensional LSTM's sweep over a grid.",
            inputs=[
                schema.FormalParameter("x", "T"),
                schema.FormalParameter("weight_ih", "T"),
                schema.FormalParameter("weight_hh", "T"),
                schema.FormalParameter("bias", "T", param_option=optional),
                schema.FormalParameter("peephole", "T", param_option=optional),
                schema.FormalParameter("norm_weight", "T", param_option=optional),
                schema.FormalParameter("norm_bias", "T", param_option=optional),
                schema.FormalParameter("sizes", "tensor(int64)", param_option=optional),
            ],
            outputs=[schema.FormalParameter("y", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
            attributes=[
                schema.Attribute("directions", kinds.INTS, "dirs × D signs"),
                schema.Attribute("grid", kinds.INTS, "the extents, −1 where they are free"),
                schema.Attribute("cell", kinds.STRING, "its name"),
            ],
        )
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that are not needed and on its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
