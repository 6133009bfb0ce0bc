"""Stage one: `torch.onnx.export`, with each sweep as a single `mdlstm::Wavefront` node.

Letting the exporter trace the sweep's loop instead takes minutes and fixes the batch size.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import defs
from onnxscript import opset18 as op
from onnxscript import values
from torch import Tensor, nn

from mdlstm_tk import operator as _registers_the_operator  # noqa: F401
from mdlstm_tk.errors import MDLSTMError

DOMAIN = "mdlstm"
OPSET = 18  # ONNX Runtime 1.20, the oldest supported, knows up to 21; LayerNormalization came with 17
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
EXTENTS = {1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"]}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`: how the wavefront operator is translated.

    The model that comes out still holds `mdlstm::Wavefront` nodes; `lower` replaces them.
    """
    _register_schema()
    return {torch.ops.mdlstm.wavefront.default: _translate}


def capture(
    module: nn.Module, examples: Mapping[str, Tensor], free_axes: Sequence[int] = ()
) -> onnx.ModelProto:
    """The module as ONNX, one node a sweep, the batch of its inputs and of its output "y" free.

    Args:
        module: in eval mode, to one tensor.
        examples: its inputs by name, all float32 or int64: the first is given to it by position, in the
            dtype of its parameters, the others by name. Batches must be of at least 2, as 1 would be
            taken for a constant.
        free_axes: of the first input that are free as well, with extents of at least 2 in the example.

    Raises:
        MDLSTMError: torch cannot export the module; names torch's reason.
    """
    x, *others = examples.values()
    batch = torch.export.Dim("batch")
    names = EXTENTS.get(len(free_axes), [f"extent_{d + 1}" for d in range(len(free_axes))])
    extents = {axis: torch.export.Dim(name) for axis, name in zip(free_axes, names, strict=True)}
    dynamic: list[Any] = [{0: batch, **extents}]
    if others:
        dynamic.append(tuple({0: batch} for _ in others))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _InFloat32(module, list(examples)[1:]),
                (x, *others),
                dynamo=True,
                input_names=list(examples),
                output_names=["y"],
                dynamic_shapes=tuple(dynamic),
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0]
        raise MDLSTMError(f"torch cannot export {type(module).__name__}: {reason}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for value in model.graph.input:
        for axis in (0, *(free_axes if value.name == next(iter(examples)) else ())):
            extent = value.type.tensor_type.shape.dim[axis]
            if not extent.dim_param:
                raise MDLSTMError(
                    f"torch cannot export {type(module).__name__} with axis {axis} of {value.name} free: "
                    f"its forward fixes that extent to {extent.dim_value}"
                )
    return model


class _InFloat32(nn.Module):
    """A module of any dtype as one that takes and returns float32."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.dtype = next(module.parameters()).dtype

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        named = dict(zip(self.names, map(self._own, others), strict=True))
        y: Tensor = self.module(self._own(x), **named)
        return y.float()

    def _own(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


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
