"""The operator `mdlstm::wavefront`, and that of its gradient: a sweep as one node of a captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from mdlstm_tk._util.arguments import check_dtype, choice
from mdlstm_tk._util.masking import is_readable
from mdlstm_tk.backends.dispatch import OPERATOR_BACKENDS
from mdlstm_tk.backends.inputs import (
    DIFFERENTIABLE,
    SCHEMA,
    TENSORS,
    Gradients,
    SweepInputs,
    SweepResults,
    boundary_shape,
    check_devices,
    check_inputs,
    check_tensor,
    state_dtype,
)
from mdlstm_tk.backends.run import (
    differentiable_gradients,
    in_forward_mode,
    needs_plain_autograd,
    run_backward,
    run_forward,
    wanted_gradients,
)
from mdlstm_tk.cells import get_cell
from mdlstm_tk.cells.step import cell_of_graph, graph_name
from mdlstm_tk.errors import InputError
from mdlstm_tk.flops import register_flops

torch.library.define(
    "mdlstm::wavefront",
    f"({SCHEMA}, bool save, bool recompute, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "mdlstm::wavefront_backward",
    f"({SCHEMA}, Tensor grad, Tensor output, Tensor gates, Tensor states, Tensor? dfinal, bool recompute, "
    f"str backend, bool wants_dx, bool wants_weights) -> "
    f"({', '.join(['Tensor'] * len(DIFFERENTIABLE))})",
)
FIELDS = len(SweepInputs._fields)
Shape = Sequence[int]


def named_arguments(inputs: SweepInputs) -> tuple[Any, ...]:
    """The arguments of an operator, which takes no cell, but its `graph_name`."""
    if torch.compiler.is_dynamo_compiling():  # which cannot follow how a name is made
        return (*inputs[:-1], _name_of_registered(inputs.cell.name, inputs.ndim, inputs.present))
    return (*inputs[:-1], graph_name(inputs.cell, inputs.ndim, inputs.present))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _name_of_registered(cell: str, ndim: int, present: tuple[str, ...]) -> str:
    return graph_name(get_cell(cell), ndim, present)


def _with_cell(arguments: Sequence[Any]) -> SweepInputs:
    """The reverse of `named_arguments`, for the first arguments of an operator; its signs are a list."""
    inputs = SweepInputs(*arguments[:FIELDS])
    name: Any = inputs.cell
    cell = cell_of_graph(name, inputs.ndim, inputs.present)
    return inputs._replace(signs=tuple(inputs.signs), cell=cell)


def _unpack(arguments: Sequence[Any]) -> SweepInputs:
    """The inputs, which an operator gets as its first arguments. A captured graph may give it `sizes` on a
    GPU; they are read here, once.

    Raises:
        InputError: derivatives are computed in forward mode; torch would take that of an operator for 0.
    """
    if in_forward_mode():
        raise InputError(
            "a captured graph has no derivative in forward mode; differentiate the layer itself so, or the "
            "graph with backward()"
        )
    inputs = _with_cell(arguments)
    sizes = inputs.sizes
    if sizes is not None and is_readable(sizes):
        sizes = sizes.cpu()
    return inputs._replace(sizes=sizes)


def _wavefront(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator.

    Returns:
        h, the final states, gates and states for the backend's backward, in the shapes of
        `result_shapes`; empty where there are none.
    """
    inputs, (save, recompute, backend) = _unpack(arguments), arguments[FIELDS:]
    check_inputs(inputs)
    results = run_forward(inputs, backend, save, recompute)
    shapes = result_shapes(inputs, save, recompute).values()
    return tuple(in_shape(t, inputs.x, *shape) for t, shape in zip(results, shapes, strict=True))


def in_shape(result: Tensor | None, x: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A result in the shape that the operator promises: None becomes empty, and gates and states of a
    ragged batch, (dirs, rows, k), are padded to as many rows as there are positions."""
    if result is None:
        return x.new_empty(shape, dtype=dtype)
    if result.numel() == prod(shape):
        return result.view(shape).contiguous()
    padded = x.new_zeros(shape, dtype=dtype)
    padded[:, : result.shape[1]] = result
    return padded


def result_shapes(inputs: SweepInputs, save: bool, recompute: bool) -> dict[str, tuple[Shape, torch.dtype]]:
    """The shapes and dtypes of the operator's results, by their names in `SweepResults`."""
    x, (dirs, gate_dim, _), dtype = inputs.x, inputs.weight_ih.shape, state_dtype(inputs.x)
    rows = prod(x.shape[:-1])  # with `numel`, every shape would compile anew
    return {
        "output": ((*x.shape[:-1], dirs, inputs.units), x.dtype),
        "final": ((0,) if inputs.initial is None else boundary_shape(inputs), dtype),
        "gates": ((dirs, rows, gate_dim) if save and not recompute else (0,), dtype),
        "states": ((dirs, rows, inputs.state_count * inputs.units) if save else (0,), dtype),
    }


def _wavefront_fake(*arguments: Any) -> tuple[Tensor, ...]:
    """Tensors of the shapes and dtypes of the operator's results."""
    inputs, (save, recompute, backend) = _with_cell(arguments), arguments[FIELDS:]
    _check_captured(inputs, backend)
    shapes = result_shapes(inputs, save, recompute).values()
    return tuple(inputs.x.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _check_captured(inputs: SweepInputs, backend: str, **others: Tensor | None) -> None:
    """Check what can be checked before the shapes are known."""
    choice("backend", backend, OPERATOR_BACKENDS)
    check_dtype(inputs.x.dtype, "the dtype of x")
    check_devices(inputs, **others)


def _wavefront_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients in the order of `DIFFERENTIABLE`; empty where an input is None or its gradient is not
    wanted."""
    inputs = _unpack(arguments)
    grad, output, gates, states, dfinal, recompute, backend, *wanted = arguments[FIELDS:]
    check_inputs(inputs)
    others = {"grad": grad, "output": output, "states": states, "gates": gates, "dfinal": dfinal}
    check_devices(inputs, **others)
    shapes = result_shapes(inputs, True, recompute)
    shapes |= {"grad": shapes["output"], "dfinal": shapes["final"]}
    for name, tensor in others.items():
        if tensor is not None:
            check_tensor(name, tensor, *shapes[name])
    results = SweepResults(output, None, None if recompute else gates, states)
    gradients = run_backward(inputs, results, grad, dfinal, backend, *wanted)
    pairs = zip(DIFFERENTIABLE, _has_gradient(*wanted), strict=True)
    in_order = (gradients.get(name) if has else None for name, has in pairs)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in in_order)


def _wavefront_backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = _with_cell(arguments)
    grad, output, gates, states, dfinal, _, backend, *wanted = arguments[FIELDS:]
    others = {"grad": grad, "output": output, "gates": gates, "states": states, "dfinal": dfinal}
    _check_captured(inputs, backend, **others)
    pairs = zip(inputs.tensors, _has_gradient(*wanted), strict=True)
    return tuple(t.new_empty(t.shape) if has and t is not None else grad.new_empty(0) for t, has in pairs)


def _has_gradient(wants_dx: bool, wants_weights: bool) -> list[bool]:
    """For each of `DIFFERENTIABLE`, true if the operator's backward returns its gradient."""
    return [{"x": wants_dx, "initial": True}.get(name, wants_weights) for name in DIFFERENTIABLE]


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    ctx.template = SweepInputs(*inputs[:FIELDS]).without_tensors()
    ctx.saved, *ctx.options = inputs[FIELDS:]
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    h, _, gates, states = output
    ctx.save_for_backward(*inputs[: len(TENSORS)], h, gates, states)


def _operator_backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None, *_: Any) -> Any:
    *tensors, output, gates, states = ctx.saved_tensors
    named, needs_grad = ctx.template.with_tensors(tensors), ctx.needs_input_grad[: len(DIFFERENTIABLE)]
    no_gradients = (None,) * (FIELDS - len(DIFFERENTIABLE) + 3)  # of the other arguments
    if torch.is_grad_enabled() or needs_plain_autograd():
        with torch.enable_grad():
            gradients_of = differentiable_gradients(_with_cell(named), grad, dfinal, needs_grad)
        return *gradients_of, *no_gradients
    if not ctx.saved:  # the graph was captured where no gradient was wanted
        output, _, gates, states = torch.ops.mdlstm.wavefront(*named, True, *ctx.options)
    results = SweepResults(output, None, gates, states)
    gradients = captured_gradients(named, results, grad, dfinal, needs_grad, *ctx.options)
    pairs = zip(DIFFERENTIABLE, needs_grad, strict=True)
    return *(gradients[name] if needs else None for name, needs in pairs), *no_gradients


def captured_gradients(
    named: Sequence[Any],
    results: SweepResults,
    grad: Tensor | None,
    dfinal: Tensor | None,
    needs_grad: Sequence[bool],
    *options: Any,
) -> Gradients:
    """`run_backward` as one node of a graph: `results` have the shapes of `result_shapes`, and the options
    are `recompute` and `backend`."""
    output, _, gates, states = results
    grad = torch.zeros_like(output) if grad is None else grad
    dfinal = None if named[DIFFERENTIABLE.index("initial")] is None else dfinal
    others = grad, output, gates, states, dfinal, *options, *wanted_gradients(needs_grad)
    register_flops()
    gradients = torch.ops.mdlstm.wavefront_backward(*named, *others)
    return dict(zip(DIFFERENTIABLE, gradients, strict=True))


torch.library.impl("mdlstm::wavefront", "default", _wavefront)
torch.library.impl("mdlstm::wavefront_backward", "default", _wavefront_backward)
torch.library.register_fake("mdlstm::wavefront", _wavefront_fake)
torch.library.register_fake("mdlstm::wavefront_backward", _wavefront_backward_fake)
torch.library.register_autograd("mdlstm::wavefront", _operator_backward, setup_context=_save_for_backward)
register_flops()  # for graphs that were saved, which call the operators without a layer
