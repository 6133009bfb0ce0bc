"""First stage of an export: `torch.onnx.export`, with each sweep as one node.

The node is `mdlstm::Wavefront`, or `mdlstm::WavefrontStates` for a sweep with initial and final states. If
the exporter traced the loop over the wavefronts instead, it would take minutes and fix the batch size.
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
from mdlstm_tk import state_operator as _registers_the_state_operator  # noqa: F401
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.outputs import named_outputs

DOMAIN = "mdlstm"
OPSET = 18  # has LayerNormalization (from 17 on); ONNX Runtime 1.20, the oldest supported, reads up to 21
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
SWEEP_ARGUMENTS = 10  # of a wavefront operator: what a `SweepInputs` holds
EXTENT_NAMES = {1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"]}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument `custom_translation_table` for calls of `torch.onnx.export`.

    It translates each sweep into one `mdlstm::Wavefront` node, or `mdlstm::WavefrontStates` if it has
    states; `lower` replaces these nodes by standard operators.

    >>> program = torch.onnx.export(net, (x,), dynamo=True, custom_translation_table=translation_table())
    >>> model = lower(program.model_proto, "unrolled")
    """
    _register_schemas()
    return {
        torch.ops.mdlstm.wavefront.default: _translate,
        torch.ops.mdlstm.wavefront_states.default: _translate_states,
    }


def capture(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    free_axes: Mapping[int, int] | None = None,
    output_names: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """Export a module to ONNX with each sweep as one node and the batch axis free.

    Args:
        module: a network in eval mode that returns tensors, see `named_outputs`.
        examples: its inputs by name, float32 or int64. The first is passed by position and the others by
            name; floating-point inputs are cast to the dtype of the module's parameters. The batch must be
            at least 2, because torch treats an extent of 1 as a constant.
        free_axes: further axes of the first input that are free, and the number that the extent of each is
            a multiple of. Their extents in the example must be at least 2.
        output_names: names of the outputs, in the order in which the module returns them.

    Returns:
        The model; its inputs have the names in `examples`.

    Raises:
        MDLSTMError: torch cannot export the module; the message contains torch's reason.
    """
    first_name, *extra_names = examples
    batch = torch.export.Dim("batch")
    free_axes = free_axes or {}
    extent_names = EXTENT_NAMES.get(len(free_axes), [f"extent_{d + 1}" for d in range(len(free_axes))])
    extents: dict[int, Any] = {}
    for (axis, multiple), name in zip(free_axes.items(), extent_names, strict=True):
        extents[axis] = torch.export.Dim(name) if multiple == 1 else multiple * torch.export.Dim(name)
    dynamic_shapes: list[Any] = [{0: batch, **extents}]
    if extra_names:
        dynamic_shapes.append(tuple({0: batch} for _ in extra_names))
    try:
        with exporter_silenced(), torch.no_grad():
            program = torch.onnx.export(
                _Float32Interface(module, extra_names),
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=list(output_names),
                dynamic_shapes=tuple(dynamic_shapes),
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, AssertionError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise MDLSTMError(f"torch cannot export {type(module).__name__}: {reason}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for value in model.graph.input:
        for axis in (0, *(free_axes if value.name == first_name else ())):
            extent = value.type.tensor_type.shape.dim[axis]
            if not extent.dim_param:
                raise MDLSTMError(
                    f"torch cannot export {type(module).__name__} with axis {axis} of {value.name} free: "
                    f"the network's forward fixes that extent to {extent.dim_value}"
                )
    return model


class _Float32Interface(nn.Module):
    """Wraps a module of any floating-point dtype so that its floating-point inputs and outputs are float32.
    Integers stay as they are."""

    def __init__(self, module: nn.Module, extra_names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.extra_names = extra_names
        parameter = next(module.parameters(), None)
        self.dtype = torch.float32 if parameter is None else parameter.dtype

    def forward(self, x: Tensor, *extra_inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.extra_names, map(self._to_module_dtype, extra_inputs), strict=True))
        result = self.module(self._to_module_dtype(x), **named)
        outputs = named_outputs(result, type(self.module).__name__).values()
        return tuple(y.float() if y.is_floating_point() else y for y in outputs)

    def _to_module_dtype(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def _translate(*arguments: Any) -> Any:
    """Translate a call of the wavefront operator into one node."""
    tensors, attributes = _content(arguments)
    y = values.Opset(DOMAIN, 1).Wavefront(*tensors, **attributes)
    unused = op.Constant(value_floats=[0.0])  # outputs 2 and 3 are for the backward pass only
    return y, unused, unused


def _translate_states(*arguments: Any) -> Any:
    """Translate a call of the wavefront operator with states into one node."""
    *content, h_first, c_first = arguments[: SWEEP_ARGUMENTS + 2]
    tensors, attributes = _content(content)
    results = values.Opset(DOMAIN, 1).WavefrontStates(*tensors, h_first, c_first, **attributes)
    unused = op.Constant(value_floats=[0.0])  # outputs 4 and 5 are for the backward pass only
    return *results, unused, unused


def _content(arguments: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The inputs and the attributes of a node, from the first arguments of a wavefront operator."""
    *tensors, directions, cell = arguments[:SWEEP_ARGUMENTS]
    grid = [extent if isinstance(extent, int) else -1 for extent in tensors[0].shape[1:-1]]
    return tensors, {"directions": list(directions), "grid": grid, "cell": cell}


def _register_schemas() -> None:
    """Register the nodes of sweeps with onnx; onnxscript refuses to build nodes without a schema."""
    if defs.has("Wavefront", domain=DOMAIN):
        return
    schema = defs.OpSchema
    optional = schema.FormalParameterOption.Optional
    kinds = schema.AttrType if hasattr(schema, "AttrType") else defs.OpSchema.AttrType
    tensors = [
        schema.FormalParameter("x", "T"),
        schema.FormalParameter("weight_ih", "T"),
        schema.FormalParameter("weight_hh", "T", param_option=optional),
        schema.FormalParameter("bias", "T", param_option=optional),
        schema.FormalParameter("peephole", "T", param_option=optional),
        schema.FormalParameter("norm_weight", "T", param_option=optional),
        schema.FormalParameter("norm_bias", "T", param_option=optional),
        schema.FormalParameter("sizes", "tensor(int64)", param_option=optional),
    ]
    attributes = [
        schema.Attribute("directions", kinds.INTS, "dirs × D signs, 1 or −1"),
        schema.Attribute("grid", kinds.INTS, "extents, −1 where an extent is free"),
        schema.Attribute("cell", kinds.STRING, "name of the cell"),
    ]
    y = schema.FormalParameter("y", "T")
    states = [
        [schema.FormalParameter(f"{name}_{end}", kind) for name, kind in (("h", "T"), ("c", "S"))]
        for end in ("first", "last")
    ]
    floats = ["tensor(float)", "tensor(float16)", "tensor(double)"]
    for name, doc, further, outputs in (
        ("Wavefront", "A multi-dimensional LSTM's sweep over a grid.", [], [y]),
        ("WavefrontStates", "The same from initial to final states.", states[0], [y, *states[1]]),
    ):
        defs.register_schema(
            schema(
                name,
                DOMAIN,
                1,
                doc=doc,
                inputs=[*tensors, *further],
                outputs=outputs,
                type_constraints=[("T", floats, ""), ("S", floats, "")][: 2 if further else 1],
                attributes=attributes,
            )
        )


@contextlib.contextmanager
def exporter_silenced() -> Iterator[None]:
    """Suppress the exporter's notes about optional packages and its own deprecation warnings."""
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
