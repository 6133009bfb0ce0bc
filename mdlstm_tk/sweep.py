"""The sweep of a layer: one autograd rule, run directly in eager mode, and as the operator
`mdlstm::wavefront` by whatever must see one node instead of what is inside it (`torch.compile`,
`torch.export` and with it ONNX, tracing, dispatch modes, meta tensors).

Where a transform must see inside (`torch.func`, forward-mode differentiation, second derivatives), the
plain sweep of `mdlstm_tk.backends.torch` runs, which torch differentiates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdlstm_tk._util.masking import is_captured
from mdlstm_tk.backends import Engine, engine
from mdlstm_tk.backends import torch as torch_engine
from mdlstm_tk.cells import Cell
from mdlstm_tk.cells.step import cell_of_graph, graph_name
from mdlstm_tk.errors import InputError
from mdlstm_tk.inputs import (
    DIFFERENTIABLE,
    TENSORS,
    SweepInputs,
    SweepResults,
    boundary_shape,
    check_inputs,
    check_tensor,
    state_dtype,
)

FIELDS, COUNT = len(SweepInputs._fields), len(DIFFERENTIABLE)
Shapes = Sequence[tuple[Sequence[int], torch.dtype]]

_cells: dict[str, Cell] = {}  # those of layers, by their names in graphs


# That of the operators is found once: what one engine keeps for backward no other can read, and a compiler
# that failed may work later.
_engine_of_graphs = cache(engine)


def name_in_graphs(cell: Cell, ndim: int, present: tuple[str, ...]) -> str:
    """The `graph_name` of a cell, which stands for this cell in this process from now on."""
    name = graph_name(cell, ndim, present)
    _cells[name] = cell
    return name


def sweep(
    inputs: SweepInputs, backend: str = "auto", recompute: bool = False, name: str = ""
) -> tuple[Tensor, Tensor | None]:
    """Sweep a grid in one or more directions (Graves, Fernández, Schmidhuber 2007, §2).

    Args:
        inputs: x, the parameters, initial states, sizes, directions and the cell.
        backend: a name in `mdlstm_tk.backends.BACKENDS`.
        recompute: keep only h and the other states for backward, (1 + S)·n numbers per position and
            direction instead of (1 + S + G)·n, and compute the gates again from them.
        name: the `name_in_graphs` of the cell, which `torch.compile` cannot follow.

    Returns:
        h (N, *grid, dirs, n), and the final states (N, F, dirs, 1 + S, n), or None if there are no initial
        ones.

    Raises:
        InputError: the inputs do not fit each other, or the backend cannot run them.
    """
    if _sees_inside():
        check_inputs(inputs)
        return torch_engine.sweep(inputs)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs.tensors)
    if is_captured():
        name = name or name_in_graphs(inputs.cell, inputs.ndim, inputs.present)
        save = save and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        output, final, *_ = torch.ops.mdlstm.wavefront(*inputs[:-1], name, save, recompute, backend)
        return output, None if inputs.initial is None else final
    check_inputs(inputs)
    run = engine(backend, inputs.x.device)
    if save and run is torch_engine and not recompute:
        return torch_engine.sweep(inputs)
    if not save:
        return run.forward(inputs)[:2]
    output, final = _Sweep.apply(*inputs, True, recompute, run)  # type: ignore[no-untyped-call]
    return output, final


def _sees_inside() -> bool:
    """Tell whether a transform is active that cannot see into an operator."""
    return torch._C._are_functorch_transforms_active() or in_forward_mode()


def in_forward_mode() -> bool:
    """Tell whether derivatives are computed in forward mode."""
    return forward_ad._current_level >= 0


def _inputs(arguments: Sequence[Any]) -> SweepInputs:
    """The first arguments of the operator, or of `_Sweep`, as inputs. A graph has the name of the cell, and
    the signs in a list."""
    inputs, cell = SweepInputs(*arguments[:FIELDS]), arguments[FIELDS - 1]
    if isinstance(cell, Cell):
        return inputs
    cell = _cells.get(cell) or cell_of_graph(cell, inputs.ndim, inputs.present)
    return inputs._replace(signs=tuple(inputs.signs), cell=cell)


def _checked(arguments: Sequence[Any]) -> SweepInputs:
    """The same for a kernel, with sizes that it can read."""
    if in_forward_mode():  # torch would take the derivative of an operator for 0
        raise InputError("a captured graph has no derivative in forward mode; use the layer itself")
    inputs = _inputs(arguments)
    if inputs.sizes is not None:
        inputs = inputs._replace(sizes=inputs.sizes.cpu())
    check_inputs(inputs)
    return inputs


def _shapes(inputs: SweepInputs, save: bool, recompute: bool) -> Shapes:
    """The shapes and dtypes of the operator's results: h, final states, gates and states for backward."""
    x, (dirs, gates, _), dtype = inputs.x, inputs.weight_ih.shape, state_dtype(inputs.x)
    rows = prod(x.shape[:-1])  # with `numel`, every shape would compile anew
    return [
        ((*x.shape[:-1], dirs, inputs.units), x.dtype),
        ((0,) if inputs.initial is None else boundary_shape(inputs), dtype),
        ((dirs, rows, gates) if save and not recompute else (0,), dtype),
        ((dirs, rows, inputs.state_count * inputs.units) if save else (0,), dtype),
    ]


def _forward_operator(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator.

    Returns:
        The tensors of `_shapes`. What a backend does not keep is 0, such as rows of padded positions.
    """
    inputs, (save, recompute, backend) = _checked(arguments), arguments[FIELDS:]
    results = _engine_of_graphs(backend, inputs.x.device).forward(inputs, save, recompute)
    found = []
    for result, (shape, dtype) in zip(results, _shapes(inputs, save, recompute), strict=True):
        if result is not None and result.numel() == prod(shape):
            found.append(result.view(shape).contiguous())
            continue
        found.append(inputs.x.new_zeros(shape, dtype=dtype))
        if result is not None:
            found[-1][:, : result.shape[1]] = result
    return tuple(found)


def _forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = _inputs(arguments)
    shapes = _shapes(inputs, *arguments[FIELDS : FIELDS + 2])
    return tuple(inputs.x.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _backward_operator(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients in the order of `DIFFERENTIABLE`; empty where an input is None or its gradient is not
    wanted."""
    inputs = _checked(arguments)
    grad, output, gates, states, dfinal, recompute, backend, *wanted = arguments[FIELDS:]
    output_shape, final_shape, *others = _shapes(inputs, True, recompute)
    for name, tensor, kind in (
        ("grad", grad, output_shape),
        ("dfinal", dfinal, final_shape),
        ("output", output, output_shape),
        *zip(("gates", "states"), (gates, states), others, strict=True),
    ):
        check_tensor(name, tensor, *kind, inputs.x.device)
    results = SweepResults(output, None, None if recompute else gates, states)
    run = _engine_of_graphs(backend, inputs.x.device)
    found = _run_backward(inputs, results, grad, dfinal, run, *wanted)
    gradients = (found.get(name) for name in DIFFERENTIABLE)
    return tuple(grad.new_empty(0) if g is None else g.contiguous() for g in gradients)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, (grad, *_, wants_dx, wants_weights) = _inputs(arguments), arguments[FIELDS:]
    wanted = [{"x": wants_dx, "initial": True}.get(name, wants_weights) for name in DIFFERENTIABLE]
    pairs = zip(inputs.tensors, wanted, strict=True)
    return tuple(grad.new_empty(0) if t is None or not w else t.new_empty(t.shape) for t, w in pairs)


def _run_backward(
    inputs: SweepInputs,
    results: SweepResults,
    grad: Tensor,
    dfinal: Tensor | None,
    run: Engine,
    *wanted: bool,
) -> dict[str, Tensor | None]:
    if inputs.initial is not None:
        dfinal = torch.zeros_like(inputs.initial) if dfinal is None else dfinal.contiguous()
    return run.backward(inputs, results, grad.contiguous(), dfinal, *wanted)


def _save_for_backward(ctx: Any, inputs: Sequence[Any], output: Sequence[Tensor | None]) -> None:
    """Keep what `_backward` needs."""
    ctx.options = inputs[len(TENSORS) :]
    ctx.set_materialize_grads(False)  # zeros in place of the gates' gradient would be as large as the gates
    saved = *inputs[: len(TENSORS)], output[0], *output[2:]
    ctx.save_for_backward(*saved)
    ctx.kinds = [None if t is None else (t.shape, t.dtype, t.device) for t in saved]


def _backward(ctx: Any, grad: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Any, ...]:
    """The gradients of all arguments of the operator, or of `_Sweep`."""
    signs, cell, saved, recompute, by = ctx.options  # a backend, or the engine
    for name, tensor, kind in zip(
        (*TENSORS, "output", "gates", "states"), ctx.saved_tensors, ctx.kinds, strict=True
    ):
        if kind is not None and not torch.compiler.is_compiling():  # hooks may return other tensors
            check_tensor(name, tensor, *kind)
    *tensors, output, gates, states = ctx.saved_tensors
    needs = ctx.needs_input_grad[:COUNT]
    rest = (None,) * (len(ctx.needs_input_grad) - COUNT)
    if torch.is_grad_enabled() or _sees_inside():  # the gradients may be differentiated, by the plain sweep
        inputs = _inputs((*tensors, signs, cell))
        found = torch_engine.gradients(inputs, needs, grad, dfinal, create_graph=True)
        return *map(found.get, DIFFERENTIABLE), *rest
    if not saved:  # the graph was captured where no gradient was wanted
        arguments = *tensors, signs, cell, True, recompute, by
        output, _, gates, states = torch.ops.mdlstm.wavefront(*arguments)
    wanted = needs[0], any(needs[1:-1])
    grad = torch.zeros_like(output) if grad is None else grad
    if isinstance(cell, Cell):
        results = SweepResults(output, None, gates, states)
        found = _run_backward(_inputs((*tensors, signs, cell)), results, grad, dfinal, by, *wanted)
    else:
        arguments = *tensors, signs, cell, grad, output, gates, states, dfinal, recompute, by
        of_all = torch.ops.mdlstm.wavefront_backward(*arguments, *wanted)
        found = dict(zip(DIFFERENTIABLE, of_all, strict=True))
    return *(found.get(name) if n else None for name, n in zip(DIFFERENTIABLE, needs, strict=True)), *rest


class _Sweep(torch.autograd.Function):
    """A sweep in eager mode. Its last argument is the engine, in place of the backend's name."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        inputs, (save, recompute, run) = _inputs(arguments), arguments[FIELDS:]
        results: SweepResults = run.forward(inputs, save, recompute)
        _save_for_backward(ctx, arguments, results)
        return results[:2]

    backward = staticmethod(_backward)


_KINDS = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "tuple[int, ...]": "int[]", "Cell": "str"}
_SCHEMA = ", ".join(
    f"{_KINDS[kind.__forward_arg__]} {name}" for name, kind in SweepInputs.__annotations__.items()
)
_SAVED = "Tensor grad, Tensor output, Tensor gates, Tensor states, Tensor? dfinal"
for _name, _options, _results, _run, _fake in (
    ("wavefront", "bool save, bool recompute, str backend", 4, _forward_operator, _forward_fake),
    (
        "wavefront_backward",
        f"{_SAVED}, bool recompute, str backend, bool wants_dx, bool wants_weights",
        COUNT,
        _backward_operator,
        _backward_fake,
    ),
):
    _returns = ", ".join(["Tensor"] * _results)
    torch.library.define(f"mdlstm::{_name}", f"({_SCHEMA}, {_options}) -> ({_returns})")
    torch.library.impl(f"mdlstm::{_name}", "default", _run)
    torch.library.register_fake(f"mdlstm::{_name}", _fake)
torch.library.register_autograd("mdlstm::wavefront", _backward, setup_context=_save_for_backward)
