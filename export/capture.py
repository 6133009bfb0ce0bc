"""From torch to a graph of ONNX in which each sweep is one node, `mdlstm::Wavefront`.

If the exporter traced the loop over the wavefronts instead, it would take minutes and fix the batch size.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import defs
from onnx_ir.passes.common import NameFixPass
from onnxscript import opset18 as op
from onnxscript import optimizer, values
from torch import Tensor, nn

from mdlstm_tk import sweep as _registers_the_operator  # noqa: F401
from mdlstm_tk._util.text import reason_of
from mdlstm_tk.cells.step import cell_of_graph
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.conditions import SMALL, Conditions, expr_of
from mdlstm_tk.export.torch_ops import TRANSLATIONS, inexact_rounding
from mdlstm_tk.inputs import TENSORS, SweepInputs

DOMAIN = "mdlstm"
OPSET = 18  # has LayerNormalization (from 17 on); ONNX Runtime 1.20, the oldest supported, reads up to 21
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
LOCK = threading.RLock()  # of what an export changes in this process
AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument `custom_translation_table` for calls of `torch.onnx.export`.

    It translates each sweep into one `mdlstm::Wavefront` node; `lower` replaces these nodes by standard
    operators.

    >>> program = torch.onnx.export(net, (x,), dynamo=True, custom_translation_table=translation_table())
    >>> model = lower(program.model_proto, "unrolled")
    """
    _register_schema()
    return {torch.ops.mdlstm.wavefront.default: _translate, **TRANSLATIONS}


@dataclass(frozen=True)
class Captured:
    """A graph with a node for each sweep, and what torch knows about it.

    Attributes:
        model: the graph.
        conditions: those that forward asks of free extents.
        shapes: the shape of each output by name, in the symbols of the conditions.
    """

    model: onnx.ModelProto
    conditions: Conditions
    shapes: Mapping[str, Sequence[Any]]


def capture(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    free_axes: Mapping[str, Sequence[int]] | None = None,
    output_names: Sequence[str] = ("y",),
    least: Sequence[int] = (),
    multiples: Sequence[int] = (),
) -> Captured:
    """Capture a network that returns tensors, with a free batch.

    Args:
        network: a `Network`, or another module.
        inputs: by name, float32 or int64, x first. Extents that are free must be different, and large, as
            torch takes an extent of 1 for a constant, in the middle of a network as well.
        free_axes: of each input that has more of them than the batch; they are equal, one by one.
        output_names: in the order in which the network returns the outputs.
        least, multiples: of the free axes, in order; what their extents are at least, and multiples of.

    Raises:
        MDLSTMError: torch cannot capture the network, or it decides by an extent, or rounds what it
            computes of one.
    """
    name = getattr(network, "name", type(network).__name__)
    axes = {key: [0, *(free_axes or {}).get(key, ())] for key in inputs}
    try:
        program = traced(network, inputs, axes)
        conditions, first = Conditions.of(program, axes), axes["x"]
        starts = dict(zip(first, [2, *(least or [SMALL] * len(first))], strict=False))
        units = dict(zip(first, [1, *(multiples or [1] * len(first))], strict=False))
        if reason := conditions.refused(starts, units):
            raise MDLSTMError(
                f"{name} cannot be exported{' for any size' if first[1:] else ''}: its forward asks "
                f"whether {reason}; a file has one answer, so compute both, or export it for one grid"
            )
        if inexact_rounding(program.graph):
            raise MDLSTMError(
                f"torch cannot export {name}: its forward rounds what it computes from an extent, which a "
                "file has in float32; compute it with integers, such as 7 * n // 10"
            )
        with silenced():
            written = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(inputs),
                output_names=list(output_names),
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                verbose=False,
                optimize=False,  # its rules take an addition of 1e-8 for one of 0, and drop it
            )
            assert written is not None
            optimizer.inline(written.model)
            optimizer.fold_constants(written.model, onnx_shape_inference=True)
            optimizer.remove_unused_nodes(written.model)
            NameFixPass()(written.model)  # torch gives the name of an output to another value, too
    except MDLSTMError:
        raise
    except Exception as error:  # of all kinds, which an operator or torch raises
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise MDLSTMError(f"torch cannot export {name}: {reason_of(cause)}") from error
    model: onnx.ModelProto = written.model_proto
    output = next(node for node in program.graph.nodes if node.op == "output")
    shapes = [[*map(expr_of, node.meta["val"].shape)] for node in output.args[0]]
    names = ("batch", *AXES.get(len(first) - 1, ()), *(f"extent_{d}" for d in range(9)))
    known = {str(s): word for s, word in zip(conditions.symbols.values(), names, strict=False)}
    for value in (*model.graph.input, *model.graph.output):
        for k, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = known.get(dim.dim_param, "batch" if k == 0 else f"{value.name}_{k}")
    return Captured(model, conditions, dict(zip(output_names, shapes, strict=True)))


def traced(
    network: nn.Module, inputs: Mapping[str, Tensor], axes: Mapping[str, Sequence[int]]
) -> torch.export.ExportedProgram:
    """The program of a network, with these axes of its inputs free."""
    first, *further = (dict.fromkeys(of_input, torch.export.Dim.AUTO) for of_input in axes.values())
    is_network = hasattr(network, "names")  # it takes the further inputs as *further
    with silenced(), torch.no_grad():
        return torch.export.export(
            network,
            tuple(inputs.values()),
            dynamic_shapes=(first, *([tuple(further)] if further and is_network else further)),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _translate(*arguments: Any) -> Any:
    """Translate a call of the wavefront operator into one node."""
    inputs = SweepInputs(*arguments[: len(SweepInputs._fields)])
    grid = [extent if isinstance(extent, int) else -1 for extent in inputs.x.shape[1:-1]]
    name = arguments[len(TENSORS) + 1]
    cell_of_graph(name, len(grid), inputs.present)  # else torch would write a graph that nothing can lower
    attributes = {"directions": list(inputs.signs), "grid": grid, "cell": name}
    y, final = values.Opset(DOMAIN, 1).Wavefront(*inputs[: len(TENSORS)], **attributes)
    unused = op.Constant(value_floats=[0.0])  # the last two are for the backward pass only
    return y, unused if inputs.initial is None else final, unused, unused


def _register_schema() -> None:
    """Register the node of a sweep with onnx; onnxscript refuses to build nodes without a schema."""
    if defs.has("Wavefront", domain=DOMAIN):
        return
    schema, kinds = defs.OpSchema, defs.OpSchema.AttrType
    optional = schema.FormalParameterOption.Optional
    types = {"initial": "S", "final": "S", "sizes": "tensor(int64)"}

    def parameters(required: str, *others: str) -> list[defs.OpSchema.FormalParameter]:
        further = [schema.FormalParameter(n, types.get(n, "T"), param_option=optional) for n in others]
        return [schema.FormalParameter(required, "T"), *further]

    floats = ["tensor(float)", "tensor(float16)", "tensor(double)"]
    defs.register_schema(
        schema(
            "Wavefront",
            DOMAIN,
            1,
            doc="The sweep of a layer over a grid; `final` is there if `initial` is.",
            inputs=parameters(*TENSORS),
            outputs=parameters("y", "final"),
            type_constraints=[("T", floats, ""), ("S", floats, "")],
            attributes=[
                schema.Attribute("directions", kinds.INTS, "dirs × D signs, 1 or −1"),
                schema.Attribute("grid", kinds.INTS, "extents, −1 where an extent is free"),
                schema.Attribute("cell", kinds.STRING, "name of the cell, see `graph_name`"),
            ],
        )
    )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress the exporter's notes, its warnings, and the pages of a graph that it prints before an error;
    and the caller's autocast.

    One thread at a time: levels of logging and filters of warnings belong to the process, and two threads
    would restore each other's.
    """
    # A captured network loses the names of its modules inside of a context of autocast.
    is_on = torch.is_autocast_enabled("cpu")
    with LOCK, torch.autocast("cpu", enabled=False) if is_on else contextlib.nullcontext():
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.ERROR))
        try:
            with (
                warnings.catch_warnings(action="ignore"),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                torch.fx.experimental._config.patch(backed_size_oblivious=True),  # type: ignore[attr-defined]
            ):
                yield
        finally:
            logging.disable(disabled)
