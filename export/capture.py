"""First stage of an export: `torch.onnx.export`, with each sweep as one node.

The node is `mdlstm::Wavefront`. If the exporter traced the loop over the wavefronts instead, it would take
minutes and fix the batch size.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice, permutations
from math import prod
from typing import Any

import onnx
import sympy
import torch
from onnx import defs
from onnxscript import opset18 as op
from onnxscript import values
from torch import Tensor, nn

from mdlstm_tk import sweep as _registers_the_operator  # noqa: F401
from mdlstm_tk._util.text import reason_of
from mdlstm_tk.cells.step import cell_of_graph
from mdlstm_tk.errors import MDLSTMError
from mdlstm_tk.export.capturable import TRANSLATIONS, inexact_factor
from mdlstm_tk.export.interface import Interface, without_autocast
from mdlstm_tk.inputs import TENSORS, SweepInputs

DOMAIN = "mdlstm"
OPSET = 18  # has LayerNormalization (from 17 on); ONNX Runtime 1.20, the oldest supported, reads up to 21
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads
EXPORT_LOCK = threading.RLock()
USUAL = (5, 7, 3)  # extents of a grid that nearly all networks are verified on
BATCHES = (1, 3)  # of the verification
NEAR = 16  # extents above a verified one, for which a condition may be false; and further ones
MOST_DIVISORS, MOST_TRIALS = 2**10, 1000
TRIALS = [2**k for k in range(2, 15)]
LARGEST_X = 2**20  # numbers in such a batch
LARGEST_GRID = 2**13  # positions, so that an attention over a grid fits into memory
EXTENT_NAMES = {1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"]}


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The argument `custom_translation_table` for calls of `torch.onnx.export`.

    It translates each sweep into one `mdlstm::Wavefront` node; `lower` replaces these nodes by standard
    operators.

    >>> program = torch.onnx.export(net, (x,), dynamo=True, custom_translation_table=translation_table())
    >>> model = lower(program.model_proto, "unrolled")
    """
    _register_schema()
    return {torch.ops.mdlstm.wavefront.default: _translate, **TRANSLATIONS}


def capture(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    free_axes: Mapping[str, Mapping[int, int]] | None = None,
    output_names: Sequence[str] = ("y",),
    grid: Sequence[int] | None = None,
    verified: Sequence[Sequence[int]] = (),
) -> tuple[onnx.ModelProto, tuple[tuple[int, ...], ...]]:
    """Export a module to ONNX with each sweep as one node and the batch axis free.

    Args:
        module: an `Interface`, or a network that returns tensors, see `named_outputs`.
        examples: its inputs by name, float32 or int64, x first. Batch and free extents must be at least 2,
            because torch treats an extent of 1 as a constant.
        free_axes: for inputs, by name, further axes that are free, and the number that the extent of each
            is a multiple of. Their extents are equal in all these inputs, axis by axis.
        output_names: names of the outputs, in the order in which the module returns them.
        grid: a grid that the user knows, for messages.
        verified: of the grids that the graph is verified on, the free extents in those units, the main grid
            first.

    Returns:
        The graph, each sweep one node; and shapes of x, for each of which a condition is false that forward
        asked the extents for, such as `len(x) < 8`, and that torch took for true.

    Raises:
        MDLSTMError: torch cannot export the module; the message contains torch's reason.
    """
    first_name, *extra_names = examples
    interface = module if isinstance(module, Interface) else Interface(module, extra_names)
    free_axes = free_axes or {}
    count = len(free_axes.get(first_name, ()))
    extent_names = EXTENT_NAMES.get(count, [f"extent_{d + 1}" for d in range(count)])
    dims = [torch.export.Dim(name) for name in extent_names]
    batch = torch.export.Dim("batch")
    axes_of: dict[str, dict[int, Any]] = {name: {0: batch} for name in examples}
    for name, multiples in free_axes.items():
        for (axis, multiple), dim in zip(multiples.items(), dims, strict=True):
            axes_of[name][axis] = dim if multiple == 1 else multiple * dim
    further = tuple(axes_of[name] for name in extra_names)
    try:
        with exporter_silenced(), without_autocast(), torch.no_grad():
            program = torch.onnx.export(
                interface,
                tuple(examples.values()),
                dynamo=True,
                input_names=list(examples),
                output_names=list(output_names),
                dynamic_shapes=(axes_of[first_name], *([further] if further else [])),
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, AssertionError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise MDLSTMError(f"torch cannot export {interface.name}: {reason_of(cause)}") from error
    assert program is not None and program.exported_program is not None
    if (factor := inexact_factor(program.exported_program.graph)) is not None:
        raise MDLSTMError(
            f"torch cannot export {interface.name}: its forward rounds what it computes from an extent and "
            f"{factor}, for which a file has float32 only; compute it with integers, such as 7 * n // 10"
        )
    # torch names inputs and outputs as it is told, also if another value, such as that of torch.mean, has
    # that name.
    graph, names = program.model.graph, {*examples, *output_names}
    declared = {*graph.inputs, *graph.outputs}
    for value in (value for node in graph.all_nodes() for value in node.outputs):
        if value.name in names and value not in declared:
            value.name = f"{value.name}/inner"
    model: onnx.ModelProto = program.model_proto
    for value in model.graph.input:
        for axis in axes_of[value.name]:
            extent = value.type.tensor_type.shape.dim[axis]
            if not extent.dim_param:
                reason = (
                    f"int({value.name}.shape[{axis}]) does, or a loop, or pooling after a permute without "
                    ".contiguous()"
                )
                advice = (
                    f"export it for one grid, as in grid={grid or tuple(examples[first_name].shape[1:-1])}"
                )
                if axis == 0:
                    reason, advice = f"len({value.name}) does", f"take {value.name}.shape[0]"
                raise MDLSTMError(
                    f"torch cannot export {interface.name} with axis {axis} of {value.name} free: its "
                    f"forward fixes that extent, as {reason}; {advice}"
                )
    multiples = {0: 1, **free_axes.get(first_name, {})}
    return model, _shapes_beyond(program.exported_program, multiples, verified)


def _shapes_beyond(
    program: Any, multiples: Mapping[int, int], verified: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """Shapes of x for which conditions are false that torch took for true, and that all grids of the
    verification fulfil: for each condition a small one, see `_trials`."""
    name = program.graph_signature.user_inputs[0]
    shape = next(node for node in program.graph.nodes if node.name == name).meta["val"].shape
    environment = next(e.node.shape_env for e in shape if isinstance(e, torch.SymInt))
    # Where torch traces multiples that it was not told, conditions are in the symbol that it had before.
    equal = {g.expr.rhs: g.expr.lhs for g in environment.guards if isinstance(g.expr, sympy.Eq)}
    exprs = [e.node.expr if isinstance(e, torch.SymInt) else sympy.Integer(e) for e in shape]
    exprs = [
        e if e.is_number or (e / multiples.get(axis, 1)).is_Symbol else equal.get(e, e)
        for axis, e in enumerate(exprs)
    ]
    symbols = list(dict.fromkeys(chain.from_iterable(e.free_symbols for e in exprs)))
    grids = verified or [[*USUAL, *[3] * len(symbols)]]
    seen = [dict(zip(symbols, (n, *extents), strict=False)) for extents in grids for n in BATCHES]
    usual = {**seen[0], symbols[0]: 2}
    positions_left = max(LARGEST_GRID, 2 * prod(seen[0].values()))
    asserted = getattr(environment, "deferred_runtime_asserts", {})
    conditions = [entry.expr for entries in asserted.values() for entry in entries]
    for symbol, bounds in program.range_constraints.items():
        if symbol in usual and bounds.upper.is_number and bounds.upper < LARGEST_X:
            conditions.append(symbol <= bounds.upper)
    beyond: dict[tuple[int, ...], None] = {}
    for condition in conditions:
        own = [symbol for symbol in symbols if symbol in condition.free_symbols]
        if not condition.free_symbols <= usual.keys() or any(_is_false(condition, e) for e in seen):
            continue  # or the verification sees it
        for trial in islice(_trials(condition, own, usual), MOST_TRIALS):
            extents = tuple(int(e.subs(trial)) for e in exprs)
            positions = prod(trial.values()) // extents[0]
            fits = prod(extents) <= LARGEST_X and positions <= positions_left
            if fits and _is_false(condition, trial):
                beyond[extents] = None
                break
    return tuple(beyond)


def _trials(condition: Any, own: Sequence[Any], usual: Mapping[Any, int]) -> Iterator[Mapping[Any, int]]:
    """Values for which a condition may be false: the usual ones with another extent, one of the numbers in
    the condition, near it, a multiple or a divisor of it; or two extents whose product is such a number."""
    numbers = sorted(int(n) for n in condition.atoms(sympy.Integer) if 0 < n < LARGEST_X)
    divisors = [(n, k) for n in numbers for k in range(1, min(n, MOST_DIVISORS) + 1) if n % k == 0]
    near = {n + k for n in numbers for k in (-1, 0, 1, n)} | {n // k for n, k in divisors}
    extents = [k for k in sorted({*near, *TRIALS}) if k > 1]
    for symbol in own:
        for k in (*range(usual[symbol], usual[symbol] + NEAR), *extents):
            yield {**usual, symbol: k}
    for first, second in permutations(own, 2):
        for n, k in divisors:
            if k > 1 and n // k > 1:
                yield {**usual, first: n // k, second: k}


def _is_false(condition: Any, values: Mapping[Any, int]) -> bool:
    """True if a condition is false for these values."""
    with contextlib.suppress(ArithmeticError, TypeError, ValueError):  # such as a division by 0
        return condition.subs(values) is sympy.false
    return False


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
def exporter_silenced() -> Iterator[None]:
    """Suppress the exporter's notes about optional packages and its own deprecation warnings.

    One thread at a time: levels of logging and filters of warnings belong to the process, and two threads
    would restore each other's.
    """
    with EXPORT_LOCK:
        disabled = logging.root.manager.disable
        logging.disable(max(disabled, logging.ERROR))
        try:
            with warnings.catch_warnings(action="ignore"):
                yield
        finally:
            logging.disable(disabled)
